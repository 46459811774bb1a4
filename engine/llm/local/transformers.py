"""The engine that runs a model with transformers, on a CPU or a GPU.

Owns batching: requests are prefilled in groups of similar length, decode together, leave as they finish, and newcomers take
their places. What a finished row has read is kept for its next call. A request's answer depends on nothing else in the batch
(up to the rounding of the dtype). Models whose layers keep no plain key-value cache go through the library's own `generate`,
group by group. Imported on workers only.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.llm.local.abilities import end_ids, plain_layers, takes
from caiflow.engine.llm.local.attention import reading
from caiflow.engine.llm.local.kv import Kept, KeptRows, Read, Slots, resumed
from caiflow.engine.llm.local.likelihood import token_budget, token_logprobs
from caiflow.engine.llm.local.prefixes import WORTH_SHARING, Prefixes, common
from caiflow.engine.llm.order.gate import Gate
from caiflow.engine.llm.pulse import Pulse
from caiflow.engine.llm.render import Rendered, Renderer, scored_completion, unanswered
from caiflow.engine.llm.sampler import draw, penalised
from caiflow.engine.llm.stops import Stops

_PADDING, _SLACK = 1.15, 64
"""A prefill group may hold this many times the tokens its rows really have, and so many more."""

_ENDLESS, _BLOCK = 1 << 40, 64
"""Blocks of tokens that the gate takes there to be, and the tokens of one: what is kept here has a bound of its own."""


@dataclass(slots=True, eq=False)
class _Row:
    """One request under way: `ids` is the prompt, `begun` how many of them are read already, `out` the answer so far.

    One of `ends` ends it.
    """

    number: int
    request: Request
    ids: list[int]
    choices: dict[str, int] = field(default_factory=dict)
    scored: Rendered | None = None
    ends: frozenset[int] = frozenset()
    out: list[int] = field(default_factory=list)
    seen: torch.Tensor | None = None
    answer: Answer | None = None
    begun: int = 0
    kept: Kept | None = None


class TransformersEngine:
    """An Engine (see base.py) around a loaded causal LM and its renderer.

    `capacity` is how many rows decode together; `prefill_tokens` bounds the tokens of one prefill, padding included;
    `context` is the longest prompt and answer together, in tokens.
    """

    waiting = ""  # for nobody

    def __init__(self, model: Any, renderer: Renderer, *, capacity: int, prefill_tokens: int, context: int) -> None:
        self.capacity = capacity
        self.pulse = Pulse()
        self.gate = Gate(capacity, _ENDLESS, _BLOCK)
        self._model = model.eval()
        self._renderer = renderer
        self._prefill_tokens = prefill_tokens
        self._context = context
        self._stops = Stops(renderer)
        self._ends = end_ids(model, renderer.tokenizer)
        self._layers = plain_layers(model)
        self._outside: dict[int, _Row] = {}
        self._waiting: list[tuple[int, int, _Row]] = []
        self._reading: list[_Row] = []
        self._finished: list[tuple[int, Answer]] = []
        self._keeps_logits = takes(model, "logits_to_keep")
        self._prefixes = Prefixes(self._read_prefix)
        self._rows: dict[int, _Row] = {}
        self._kept = KeptRows()
        self._slots: Slots | None = None

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Render requests and have the gate let them in; one that can't be rendered or doesn't fit finishes with its error."""
        for number, request in requests:
            try:
                row = self._outside[number] = self._row(number, request)
            except EngineError as error:
                self._finished.append((number, error))
                continue
            if self.gate.arrive(number, request, row.ids):
                self._wait(self._outside.pop(number))

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Prefill what there is room for, then decode until something finishes or `timeout_s` has passed."""
        deadline = time.monotonic() + timeout_s
        try:
            with torch.inference_mode():
                self._admit()
                while self._rows and not self._finished:
                    begun = time.monotonic()
                    self._decode()
                    self.gate.stepped(time.monotonic() - begun)
                    if time.monotonic() >= deadline or self.gate.awaits:
                        break
        except torch.OutOfMemoryError as error:
            self._shrink(error)
        finished, self._finished = self._finished, []
        return finished

    def cancel(self, number: int) -> None:
        """Have a call end with its next token."""
        for row in (*self._outside.values(), *self._rows.values(), *(row for *_, row in self._waiting)):
            if row.number == number:
                row.request = row.request._replace(sampling=row.request.sampling._replace(max_tokens=1))

    def close(self) -> None:
        """Free the model's memory."""
        self._model, self._slots, self._rows = None, None, {}
        self._waiting.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _row(self, number: int, request: Request) -> _Row:
        scored = self._renderer.scored(request) if request.score else None
        ids, ends = scored.ids if scored else self._renderer.ids(request), self._ends | self._renderer.ends(request)
        row = _Row(number, request, ids, scored=scored, ends=ends)
        if request.choices:
            row.choices = dict(self._renderer.choices(request))
        room = self._context - len(row.ids)
        if room < 1:
            raise EngineError(
                f"the prompt has {len(row.ids)} tokens but the context holds {self._context}, answer included",
                "shorten it, or use a model with a longer context",
                kind="overflow",
            )
        return row

    def _wait(self, row: _Row) -> None:
        heapq.heappush(self._waiting, (row.request.turn, row.number, row))

    def _admit(self) -> None:
        """Fill free places once an eighth of the batch is free, so that reading the newcomers' prompts costs little each."""
        for number in self.gate.admitted():
            self._wait(self._outside.pop(number))
        free = self.capacity - len(self._rows)
        if not self._waiting or (free < max(1, self.capacity // 8) and self._rows):
            return
        self._reading = [heapq.heappop(self._waiting)[-1] for _ in range(min(free, len(self._waiting)))]
        self._score([row for row in self._reading if row.scored])
        rows = [row for row in self._reading if not row.scored]
        if self._layers is None:
            self._admit_whole(rows)
            return
        new = [row for row in rows if not self._goes_on(row)]
        for row in rows:
            self._kept.drop(row.request.row)
        for group in _groups([row for row in rows if row.kept], self._prefill_tokens):
            self._prefill(group, resumed([(row.kept, row.begun) for row in group if row.kept]))
        for together in self._prefixes.split([row.ids for row in new]):
            for index in together.rows:
                new[index].begun = together.shared
            for group in _groups([new[index] for index in together.rows], self._prefill_tokens):
                self._prefill(group, together.repeated(len(group)))

    def _goes_on(self, row: _Row) -> bool:
        """Return whether a row begins with what is kept of its last call, and take that up."""
        kept = self._kept.find(row.request.row)
        if kept is None:
            return False
        begun = common(kept.ids, np.asarray(row.ids[:-1]))
        if begun < WORTH_SHARING + self._prefixes.spared(row.ids):
            return False
        row.kept, row.begun = kept, begun
        return True

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        """Begin all unanswered rows again, half as many at once; their seeds give them the same answers."""
        rows = {row.number: row for row in (*self._reading, *self._rows.values()) if row.answer is None}
        self._rows, self._slots, self._reading, self._kept = {}, None, [], KeptRows()
        self._prefixes = Prefixes(self._read_prefix)
        for row in rows.values():
            row.out, row.seen, row.begun, row.kept = [], None, 0, None
            if self.capacity == 1:
                said = (
                    f"the memory is too small for one request of {len(row.ids)} tokens: {error}; use a smaller model or dtype"
                )
                self._finish(row, EngineError(said, kind="memory"))
            else:
                self._wait(row)
        self.capacity = max(1, self.capacity // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _admit_whole(self, rows: Sequence[_Row]) -> None:
        """Answer rows group by group, for models without a plain key-value cache."""
        for group in _groups([row for row in rows if not row.choices], self._prefill_tokens):
            self._generate(group)
        for group in _groups([row for row in rows if row.choices], self._prefill_tokens):
            ids, mask = self._padded(group)
            self._choose(group, self._forward(ids, mask))

    def _score(self, rows: Sequence[_Row]) -> None:
        """Answer the rows whose prompts are to be scored."""
        budget = token_budget(self._model.config.get_text_config().vocab_size, self._prefill_tokens)
        for group in _groups(rows, budget):
            self.pulse.beat(len(group) * len(group[0].ids))
            found = token_logprobs(self._model, [row.ids for row in group])
            for row, values in zip(group, found, strict=True):
                assert row.scored is not None
                self._finish(row, scored_completion(row.scored, values))

    def _prefill(self, group: list[_Row], cache: DynamicCache) -> None:
        """Read the prompts of `group` beyond what `cache` has, answer its choices, give a slot to rows that go on."""
        before, begun = cache.get_seq_length(), [row.begun for row in group]
        ids, mask = self._padded(group)
        positions = torch.tensor(begun, device=mask.device)[:, None] + (mask.cumsum(dim=1) - 1).clamp(min=0)
        there = [[0] * (before - tokens) + [1] * tokens for tokens in begun]
        logits = self._forward(ids, torch.cat((mask.new_tensor(there), mask), dim=1), positions, cache)
        self._choose(group, logits)
        self._advance(group, logits)
        for row in group:
            row.kept = None
        going = [index for index, row in enumerate(group) if row.answer is None]
        if going:
            self._place(
                [group[index] for index in going], Read(cache, before, begun, [len(row.ids) for row in group]).of(going)
            )

    def _read_prefix(self, ids: Sequence[int]) -> tuple[DynamicCache, int]:
        """Return the cache of a beginning and its size in bytes."""
        cache = DynamicCache()
        given = torch.tensor([list(ids)], device=self._model.device)
        self._forward(given, torch.ones_like(given), torch.arange(len(ids), device=given.device)[None], cache)
        return cache, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    def _place(self, rows: list[_Row], read: Read) -> None:
        """Copy rows just read into free slots."""
        if self._slots is None:
            self._slots = Slots(len(read.cache.layers), self._model.device)
        free = [slot for slot in range(len(self._slots) + len(rows)) if slot not in self._rows][: len(rows)]
        self._slots.fill(free, read)
        self._rows.update(zip(free, rows, strict=True))

    def _padded(self, group: list[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is to be read of the prompts and its mask, left-padded, [B, T] int64 each."""
        width = max(len(row.ids) - row.begun for row in group)
        ids = [[0] * (width - len(row.ids) + row.begun) + row.ids[row.begun :] for row in group]
        mask = [[0] * (width - len(row.ids) + row.begun) + [1] * (len(row.ids) - row.begun) for row in group]
        return torch.tensor(ids, device=self._model.device), torch.tensor(mask, device=self._model.device)

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        """Return the scores after the last token of each row, [B, V] float32."""
        wanted: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_logits else {}
        if cache is not None:
            wanted |= {"past_key_values": cache, "position_ids": positions, "use_cache": True}
        self.pulse.beat(ids.numel())
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask, **wanted).logits
        return logits[:, -1].float()

    def _choose(self, group: list[_Row], logits: torch.Tensor) -> None:
        asked = [index for index, row in enumerate(group) if row.choices]
        if not asked:
            return
        logprobs = torch.log_softmax(logits[asked], dim=-1)
        for values, index in zip(logprobs, asked, strict=True):
            row = group[index]
            found = dict(zip(row.choices, values[list(row.choices.values())].tolist(), strict=True))
            best = max(found, key=found.__getitem__)
            self._finish(row, Completion(best, "stop", len(row.ids), 1, found))

    def _decode(self) -> None:
        """Draw one more token for every row under way; finished rows leave their slots."""
        assert self._slots is not None
        slots = sorted(self._rows)
        if 2 * len(slots) <= len(self._slots) and not self._waiting:
            self._slots.keep(slots)
            self._rows = dict(enumerate(self._rows[slot] for slot in slots))
            slots = list(self._rows)
        rows = [self._rows[slot] for slot in slots]
        last = [0] * len(self._slots)
        for slot, row in zip(slots, rows, strict=True):
            last[slot] = row.out[-1]
        mask, positions = self._slots.extend(slots)
        ids = torch.tensor(last, device=self._model.device)[:, None]
        with reading(self._slots.spans(slots)):
            logits = self._forward(ids, mask, positions, self._slots.cache)
        self._advance(rows, logits if len(rows) == len(self._slots) else logits[slots])
        for slot, row in zip(slots, rows, strict=True):
            if row.answer is not None and row.request.more:
                taken = self._slots.taken(slot, row.ids + row.out)
                self._kept.keep(row.request.row, taken, self.capacity * self._slots.slot_bytes())
        self._rows = {slot: row for slot, row in self._rows.items() if row.answer is None}
        if not self._rows:
            self._slots = None

    def _advance(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Add a token to each unfinished row that isn't asked for choices, and finish those that have ended."""
        tokens = self._draw(rows, logits)
        for row, token in zip(rows, tokens, strict=True):
            if row.answer is not None:
                continue
            row.out.append(token)
            if row.seen is not None:
                row.seen[token] = True
            if self._ended(row, token):
                self._finish(row, self._completion(row))

    def _draw(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[int]:
        samplings = [row.request.sampling for row in rows]
        if any(sampling.repetition_penalty != 1 for sampling in samplings):
            seen = torch.stack([self._seen(row, logits) for row in rows])
            logits = penalised(logits, seen, [sampling.repetition_penalty for sampling in samplings])
        tokens: list[int] = draw(logits, samplings, [row.request.seed for row in rows], [len(row.out) for row in rows]).tolist()
        return tokens

    def _seen(self, row: _Row, logits: torch.Tensor) -> torch.Tensor:
        """Return which tokens the row has, [V] bool; nothing where it has no penalty."""
        if row.seen is None:
            row.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            if row.request.sampling.repetition_penalty != 1:
                row.seen[row.ids + row.out] = True
        return row.seen

    def _ended(self, row: _Row, token: int) -> bool:
        sampling = row.request.sampling
        if token in row.ends or len(row.out) >= min(sampling.max_tokens, self._context - len(row.ids)):
            return True
        if not sampling.stop or not self._stops.may_end(token, sampling.stop):
            return False
        return self._stops.cut(self._renderer.decode(row.out, row.ids), sampling.stop) >= 0

    def _completion(self, row: _Row) -> Answer:
        ended = row.out[-1] in row.ends
        text, thought = self._renderer.answer(row.request, row.out[:-1] if ended else row.out, row.ids, cut=not ended)
        if thought is not None and not text:
            return unanswered("the model's answer")
        at = self._stops.cut(text, row.request.sampling.stop)
        if at >= 0:
            return Completion(text[:at], "stop", len(row.ids), len(row.out), thought=thought or None)
        finish: Literal["stop", "length"] = "stop" if ended else "length"
        return Completion(text, finish, len(row.ids), len(row.out), thought=thought or None, ids=tuple(row.out))

    def _finish(self, row: _Row, answer: Answer) -> None:
        row.answer = answer
        self.gate.finish(row.number)
        self._finished.append((row.number, answer))

    def _generate(self, group: list[_Row]) -> None:
        """Answer a group with the library's `generate`, drawing tokens here: for models without a plain key-value cache."""
        ids, mask = self._padded(group)

        def process(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.pulse.beat(len(group))
            self._advance(group, scores.float())
            drawn = torch.tensor([row.out[-1] for row in group], device=scores.device)
            return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)

        def done(_: torch.Tensor, __: Any, **___: Any) -> torch.Tensor:
            return torch.tensor([row.answer is not None for row in group], device=ids.device)

        longest = max(min(row.request.sampling.max_tokens, self._context - len(row.ids)) for row in group)
        self.pulse.beat(ids.numel())
        self._model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, num_beams=1,
            logits_processor=[process], stopping_criteria=[done], pad_token_id=0,
        )  # fmt: skip


def _groups(rows: Iterable[_Row], budget: int) -> Iterable[list[_Row]]:
    """Yield rows with about as much to read, most first; padded, a group holds at most `budget` tokens to read (or one row)."""
    group: list[_Row] = []
    real = 0
    for row in sorted(rows, key=lambda row: len(row.ids) - row.begun, reverse=True):
        own = len(row.ids) - row.begun
        padded = (len(group) + 1) * (len((group or [row])[0].ids) - (group or [row])[0].begun)
        if group and (padded > budget or padded > _PADDING * (real + own) + _SLACK):
            yield group
            group, real = [], 0
        group.append(row)
        real += own
    if group:
        yield group
