"""A model of what vLLM's scheduler does with calls and its cache: blocks, which leave by age, and preemption by priority.

Owns what is computed, and in how many steps, where rows make their calls one behind another: with a gate before it, or as calls
come. It counts what vLLM 0.32 does, exactly: its own scheduler, fed the same calls, took the same steps, preempted as often.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from caiflow.engine.llm.base import Request
from caiflow.engine.llm.order.blocks import Prefixes, block_hashes
from caiflow.engine.llm.order.gate import Gate


class Call(NamedTuple):
    """The ids of a prompt and of its answer."""

    prompt: Sequence[int]
    answer: Sequence[int]


class Counts(NamedTuple):
    """Tokens of prompts that were computed, the least that could be, and steps."""

    computed: int
    ideal: int
    steps: int
    preempted: int


class Clock:
    """A clock that moves with the steps."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@dataclass(eq=False)
class _Running:
    row: int
    number: int
    hashes: Sequence[int]
    prompt: int
    longest: int
    drawn: int = 0
    computed: int = 0
    named: int = 0
    blocks: list[int] = field(default_factory=list)

    def __lt__(self, other: _Running) -> bool:
        return (self.row, self.number) < (other.row, other.number)


class _Blocks:
    """The cache's blocks: those free leave in the order in which they became so."""

    def __init__(self, count: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self.users = [0] * count
        self._hash_of: dict[int, int] = {}
        self._found: defaultdict[int, dict[int, None]] = defaultdict(dict)

    def known(self, hashes: Sequence[int]) -> list[int]:
        found = []
        for one in hashes:
            if not self._found[one]:
                break
            found.append(next(iter(self._found[one])))
        return found

    def take(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if not self.users[block]:
                del self.free[block]
            self.users[block] += 1

    def new(self, count: int) -> list[int]:
        blocks = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self.users[block] = 1
            if (before := self._hash_of.pop(block, None)) is not None:
                del self._found[before][block]
        return blocks

    def name(self, block: int, known_as: int) -> None:
        if block not in self._hash_of:
            self._hash_of[block] = known_as
            self._found[known_as][block] = None

    def give_back(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free[block] = None


class Scheduler:
    """Runs calls of at most `slots` rows at once in `blocks` of `size` tokens, older rows first; `budget` tokens a step."""

    def __init__(self, slots: int, blocks: int, size: int, budget: int = 4096) -> None:
        self._slots, self._size, self._budget = slots, size, budget
        self._blocks = _Blocks(blocks)
        self._running: list[_Running] = []
        self._waiting: list[_Running] = []
        self.tokens = self.steps = self.preempted = 0

    def add(self, call: _Running) -> None:
        heapq.heappush(self._waiting, call)

    def step(self) -> list[_Running]:
        """Compute a step; return the calls that it finished."""
        planned: dict[_Running, int] = {}
        if self._go_on(planned):
            self._begin(planned)
        self.tokens += sum(planned.values())
        self.steps += bool(planned)
        for call in planned:
            call.drawn += call.computed == call.prompt + call.drawn
        finished = [call for call in planned if call.drawn == call.longest]
        for call in finished:
            self._running.remove(call)
            self._blocks.give_back(call.blocks)
        return finished

    def _go_on(self, planned: dict[_Running, int]) -> bool:
        """Plan what runs; return whether nobody had to make room."""
        place, fits = 0, True
        while place < len(self._running) and sum(planned.values()) < self._budget:
            call = self._running[place]
            tokens = min(call.prompt + call.drawn - call.computed, self._budget - sum(planned.values()))
            while (more := -(-(call.computed + tokens) // self._size) - len(call.blocks)) > len(self._blocks.free):
                fits, last = False, max(self._running)
                place -= self._running.index(last) < place
                self._preempt(last, planned)
                if last is call:
                    return False
            call.blocks += self._blocks.new(more)
            self._plan(call, tokens, planned)
            place += 1
        return fits

    def _preempt(self, call: _Running, planned: dict[_Running, int]) -> None:
        planned.pop(call, None)
        self._running.remove(call)
        self._blocks.give_back(call.blocks)
        call.blocks, call.computed, call.named = [], 0, 0
        self.preempted += 1
        self.add(call)

    def _begin(self, planned: dict[_Running, int]) -> None:
        while self._waiting and len(self._running) < self._slots and (left := self._budget - sum(planned.values())):
            call, size = self._waiting[0], self._size
            total = call.prompt + call.drawn
            known = self._blocks.known(call.hashes[: (total - 1) // size])
            idle = sum(not self._blocks.users[block] for block in known)
            if -(-total // size) - len(known) + idle > len(self._blocks.free):
                break
            heapq.heappop(self._waiting)
            self._blocks.take(known)
            tokens = min(total - len(known) * size, left)
            call.blocks = known + self._blocks.new(-(-(len(known) * size + tokens) // size) - len(known))
            call.computed, call.named = len(known) * size, len(known)
            self._running.append(call)
            self._plan(call, tokens, planned)

    def _plan(self, call: _Running, tokens: int, planned: dict[_Running, int]) -> None:
        planned[call] = tokens
        call.computed += tokens
        for place in range(call.named, call.computed // self._size):
            self._blocks.name(call.blocks[place], call.hashes[place])
        call.named = call.computed // self._size


class _Passage:
    """Rows that make their calls: each its next when its last is answered, `most` rows at once."""

    def __init__(
        self, rows: Mapping[int, Sequence[Call]], scheduler: Scheduler, gate: Gate | None, size: int, most: int
    ) -> None:
        self.rows, self.scheduler, self.gate, self._size, self._open = rows, scheduler, gate, size, most
        self._to_come = sorted(rows, reverse=True)
        self._made = dict.fromkeys(rows, 0)
        self._outside: dict[int, _Running] = {}
        self.coming: list[int] = []
        self.asked: list[Call] = []
        self._begin()

    def _begin(self) -> None:
        while self._to_come and self._open:
            self._open -= 1
            self.coming.append(self._to_come.pop())

    def take_in(self) -> None:
        """Hand in the calls that came."""
        for row in self.coming:
            call = self.rows[row][self._made[row]]
            self._made[row] += 1
            self.asked.append(call)
            number, hashes = len(self.asked), block_hashes([*call.prompt, *call.answer], self._size)
            self._outside[number] = _Running(row, number, hashes, len(call.prompt), len(call.answer))
            request = Request("", turn=row, more=len(self.rows[row]) - self._made[row], row=f"r{row}")
            if self.gate is None or self.gate.arrive(number, request, call.prompt):
                self.let_in([number])
        self.coming = []

    def let_in(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.scheduler.add(self._outside.pop(number))

    def answered(self, calls: Sequence[_Running]) -> int:
        """Have the rows of answered calls ask on; return how many tokens of answers were computed."""
        for call in calls:
            if self.gate is not None:
                self.gate.finish(call.number)
            if self._made[call.row] < len(self.rows[call.row]):
                self.coming.append(call.row)
            else:
                self._open += 1
                self._begin()
        return sum(call.longest - 1 for call in calls)


def count(
    rows: Mapping[int, Sequence[Call]], *, slots: int, blocks: int, size: int, gated: bool, back_steps: float = 0.05
) -> Counts:
    """Return what rows make vLLM compute, behind the gate or as they come; a row takes `back_steps` of a step to ask on."""
    clock = Clock()
    gate = Gate(slots, blocks, size, clock) if gated else None
    scheduler = Scheduler(slots, blocks, size)
    passage = _Passage(rows, scheduler, gate, size, 2 * slots)
    passage.take_in()
    decoded, total, answered, step_s = 0, sum(map(len, rows.values())), 0, 0.02
    while answered < total:
        if gate is not None:
            if passage.coming and (wait_s := gate.wait_s()) > 0:
                clock.now += min(wait_s, back_steps * step_s)
                if wait_s >= back_steps * step_s:
                    passage.take_in()
            passage.let_in(gate.admitted())
        finished = scheduler.step()
        if gate is not None:
            clock.now += step_s
            gate.stepped(step_s)
        passage.take_in()
        answered += len(finished)
        decoded += passage.answered(finished)
    prefixes, ideal = Prefixes(size), 0
    for call in passage.asked:
        ideal += prefixes.computed(call.prompt)
        prefixes.learn([*call.prompt, *call.answer])
    return Counts(scheduler.tokens - decoded, ideal, scheduler.steps, scheduler.preempted)
