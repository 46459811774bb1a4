"""Counts what caiflow's own engine on transformers computes: tokens of prompts, padding too, and the columns it attends over.

The rows are those of `prefixes`. The ideal reads each token of a prompt once (a trie of all prompts and answers, in the order
in which they were asked); and it attends over each row's own tokens. Run `python -m benchmarks.own_prefixes` within tests/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.chain import save_model
from benchmarks.prefixes import CASES, Case, carry_out
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.host import EngineHost
from caiflow.engine.llm.local import attention
from caiflow.engine.llm.order.blocks import Prefixes


class Counter:
    """Counts what the engine's forward passes take in, by standing in for its `_forward` and `_finish`."""

    def __init__(self, engine: Any) -> None:
        self.read = self.padded = self.decoded = self.columns = self.own_columns = self.passes = 0
        self._engine, self._prefixes, self.ideal = engine, Prefixes(1), 0
        self._forward, engine._forward = engine._forward, self._forwarded
        self._finish, engine._finish = engine._finish, self._finished
        self._row, engine._row = engine._row, self._taken

    def _forwarded(self, ids: torch.Tensor, mask: torch.Tensor, *given: Any) -> torch.Tensor:
        self.passes += 1
        if ids.shape[1] == 1 and given[1:] and given[1] is self._engine._slots.cache:
            going = [self._engine._slots.lengths[slot] for slot in self._engine._rows]
            self.decoded += len(going)
            self.columns += sum((last - first) * width for first, last, width in attention._SPANS.get())
            self.own_columns += sum(going)
        else:
            self.padded += ids.numel()
            self.read += int(mask[:, -ids.shape[1] :].sum())
        return self._forward(ids, mask, *given)

    def _taken(self, number: int, request: Any) -> Any:
        row = self._row(number, request)
        self.ideal += self._prefixes.computed(row.ids)
        return row

    def _finished(self, row: Any, answer: Any) -> None:
        self._prefixes.learn([*row.ids, *row.out])
        self._finish(row, answer)


def count(case: Case, model: Path) -> dict[str, int]:
    """Return what the engine computed for a case."""
    from caiflow.engine.llm.load import load_engine

    source = ModelSource(str(model), "m", engine="transformers", options={"engine_args": {"max_num_seqs": case.slots}})
    loaded: list[Any] = []

    def start() -> Any:
        loaded.append(load_engine(source))
        return loaded[0]

    host = EngineHost(start)
    counter = Counter(loaded[0])
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(carry_out(host, case, Path(scratch)))
    host.close()
    return {name: getattr(counter, name) for name in ("ideal", "read", "padded", "columns", "own_columns", "passes")}


def measure(cases: Sequence[int] = range(len(CASES))) -> list[dict[str, Any]]:
    """Count each case, and return what was read and attended over beside the least that could be."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model")
        for place in cases:
            found = count(CASES[place], model)
            for what, ours, least in (
                ("prefill", "read", "ideal"),
                ("prefill with padding", "padded", "ideal"),
                ("columns", "columns", "own_columns"),
            ):
                line = {"name": f"floor of {what} on transformers, {CASES[place]}", "ours": found[ours], "theirs": found[least]}
                ratio = round(found[least] / found[ours], 3)
                lines.append({**line, "unit": "tokens", "ratio": ratio, "runs": 1, "passes": found["passes"]})
    return lines


def main() -> None:
    """Count every case, or those given by number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", type=int, default=range(len(CASES)))
    for line in measure(parser.parse_args().cases):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
