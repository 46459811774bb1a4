"""Whether the tokens that rows teach are those that the trained model sampled when it said the same.

Owns the comparison and what is told of it. What a model isn't known to have said is passed over: what people or
another model wrote, what was changed since, continues a prefill, or was cut at a stop sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.health import SHOWN_UIDS
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.sampled import sampled_ids, sampled_name

if TYPE_CHECKING:
    from caiflow.engine.llm.render import Renderer

KNOWN, PARTING, FIRST = "replies_sampled", "replies_parting", "first_parting"
"""The metrics: replies whose sampled ids are known, those of them that are learnt otherwise, and where the first one parts."""


@dataclass(slots=True)
class Sampled:
    """What a model is known to have sampled, and what became of it in the rows so far."""

    ledger: Ledger | None = None
    known: int = 0
    parting: int = 0
    uids: list[str] = field(default_factory=list)
    first: str = ""

    def see(self, uid: str, text: str, learnt: Sequence[int], renderer: Renderer) -> None:
        """Compare a reply's ids as they are learnt, its end of turn among them, with those that were sampled."""
        ids = sampled_ids(self.ledger, text) if self.ledger and text else None
        if ids is None:
            return
        self.known += 1
        if list(learnt[: len(ids)]) == ids:  # shorter where it was cut at `max_tokens`, which is told elsewhere
            return
        self.parting += 1
        self.first = self.first or f"row {uid}: {apart(renderer, ids, learnt)}"
        if len(self.uids) < SHOWN_UIDS:
            self.uids.append(uid)

    def metrics(self) -> dict[str, Any]:
        """Return the counts, where anything is known."""
        told = {KNOWN: self.known, PARTING: self.parting} if self.known else {}
        return {**told, FIRST: self.first} if self.first else told


@contextmanager
def sampled_by(model_identity: str, ledger_dir: Path | None) -> Iterator[Sampled]:
    """Yield what is known of a model's own answers; nothing where none is kept here."""
    name = sampled_name(model_identity)
    if ledger_dir is None or not (ledger_dir / name).is_dir():
        yield Sampled()
        return
    with Ledger(ledger_dir, name) as ledger:
        yield Sampled(ledger)


def apart(renderer: Renderer, sampled: Sequence[int], learnt: Sequence[int]) -> str:
    """Say where two rows of tokens part, and how each goes on."""
    pairs = enumerate(zip(sampled, learnt, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), min(len(sampled), len(learnt)))
    said = [str(renderer.tokenizer.decode(list(ids[place : place + 6]))) for ids in (sampled, learnt)]
    return f"token {place}, sampled {said[0]!r}, learnt {said[1]!r}"
