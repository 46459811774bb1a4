"""The engine of models that score texts: reward models and classifiers with a sequence-classification head.

Owns how a head's scores become log-probabilities of its labels. Writes no text and refuses to. Imported on workers only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.llm.files import choose_device, load_renderer, load_weights, torch_dtype, writes_no_text
from caiflow.engine.llm.pulse import Pulse
from caiflow.engine.llm.render import Renderer

CAPACITY = 64
"""Texts read in one forward pass at the most."""
_TOKENS = 16_384
"""Tokens of one forward pass, padding included, beyond the first text."""
_MEAN = "reward_mean"
"""The entry of config.json that training a reward model leaves: what its scores are centred on."""


class ClassifierEngine:
    """An Engine (see base.py) that answers requests with `classify`: the log-probability of each label, for the whole text."""

    waiting = ""  # for nobody
    capacity = CAPACITY

    def __init__(self, source: ModelSource, model: Any, renderer: Renderer) -> None:
        self._source, self._renderer = source, renderer
        self.pulse = Pulse()
        self.gate = None
        self._model = model.eval()
        self._pad = _pad_id(renderer.tokenizer)
        model.config.get_text_config().pad_token_id = self._pad
        self._context = min(model.config.get_text_config().max_position_embeddings, renderer.tokenizer.model_max_length)
        self._queue: deque[tuple[int, list[int]]] = deque()
        self._refused: list[tuple[int, Answer]] = []

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Render and queue requests; one that can't be answered finishes with its error."""
        for number, request in requests:
            try:
                self._queue.append((number, self._ids(request)))
            except EngineError as error:
                self._refused.append((number, error))

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Score the oldest texts, a pass after the other, until `timeout_s` has passed."""
        deadline = time.monotonic() + timeout_s
        finished, self._refused = self._refused, []
        while batch := self._batch():
            labels = self._labels([ids for _, ids in batch])
            finished += [(n, Completion("", "stop", len(ids), logprobs=p)) for (n, ids), p in zip(batch, labels, strict=True)]
            if time.monotonic() >= deadline:
                break
        return finished

    def _batch(self) -> list[tuple[int, list[int]]]:
        """Take the oldest texts that fit into one pass."""
        batch: list[tuple[int, list[int]]] = []
        longest = 0
        while self._queue and len(batch) < CAPACITY:
            longest = max(longest, len(self._queue[0][1]))
            if batch and longest * (len(batch) + 1) > _TOKENS:
                break
            batch.append(self._queue.popleft())
        return batch

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        self._queue.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _ids(self, request: Request) -> list[int]:
        if not request.classify:
            raise writes_no_text(self._source, (self._model.config.architectures or ["?"])[0])
        if isinstance(request.prompt, str):
            ids = list(self._renderer.tokenizer(request.prompt)["input_ids"])
        else:
            ids = self._renderer.conversation(request.prompt, request.template).ids
        if not ids or len(ids) > self._context:
            said = f"the text has {len(ids)} tokens, and the classifier reads 1 to {self._context}"
            raise EngineError(said, "grade less of it with `question`, or leave the row out", kind="overflow")
        return ids

    def _labels(self, texts: Sequence[Sequence[int]]) -> list[dict[str, float]]:
        width = max(map(len, texts))
        self.pulse.beat(width * len(texts))
        padded = [[*ids, *[self._pad] * (width - len(ids))] for ids in texts]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]
        device = self._model.device
        with torch.inference_mode():
            ids, kept = torch.tensor(padded, device=device), torch.tensor(mask, device=device)
            scores = self._model(input_ids=ids, attention_mask=kept).logits.float()
        return [dict(zip(self._names, row, strict=True)) for row in self._logprobs(scores).tolist()]

    def _logprobs(self, scores: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities [B, labels]: of one label among all, or of each by itself where several may hold."""
        config = self._model.config
        if scores.shape[1] == 1:
            return torch.nn.functional.logsigmoid(scores - float(getattr(config, _MEAN, 0.0)))
        if config.problem_type == "multi_label_classification":
            return torch.nn.functional.logsigmoid(scores)
        return torch.log_softmax(scores, dim=1)

    @property
    def _names(self) -> list[str]:
        named = self._model.config.id2label
        return [str(named[place]) for place in range(len(named))]


def load_classifier(source: ModelSource, device: str) -> ClassifierEngine:
    """Load a model with a sequence-classification head onto `device` (auto: cuda, mps or cpu).

    Raises:
        EngineError: kind `load`: files missing or unreadable, memory short.
    """
    where = choose_device() if device == "auto" else device
    model = load_weights(source, "labels", dtype=torch_dtype(source.dtype, where)).to(where)
    return ClassifierEngine(source, model, load_renderer(source))


def _pad_id(tokenizer: Any) -> int:
    return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))
