"""Which calls an engine is given, so that a row's beginning stays in its cache from the row's first call to its last.

Owns the count of open rows: what of the cache they hold, how much they will, and how soon those come back that were just
answered. Calls of open rows go in at once; a new row waits until there are a slot and, for all its calls, room. A call that the
row's next begins otherwise than keeps nothing at hand: the row isn't open after it. Decides no answer. Knows nothing of an
engine but its slots and blocks.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from caiflow.engine.llm.base import Request
from caiflow.engine.llm.order.blocks import block_hashes

_SOON_S, _SOON_STEPS, _SOON_TIMES = 0.2, 8, 16
"""A row that stays away for longer, for more of the engine's steps and for so many times what rows take as a rule is at
something else: nobody waits for it, and its place is another's. On a busy machine steps and rows take longer alike."""
_EMPTY_S = 1.0
"""The same where every row is away: none of them can have stepped, and the machine is theirs."""
_LONGEST_WAIT_S = 0.02
_LEARN = 0.1
"""Weight of the newest of what is measured."""
_DONE = 0.95
"""How far a call is at most that is inside, by the steps that calls take on the average."""
_REMEMBERED = 64
"""For how many rows a slot it is remembered what they asked last."""
_WORTH = 4
"""How many times as long a step may wait where rows are kept out for want of room: what one that is away has read is the first
to go. With it about the same is computed whether rows take a hundredth of a step to come back or a fifth."""


_Waiting = tuple[int, int, str, int, list[int]]
"""A row's age, its call's number, its name, how many calls are to follow, and the prompt's blocks."""


@dataclass(slots=True)
class _Row:
    """A row that is open: its latest prompt's blocks, its calls inside and to come, when and at what step it left.

    `entered` is the step at which its latest call went in; where that is `brief`, the row closes with it.
    """

    blocks: list[int] = field(default_factory=list)
    inside: int = 0
    more: int = 0
    entered: int = 0
    brief: bool = False
    since: float | None = None
    left: int = 0


class Gate:
    """Lets calls in; `slots` run at once, and the cache has `blocks` of `block_tokens` tokens."""

    def __init__(self, slots: int, blocks: int, block_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._blocks, self._block_tokens, self._clock = slots, blocks, block_tokens, clock
        self._ahead = max(1, slots // 8)
        self._rows: dict[str, _Row] = {}
        self._away: dict[str, _Row] = {}
        self._outside: list[_Waiting] = []
        self._brief: list[_Waiting] = []
        self._latest: dict[str, tuple[int, list[int]]] = {}
        self._read_on: dict[int, _Mean] = {}
        self._held: Counter[int] = Counter()
        self._row_of: dict[int, str] = {}
        self._growth = _Mean(2.0)
        self._back_s = _Mean(0.002)
        self._comes_back = _Mean(1.0)
        self._step_s = _Mean()
        self._call_steps = _Mean(1.0)
        self._came: float | None = None
        self._steps = 0
        self._scarce = False

    @property
    def awaits(self) -> bool:
        """Whether a row is away that is to ask on: its call is to be taken in before another step."""
        return bool(self._away)

    def sent(self, at: float) -> None:
        """Note when the calls that arrive next were sent: a step may have kept them waiting since."""
        self._came = at

    def arrive(self, number: int, request: Request, ids: Sequence[int]) -> bool:
        """Take a call; return whether it goes in at once, being an open row's."""
        name = request.row or f"#{number}"
        blocks = block_hashes(ids, self._block_tokens)
        self._learn(name, request.more, blocks)
        row = self._rows.get(name)
        if row is None:
            waiting = self._brief if self._is_brief(request.more) else self._outside
            heapq.heappush(waiting, (request.turn, number, name, request.more, blocks))
            return False
        self._enter(number, name, row, request.more, blocks)
        return True

    def admitted(self) -> list[int]:
        """Return the new rows' calls that may go in now, the oldest row's first; brief ones, where others find no room."""
        found = []
        while queue := next((one for one in sorted(filter(None, (self._outside, self._brief))) if self._has_room(one)), None):
            _, number, name, more, blocks = heapq.heappop(queue)
            self._enter(number, name, self._rows.setdefault(name, _Row()), more, blocks, brief=queue is self._brief)
            found.append(number)
        return found

    def finish(self, number: int) -> None:
        """Note that a call was answered."""
        name = self._row_of.pop(number)
        row = self._rows[name]
        row.inside -= 1
        if not row.inside:
            self._call_steps.add(self._steps - row.entered)
            if row.more and not row.brief:
                row.since, row.left = self._clock(), self._steps
                self._away[name] = row
            else:
                self._close(name)

    def over(self, rows: Iterable[str]) -> None:
        """Note that rows which were to ask on won't."""
        for name in rows:
            self._latest.pop(name, None)
            if name in self._away:
                self._close(name)
            elif name in self._rows:
                self._rows[name].more = 0

    def stepped(self, seconds: float) -> None:
        """Note how long a step took."""
        self._step_s.add(seconds)
        self._steps += 1

    def wait_s(self) -> float:
        """Return how long the next step had better wait for rows that are about to ask on; 0 where it had better not.

        To be asked when all calls that came are taken in: here rows that stay away are forgotten.
        """
        self._forget_absent()
        if not self._awaited():
            return 0.0
        worth = _WORTH if self._scarce or any(row.brief for row in self._rows.values()) else 1
        gain = worth * len(self._away) * self._comes_back.value * self._step_s.value
        if self._row_of and gain < len(self._row_of) * self._back_s.value:
            return 0.0
        latest = max(row.since or 0.0 for row in self._away.values())
        longest = max(_LONGEST_WAIT_S, self._step_s.value)
        patience = min(longest, _SOON_TIMES * self._back_s.value) if self._row_of else self._patience_s()
        return max(0.0, latest + patience - self._clock())

    def _learn(self, name: str, more: int, blocks: list[int]) -> None:
        """Learn from a row's next call how much of the one before it begins with, by how many were to follow that one."""
        before, read = self._latest.pop(name, (0, []))
        if read:
            alike = next((place for place, (old, new) in enumerate(zip(read, blocks, strict=False)) if old != new), len(read))
            was = self._is_brief(before)
            self._read_on.setdefault(before, _Mean()).add(alike / len(read))
            if self._is_brief(before) != was:
                waiting = [*self._outside, *self._brief]
                self._outside = sorted(one for one in waiting if not self._is_brief(one[3]))
                self._brief = sorted(one for one in waiting if self._is_brief(one[3]))
        if more:
            self._latest[name] = more, blocks
            if len(self._latest) > _REMEMBERED * self._slots:
                del self._latest[next(iter(self._latest))]

    def _is_brief(self, more: int) -> bool:
        """Return whether of a call that so many are to follow the next reads little again."""
        return more in self._read_on and self._read_on[more].value < 0.5

    def _enter(self, number: int, name: str, row: _Row, more: int, blocks: list[int], *, brief: bool = False) -> None:
        if self._away.pop(name, None) and row.since is not None:
            self._back_s.add(max(0.0, (self._clock() if self._came is None else self._came) - row.since))
            self._comes_back.add(1.0)
        before = len(row.blocks) - self._shared(row.blocks)
        self._held.update(blocks)
        self._release(row)
        if row.blocks:
            self._growth.add(max(0, len(blocks) - self._shared(blocks) - before))
        row.blocks, row.more, row.since, row.entered, row.brief = blocks, more, None, self._steps, brief
        row.inside += 1
        self._row_of[number] = name

    def _close(self, name: str) -> None:
        self._away.pop(name, None)
        self._release(self._rows.pop(name))

    def _release(self, row: _Row) -> None:
        for block in row.blocks:
            if self._held[block] == 1:
                del self._held[block]
            else:
                self._held[block] -= 1

    def _patience_s(self) -> float:
        """Return for how long a row may stay away."""
        return max(_SOON_S if self._row_of else _EMPTY_S, _SOON_TIMES * self._back_s.value)

    def _forget_absent(self) -> None:
        now, patience = self._clock(), self._patience_s()
        for name, row in list(self._away.items()):
            if now - (row.since or now) <= patience or (self._row_of and self._steps - row.left < _SOON_STEPS):
                break
            self._comes_back.add(0.0)
            self._close(name)

    def _has_room(self, queue: Sequence[_Waiting]) -> bool:
        if not self._rows:
            return True
        inside, awaited = len(self._row_of), self._awaited()
        if not inside and not awaited:
            return True
        if inside >= self._slots or inside + awaited >= self._slots + self._ahead:
            return False
        *_, more, blocks = queue[0]
        if not more and not any(row.more for row in self._rows.values()):
            return True
        brief = queue is self._brief
        scarce = self._peak(sum(block not in self._held for block in blocks), 1 if brief else more + 1) > self._blocks
        if not brief:
            self._scarce = scarce
        return not scarce

    def _peak(self, new: int, calls: int) -> float:
        """Return the most blocks that open rows and a new one will hold while that is open.

        All grow alike, and each goes with its last call: the sooner, the further its latest is.
        """
        rows, shared, awaited = [(float(calls), 0.0, new)], len(self._held), self._awaited()
        for row in self._rows.values():
            own = len(row.blocks) - self._shared(row.blocks)
            shared -= own
            if row.inside or awaited:
                done = min(_DONE, (self._steps - row.entered) / max(1.0, self._call_steps.value)) if row.inside else 0.0
                rows.append(((0 if row.brief else row.more) + (row.inside > 0) - done, done, own))
        held, grown, peak, growth = 0.0, 0.0, 0.0, self._growth.value
        asked = max(0.0, growth - self._call_steps.value / self._block_tokens)  # what comes with a row's next call, not before
        for count, (left, done, own) in enumerate(sorted(rows, reverse=True), 1):
            held, grown = held + own + 1 - asked / 2, grown + done
            if left <= calls:
                peak = max(peak, shared + held + growth * (grown + count * left))
        return peak

    def _awaited(self) -> int:
        """Return how many rows are about to ask on: none, where those that were away have seldom come back soon."""
        return len(self._away) if self._comes_back.value >= 0.5 else 0

    def _shared(self, blocks: list[int]) -> int:
        """Return how many of a row's blocks others hold too: they are the first ones."""
        return bisect_left(blocks, True, key=lambda block: self._held[block] < 2)


class _Mean:
    """What is measured again and again, the newest counting most; `first` until then."""

    def __init__(self, first: float = 0.0) -> None:
        self.value = first
        self._seen = 0

    def add(self, value: float) -> None:
        """Take one more."""
        self._seen += 1
        self.value += max(_LEARN, 1 / self._seen) * (value - self.value)
