"""Which worked examples of a constitution a row is shown, and by what name a row remembers them.

Owns the choice and the names; the constitution owns the examples and `prompts` their wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from json import dumps
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import CritiqueExample, JudgeExample

E = TypeVar("E", "CritiqueExample", "JudgeExample")


def example_id(example: CritiqueExample | JudgeExample) -> str:
    """Return a short name that follows from the example's texts alone."""
    text = dumps(example._asdict(), sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=6).hexdigest()


class FewShot(Generic[E]):
    """A pool of examples by name, of which each row is shown `count`: the first ones, or some drawn by its uid."""

    def __init__(self, pool: Sequence[E], count: int, order: Literal["first", "drawn"] = "first") -> None:
        self.by_id: dict[str, E] = {example_id(e): e for e in pool}
        self.count = count
        self._first = list(self.by_id)[:count]
        self._drawn = order == "drawn"

    def ids(self, seed: int, uid: str) -> list[str]:
        """Return the names of the examples for one row; the same in every step and round with these settings."""
        if not self._drawn:
            return list(self._first)
        ranked = sorted(self.by_id, key=lambda name: blake2b(f"{seed}\0{uid}\0{name}".encode(), digest_size=8).digest())
        return ranked[: self.count]

    def named(self, ids: Sequence[str]) -> list[E]:
        """Return the examples with these names.

        Raises:
            ValueError: the constitution no longer has one of them.
        """
        for name in ids:
            if name not in self.by_id:
                raise ValueError(f"few_shot: the row was critiqued with example {name}, which the constitution doesn't have")
        return [self.by_id[name] for name in ids]
