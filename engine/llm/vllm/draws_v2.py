"""Seeded sampling inside vLLM's second model runner, the one that serves on GPUs.

The same draws as in draws_v1.py and in the transformers engine. Here a processor sees the scores before the temperature, after
penalties, with a row for each place of the batch; what it needs of a request is kept by the request's slot. A step never waits
for the device: slots, lengths, seeds and settings are all on the host, and go there in copies that are queued.
"""

from __future__ import annotations

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from caiflow.engine.llm.sampler import draw_rows, logps_of, on_device
from caiflow.engine.llm.vllm.seeds import Seeded, seeded


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves each seeded row the one token its seed draws."""

    def __init__(self, _vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._slots: dict[int, Seeded] = {}
        self._prompt_sizes = req_states.prompt_len.np

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take note of the request that has a slot from now on; return whether its tokens are drawn here."""
        asked = seeded(sampling_params)
        self._slots.pop(req_idx, None)
        if asked is not None:
            self._slots[req_idx] = asked
        return asked is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Return `logits` [B, V] with all but each seeded row's drawn token at -inf, and that at 0 or its log-probability."""
        rows = [(row, int(slot)) for row, slot in enumerate(ctx.idx_mapping_np) if slot in self._slots]
        if not rows:
            return logits
        # a prompt that is still being read has a row too, whose token is thrown away
        counts = [max(0, int(ctx.seq_lens_upper_bound_np[row]) - int(self._prompt_sizes[slot])) for row, slot in rows]
        asked = [self._slots[slot] for _, slot in rows]
        where = on_device(np.array([row for row, _ in rows]), logits.device)
        scores = logits[where]
        tokens = draw_rows(scores, [a.sampling for a in asked], [a.seed for a in asked], counts)
        if any(a.told for a in asked):  # vLLM divides by the temperature afterwards
            heat = on_device(np.array([a.sampling.temperature for a in asked], dtype=np.float32), logits.device)
            left = logps_of(scores / heat[:, None], tokens) * heat
        else:
            left = torch.zeros_like(tokens, dtype=logits.dtype)
        logits[where] = -torch.inf
        logits[where, tokens] = left
        return logits
