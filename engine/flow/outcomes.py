"""A row step as a flow needs it, and what comes of it for a row: result, key, and what the ledger holds of it already.

The run and the plan's counts both ask here, so that they can't differ. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from caiflow.engine.errors import StepError
from caiflow.engine.flow.unread import doubtful_row
from caiflow.engine.identity import NoIdentityError, compact_all, started
from caiflow.engine.operator import RowOperator, RowParams
from caiflow.engine.rows.columns import Row
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.sampled import sampled_name

_AT_ONCE = 256  # rows, whose texts stay in the cache of a core while their keys are made


class Asked(NamedTuple):
    """A model that a step asks beside its own: by which name its client goes, and whether a server answers."""

    client: str
    identity: str
    served: bool


@dataclass(frozen=True, slots=True)
class FlowStep:
    """A row step as the flow needs it: `identity` decides its results, `source` is the step its rows come from."""

    name: str
    operator: RowOperator[Any]
    source: str
    identity: str
    namespace: str
    model: str | None = None
    model_identity: str = ""
    seed: int = 0
    params: RowParams | None = None
    served: bool = False
    """Whether a server answers, so that what an older version kept of its answers may be none."""
    others: Mapping[str, Asked] = field(default_factory=dict)
    """The models that it asks beside its own, by their names in the spec."""

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients of all models that it asks."""
        own = (self.model,) if self.model else ()
        return (*own, *(other.client for other in self.others.values()))

    @property
    def by_servers(self) -> bool:
        """Whether a server answers any of its calls."""
        return self.served or any(other.served for other in self.others.values())

    @property
    def max_failed(self) -> int:
        """How many rows may fail before the step does."""
        return self.params.max_failed if self.params else 0

    @property
    def sampled(self) -> str:
        """The namespace of the ids that its model samples; empty where it has none, or nobody tells them."""
        return sampled_name(self.model_identity) if self.model and not self.served else ""

    @property
    def ledgers(self) -> tuple[str, ...]:
        """The namespaces that it appends to."""
        return (self.namespace, self.sampled) if self.sampled else (self.namespace,)

    def view(self, row: Row) -> Row:
        """Return the part of a row that the operator sees: what it declares to read, so that no key can miss an input."""
        return self.views([row])[0]

    def views(self, rows: Sequence[Row]) -> list[Row]:
        """Return the same of many rows."""
        names = [*self.operator.reads()]
        return [{**{name: row.get(name) for name in names}, "uid": row["uid"]} for row in rows]

    def row_key(self, view: Row) -> bytes:
        """Return the ledger key of this step's result for a row.

        Raises:
            StepError: the row, or what the operator says of it, has a value that the next process may write otherwise.
        """
        return self.row_keys([view])[0]

    def row_keys(self, views: Sequence[Row]) -> list[bytes]:
        """Return the same of many rows."""
        if len(views) > _AT_ONCE:
            return [key for begin in range(0, len(views), _AT_ONCE) for key in self.row_keys(views[begin : begin + _AT_ONCE])]
        try:
            said = compact_all(views), compact_all(self.operator.row_identities(views))
        except NoIdentityError as error:
            if len(views) > 1:
                return [self.row_key(view) for view in views]  # the error names the row
            raise StepError(f"{self.name}: row {views[0]['uid']}: {error}") from None
        return started("row", self.identity).keys(*said)


class Outcome(NamedTuple):
    """The result of one step for one row: rows out, or the reason why there are none."""

    rows: tuple[Row, ...] = ()
    dropped: str = ""
    failed: str = ""
    may_pass: bool = False
    """Whether it failed for a reason that may pass, so that the ledger holds nothing and the next run asks again."""
    said: str = ""
    """The model's words for which the row was dropped."""
    cached: bool = False
    tokens: int = 0
    trace: str = ""
    """Where the operator's code raised; empty where an engine refused, or the operator said what is wrong with the row."""


def replay(step: FlowStep, row_key: bytes, ledger: Ledger) -> Outcome | None:
    """Return what the ledger holds for a row, or None where the row must run; the plan and the run both ask here."""
    return _outcome(ledger.get(row_key), step.operator.answers if step.by_servers else None)


def replay_many(step: FlowStep, views: Sequence[Row], ledger: Ledger, *, read: bool = True) -> list[Outcome | None]:
    """Return the same for many rows, given their views; numbers in outcomes that nobody will `read` may be others."""
    answers = step.operator.answers if step.by_servers else None
    return [_outcome(kept, answers) for kept in ledger.get_many(step.row_keys(views), exact=read or answers is not None)]


def _outcome(kept: Mapping[str, Any] | None, answers: Callable[[Row], Sequence[str]] | None) -> Outcome | None:
    """Return what a record says; `answers` gives the texts of a row that servers may have given."""
    if kept is None or (answers is not None and doubtful_row(kept, answers)):
        return None
    if "dropped" in kept:
        return Outcome(dropped=kept["dropped"], said=kept.get("said", ""), cached=True)
    if "failed" in kept:
        return Outcome(failed=kept["failed"], cached=True)
    return Outcome(rows=tuple(kept["out"]), cached=True, tokens=kept["tokens"])


def spread(row: Row, outcome: Outcome, outdated: Collection[str] = ()) -> list[Row]:
    """Return the whole rows that follow from a step's outcome for `row`, without what is outdated; several get own uids."""
    if not row.keys().isdisjoint(outdated):
        row = {name: value for name, value in row.items() if name not in outdated}
    if len(outcome.rows) == 1:
        return [{**row, **outcome.rows[0]}]
    return [{**row, **new, "uid": f"{row['uid']}/{i}"} for i, new in enumerate(outcome.rows)]
