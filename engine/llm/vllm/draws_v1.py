"""Seeded sampling inside vLLM's first model runner, the one that serves where there is no Triton: on CPUs.

A row's draw depends on its seed and its number of tokens alone, as in the transformers engine: both give the same answers where
their scores agree. vLLM's own per-request seeds cost a random tensor per row and step, and fail on a CPU where a prompt is read
in pieces. Loaded by vLLM, by name, in each of its workers.
"""

from __future__ import annotations

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from caiflow.engine.llm.sampler import draw_rows, logps_of, on_device
from caiflow.engine.llm.vllm.seeds import Seeded, seeded

_Row = tuple[Seeded, list[int]]
"""How it is drawn, and the tokens so far."""


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves each seeded row the one token its seed draws; vLLM has applied temperature and penalties before."""

    def __init__(self, _vllm_config: VllmConfig, _device: torch.device, _is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """Say yes, though it isn't: this runner calls such processors alone after the temperature, on sampled rows only."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch's rows as vLLM removes, adds and moves them, in that order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, out in batch_update.added:
            self._rows.pop(index, None)
            if asked := seeded(params):
                self._rows[index] = (asked, out)
        for start, stop, way in batch_update.moved:
            moving, there = self._rows.pop(start, None), self._rows.pop(stop, None)
            if moving is not None:
                self._rows[stop] = moving
            if there is not None and way == MoveDirectionality.SWAP:
                self._rows[start] = there

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return `logits` [B, V] with all but each seeded row's drawn token at -inf, and that at 0 or its log-probability."""
        if not self._rows:
            return logits
        asked, outs = zip(*self._rows.values(), strict=True)
        where = on_device(np.array(list(self._rows)), logits.device)
        scores = logits[where]
        tokens = draw_rows(
            scores, [a.sampling for a in asked], [a.seed for a in asked], [len(out) for out in outs], scaled=True
        )
        logits[where] = -torch.inf
        logits[where, tokens] = logps_of(scores, tokens) if any(a.told for a in asked) else 0.0
        return logits
