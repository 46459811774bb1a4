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

from caiflow.engine.llm.base import Sampling
from caiflow.engine.llm.sampler import draw_rows, on_device
from caiflow.engine.llm.vllm.seeds import seeded

_Row = tuple[int, Sampling, list[int]]
"""Seed, filters, and the tokens so far."""


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
                self._rows[index] = (*asked, out)
        for start, stop, way in batch_update.moved:
            moving, there = self._rows.pop(start, None), self._rows.pop(stop, None)
            if moving is not None:
                self._rows[stop] = moving
            if there is not None and way == MoveDirectionality.SWAP:
                self._rows[start] = there

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return `logits` [B, V] with everything but the drawn token of each seeded row at -inf."""
        if not self._rows:
            return logits
        seeds, samplings, outs = zip(*self._rows.values(), strict=True)
        where = on_device(np.array(list(self._rows)), logits.device)
        tokens = draw_rows(logits[where], samplings, seeds, [len(out) for out in outs], scaled=True)
        logits[where] = -torch.inf
        logits[where, tokens] = 0.0
        return logits
