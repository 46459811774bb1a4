"""What a constitution is once it is read: principles, worked examples, and which row draws which principle.

Never reads a file: `constitution` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from caiflow.engine.errors import WrongValue, nearest, suggest
from caiflow.engine.llm.base import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stage = Literal["critique", "revision", "judge"]
STAGES: tuple[Stage, ...] = ("critique", "revision", "judge")
_MASK = (1 << 64) - 1


class FileModel(BaseModel):
    """A part of a constitution file: knows its keys and no others; spaces around texts don't count."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, defer_build=True)


class Principle(FileModel):
    """One rule. A text that is None means that the principle isn't drawn at that stage."""

    id: str = Field(min_length=1)
    """Its name, one word: rows and figures say by it what they drew."""
    critique: str | None = Field(default=None, min_length=1)
    """What asks for a critique of an answer; left out, the principle isn't drawn for critiques."""
    revision: str | None = Field(default=None, min_length=1)
    """What asks for a revision."""
    judge: str | None = Field(default=None, min_length=1)
    """What asks which of two answers is better."""
    guards: str = ""
    """What it is there to keep out, in a few words; no model sees it."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """How often it is drawn, relative to the others."""

    passage: str = ""
    """Where it was read from, as FILE:FIRST-LAST lines; no model sees it."""
    rank: int | None = Field(default=None, ge=1)
    """Its place in a ranking, 1 first, by which principles shown together are listed."""
    rule: str | None = Field(default=None, min_length=1)
    """A rule such as `be honest`, from which the texts that are left out are built."""

    @field_validator("id")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if len(value.split()) > 1:
            raise WrongValue("an id has no spaces", f"write `{'-'.join(value.split())}`")
        return value

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides what is made by it: all but where it comes from, and the rule, which is in the texts."""
        return {name: value for name, value in dict(self).items() if name not in ("passage", "rank", "rule")}

    def identity_for(self, stages: Collection[str]) -> Mapping[str, Any]:
        """Return the same of what is made by the texts for some stages alone."""
        return {name: value for name, value in self.identity.items() if name not in STAGES or name in stages}

    @property
    def critique_request(self) -> str:
        """The user turn that asks for a critique; raises ValueError where there is none."""
        return self.text("critique")

    @property
    def revision_request(self) -> str:
        """The user turn that asks for a revision; raises ValueError where there is none."""
        return self.text("revision")

    @property
    def asks_for(self) -> str:
        """What it asks for, in the words by which answers are revised, or else criticised or judged."""
        return self.revision or self.critique or self.judge or self.guards

    @property
    def stated(self) -> str:
        """What it says where it is shown as it is: its rule, or else what it asks for."""
        return self.rule or self.asks_for

    def text(self, stage: Stage) -> str:
        """Return this principle's text for `stage`.

        Raises:
            ValueError: it has none.
        """
        text: str | None = getattr(self, stage)
        if text is None:
            raise WrongValue(f"principle {self.id}: no `{stage}` text", "add one, or a `rule`")
        return text


class CritiqueExample(NamedTuple):
    """One worked critique and revision, shown before the real one."""

    prompt: tuple[Message, ...]
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


class JudgeExample(NamedTuple):
    """One worked judgement. An empty `principle` means that one is drawn; an empty `thought` that none is shown."""

    prompt: tuple[Message, ...]
    principle: str
    a: str
    b: str
    answer: Literal["A", "B"]
    thought: str = ""


@dataclass(frozen=True)
class Constitution:
    """Principles and few-shot examples, ready to draw from."""

    name: str
    principles: tuple[Principle, ...]
    few_shot_critique: tuple[CritiqueExample, ...] = ()
    few_shot_judge: tuple[JudgeExample, ...] = ()
    description: str = ""
    _pools: dict[Stage | None, _Pool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pools: dict[Stage | None, _Pool] = {stage: _Pool(self.having(stage)) for stage in STAGES}
        object.__setattr__(self, "_pools", {None: _Pool(self.principles), **pools})

    def __getitem__(self, principle_id: str) -> Principle:
        """Return the principle with this id; raises KeyError."""
        for principle in self.principles:
            if principle.id == principle_id:
                return principle
        raise KeyError(principle_id)

    def having(self, *stages: Stage) -> tuple[Principle, ...]:
        """Return the principles that have a text for each of `stages`, in the file's order."""
        return tuple(p for p in self.principles if all(getattr(p, stage) is not None for stage in stages))

    def draw(self, seed: int, uid: str, slot: str | int, k: int = 1, stage: Stage | None = None) -> tuple[Principle, ...]:
        """Return `k` different principles for one row, the likeliest first.

        Rendezvous hashing over the ids, by weight: editing a text moves no row, and adding or removing a principle moves only
        the rows that must move. `slot` (a round's number, say) makes draws independent. With `stage`, only the principles that
        have that text take part.

        Raises:
            ValueError: there are fewer than `k` principles.
        """
        pool = self._pools[stage]
        if not 0 < k <= len(pool.principles):
            known = f"{len(pool.principles)} principles{f' with a {stage} text' if stage else ''}"
            raise ValueError(f"constitution {self.name} has {known}, can't draw {k}")
        return pool.draw(_hash64(f"{seed}\0{uid}\0{slot}"), k)

    def draw_all(
        self, seed: int, asked: Sequence[tuple[str, Iterable[str | int]]], stage: Stage | None = None
    ) -> list[list[Principle]]:
        """Return the principle that `draw` gives for each of a uid's slots, many uids at once.

        Raises:
            ValueError: there is none.
        """
        pool = self._pools[stage]
        if not pool.principles or not pool.even:
            return [[self.draw(seed, uid, slot, stage=stage)[0] for slot in slots] for uid, slots in asked]
        named = [[f"{seed}\0{uid}\0{slot}".encode() for slot in slots] for uid, slots in asked]
        drawn = iter(pool.draw_each([blake2b(name, digest_size=8).digest() for names in named for name in names]))
        return [[*islice(drawn, len(names))] for names in named]


_MANY_SCORES = 32
"""From so many on numpy is faster: 64 take 13 us without it, 3 with it."""


class _Pool:
    """Principles with what a draw needs of them, computed once: a draw takes a few microseconds."""

    __slots__ = ("_salts", "even", "principles", "salts", "weights")

    def __init__(self, principles: Sequence[Principle]) -> None:
        self.principles = tuple(principles)
        self.salts = [_hash64(principle.id) | 1 for principle in principles]
        self.weights = [principle.weight for principle in principles]
        self.even = len(set(self.weights)) <= 1
        self._salts: NDArray[np.uint64] | None = None

    def draw(self, point: int, k: int) -> tuple[Principle, ...]:
        scores = [((point ^ salt) * salt) & _MASK for salt in self.salts]
        if self.even and k == 1:
            return (self.principles[scores.index(max(scores))],)
        ranks: list[float] = scores if self.even else list(map(_weighted, scores, self.weights))  # type: ignore[assignment]
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        return tuple(self.principles[index] for index in order[:k])

    def draw_each(self, points: Sequence[bytes]) -> list[Principle]:
        """Return the likeliest principle at each point, of 8 bytes, where weights are even."""
        if len(points) * len(self.salts) < _MANY_SCORES:
            return [self.draw(int.from_bytes(point, "little"), 1)[0] for point in points]
        import numpy as np

        if self._salts is None:
            self._salts = np.array(self.salts, np.uint64)
        scores = (np.frombuffer(b"".join(points), "<u8")[:, None] ^ self._salts) * self._salts
        return [self.principles[index] for index in scores.argmax(axis=1).tolist()]


def merge(parts: Iterable[Constitution]) -> Constitution:
    """Return one constitution with everything of `parts`, in order.

    Raises:
        ValueError: two parts have a principle of the same id.
    """
    parts = tuple(parts)
    principles = tuple(principle for part in parts for principle in part.principles)
    for name, times in Counter(principle.id for principle in principles).items():
        if times > 1:
            raise WrongValue(*same_id(name))
    return Constitution(
        name="+".join(dict.fromkeys(part.name for part in parts)),
        description=" ".join(part.description for part in parts if part.description),
        principles=principles,
        few_shot_critique=tuple(example for part in parts for example in part.few_shot_critique),
        few_shot_judge=tuple(example for part in parts for example in part.few_shot_judge),
    )


def usable(constitution: Constitution) -> Iterator[str]:
    """Yield what each stage can use: how many principles have a text for it, and which examples it is shown."""
    examples = dict.fromkeys(STAGES, constitution.few_shot_critique) | {"judge": constitution.few_shot_judge}
    for stage in STAGES:
        having = constitution.having(stage)
        shown = f"{len(having)} of {len(constitution.principles)} principles, {len(examples[stage])} few-shot examples"
        yield f"{stage}: {shown}" if having else f"{stage}: nothing, since no principle has a `{stage}` text or a `rule`"


def findings(constitution: Constitution) -> Iterator[str]:
    """Yield what a reader should know though nothing is broken: which principles lack a text, and missing examples."""
    for stage in STAGES:
        lacking = [p.id for p in constitution.principles if getattr(p, stage) is None]
        if 0 < len(lacking) < len(constitution.principles):
            yield f"no {stage} text: {', '.join(lacking[:8])}{', ...' if len(lacking) > 8 else ''}"
    if not constitution.few_shot_critique:
        yield "no few-shot examples for critique and revision"
    if not constitution.few_shot_judge:
        yield "no few-shot examples for judging"


def same_id(name: str) -> tuple[str, str]:
    """Return what is said of a second principle with that id, and what to do."""
    return f"two principles have the id {name!r}", "ids must differ, since the draw goes by them"


def known(name: str, principles: Mapping[str, Principle]) -> Principle:
    """Return the principle with that id. Raises ValueError with the nearest id where there is none."""
    if name in principles:
        return principles[name]
    near = nearest(name, principles)
    raise WrongValue(f"no principle {name!r}", f"did you mean {near!r}?" if near else suggest("", principles, "its principles"))


def _hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _weighted(score: int, weight: float) -> float:
    """Return a rank by which a principle wins in proportion to its weight (weighted rendezvous hashing)."""
    return -weight / math.log((score + 0.5) / 2.0**64) if score < _MASK - 4096 else math.inf
