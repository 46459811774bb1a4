"""Engines that load only for the first call that isn't in the ledger: a run whose answers are all kept needs none.

Owns the link that waits for that call, and the guess beforehand whether there will be one. Knows no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.llm.base import Answer, Link, ModelSource, OwnLink, Request
from caiflow.engine.llm.client import COLLECT_S
from caiflow.engine.store.ledger import ledger_name

if TYPE_CHECKING:
    from caiflow.engine.flow.outcomes import FlowStep

_LOOKED_AT = 64
"""How many rows tell whether a chain's answers are kept; where a later one isn't, the engine loads for that."""
_AT_ONCE = 256
"""How many calls an engine is taken to work on at once until it has loaded, where its settings don't say."""


class LinkLater:
    """A link that is opened for the first request."""

    def __init__(self, link: Link, source: ModelSource) -> None:
        self._link = link
        self._foreseen = int((source.options.get("engine_args") or {}).get("max_num_seqs") or _AT_ONCE)
        self._opening: asyncio.Future[None] | None = None
        self._there = False
        self.on_open: Callable[[], None] = _untold
        """Called once, when the engine has to load."""

    @property
    def capacity(self) -> int:
        """What the engine works on at once, as far as is known."""
        return self._link.capacity if self._there else self._foreseen

    @property
    def waiting(self) -> str:
        """Whom the engine has long been waiting for."""
        return self._link.waiting

    @property
    def moves(self) -> bool:
        """Whether the engine is elsewhere from now on."""
        return self._there and bool(getattr(self._link, "moves", False))

    @property
    def loading(self) -> bool:
        """Whether requests wait for the engine to load."""
        return self._opening is not None and not self._opening.done()

    async def open(self) -> None:
        """Do nothing yet."""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Send requests once the engine has loaded; rows that are over have nothing to end where it hasn't begun to."""
        if requests or self._opening:
            await asyncio.shield(self._begun())
            await self._link.submit(requests, over)

    @property
    def own(self) -> bool:
        """Whether nobody is paid for its calls."""
        return isinstance(self._link, OwnLink) and self._link.own

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Have it drop calls."""
        if isinstance(self._link, OwnLink):
            await self._link.cancel(numbers)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait a while for the engine, and then for answers."""
        if not self._there:
            await asyncio.wait({opening := self._begun()}, timeout=COLLECT_S)
            if not opening.done():
                return []
            opening.result()
        return await self._link.collect()

    async def revive(self) -> None:
        """Wait until the engine is up again."""
        await self._link.revive()
        self._there, self._opening = True, asyncio.get_running_loop().create_future()
        self._opening.set_result(None)

    def _begun(self) -> asyncio.Future[None]:
        if self._opening is None:
            self.on_open()
            self._opening = asyncio.ensure_future(self._open())
        return self._opening

    async def _open(self) -> None:
        await self._link.open()
        self._there = True


def _untold() -> None:
    """Tell nobody."""


def tell_openings(links: Mapping[str, Sequence[Link]], report: Callable[[dict[str, str]], None]) -> None:
    """Have it reported, by the model's name, when an engine has to load after all."""
    for name, found in links.items():
        told = {"event": "engine_wanted", "model": name}
        for link in found:
            if isinstance(link, LinkLater):
                link.on_open = lambda told=told: report(told)  # type: ignore[misc]


def awaited(links: Mapping[str, Sequence[Link]]) -> list[str]:
    """Return the models whose engines have to be there before the first row."""
    return [name for name, found in links.items() if not all(isinstance(link, LinkLater) for link in found)]


def loading(links: Mapping[str, Sequence[Link]]) -> bool:
    """Return whether an engine loads that was opened later."""
    return any(isinstance(link, LinkLater) and link.loading for found in links.values() for link in found)


def asked_before(ledger_dir: Path, op: str, source: ModelSource) -> bool:
    """Return whether an operator has answers of a model here: all that it asks again may be there."""
    return not source.served and _has_records(ledger_dir, ledger_name(op, source.identity))


def answered_before(steps: Sequence[FlowStep], source: Path, ledger_dir: Path) -> set[str]:
    """Return the models here whose answers to the first rows are all in the ledger."""
    from caiflow.engine.flow.counting import count_first
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.store.ledger import Ledger

    asking = [step for step in steps if step.model]
    if not all(_has_records(ledger_dir, step.namespace) for step in asking):
        return set()
    with ExitStack() as stack:
        ledgers = {name: stack.enter_context(Ledger(ledger_dir, name)) for name in {step.namespace for step in steps}}
        tallies = count_first(steps, Rows(source), ledgers.__getitem__, _LOOKED_AT)
    unkept = [step for step in asking if step.by_servers or tallies[step.name].cached < tallies[step.name].total]
    return {name for step in asking for name in step.clients} - {name for step in unkept for name in step.clients}


def _has_records(ledger_dir: Path, namespace: str) -> bool:
    return any((ledger_dir / namespace).glob("*.seg"))
