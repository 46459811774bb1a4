"""Asking random rows of a finished run again, to see whether its models still answer as they did.

Owns which rows are asked and what is compared. New answers go nowhere: no ledger is opened, no artifact made.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError, EngineError
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.row_llm import asked_apart
from caiflow.engine.lookback.drift import Said, drift, drifted
from caiflow.engine.lookback.history import output_dir
from caiflow.engine.operator import RowDropped, RowOperator
from caiflow.engine.rows.folder import Rows
from caiflow.engine.store.journal import MADE, read_run

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.rows.columns import Row

_AT_ONCE = 64
_SHOWN = 3
TELLING = 20
"""With fewer rows that differ, the test of distributions says little."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one step's rows: asked again, the same bit for bit, left out or refused now; and the drift of the others.

    `p` is the probability of such a difference where the same model answered; None where nothing could be compared.
    """

    step: str
    model: str
    asked: int
    same: int
    gone: int
    failed: int
    p: float | None
    drifted: bool
    examples: Sequence[Mapping[str, Any]] = ()
    error: str = ""

    @property
    def verdict(self) -> str:
        """`same`, `alike` (in distribution), `few` (too few differ to tell), `drifted` or `failed`."""
        if self.drifted:
            return "drifted"
        compared = self.asked - self.gone - self.failed
        if not compared:
            return "failed"
        return "same" if self.same == compared else "few" if compared < TELLING else "alike"


@dataclass(frozen=True, slots=True)
class Pair:
    """The row that a step was given, and those that it made of it."""

    given: Row
    made: Sequence[Row]


def replay(resolver: Resolver, run_dir: Path, steps: Sequence[str], share: float, seed: int) -> list[Replayed]:
    """Ask a share (0..1) of the rows of each step again, one at least; steps that ask no model are passed over.

    Raises:
        CaiflowError: a step isn't there, or there is none to ask.
        EngineError: a model can't be loaded.
    """
    chosen = [_ready(resolver, run_dir, name) for name in steps or _askable(resolver, run_dir)]
    if not chosen:
        raise CaiflowError(f"{run_dir}: none of its steps asked a model about rows", "name another run")
    found = [_again(resolver, step, _drawn(run_dir, step, share, seed), seed) for step in chosen]
    alarms = iter(drifted([one.p for one in found if one.p is not None]))
    return [one if one.p is None else _told(one, next(alarms)) for one in found]


def _told(found: Replayed, alarm: bool) -> Replayed:
    from dataclasses import replace

    return replace(found, drifted=alarm)


def _askable(resolver: Resolver, run_dir: Path) -> list[str]:
    made = {name for name, step in read_run(run_dir)["steps"].items() if step["status"] in MADE}
    return [step.name for step in resolver.order if step.name in made and _asks(resolver, step.name)]


def _asks(resolver: Resolver, name: str) -> bool:
    return isinstance(resolver.spec.operators[name], RowOperator) and bool(
        getattr(resolver.spec.steps[name].params, "model", None)
    )


def _ready(resolver: Resolver, run_dir: Path, name: str) -> FlowStep:
    if not _asks(resolver, name):
        raise CaiflowError(f"{name}: it asks no model row by row", f"name one of {', '.join(_askable(resolver, run_dir))}")
    return resolver.ready_step(resolver.spec.steps[name])


def _drawn(run_dir: Path, step: FlowStep, share: float, seed: int) -> list[Pair]:
    """Return some of a step's rows by chance, in their order.

    Raises:
        CaiflowError: the run hasn't the rows any more.
    """
    record = read_run(run_dir)["steps"]
    folders = [output_dir(run_dir, name, record[name]) for name in (step.source, step.name) if name in record]
    if len(folders) < 2 or not all(folder.is_dir() for folder in folders):
        raise CaiflowError(f"{step.name}: its rows, or those that it was given, aren't there any more", "run the spec again")
    given = {row["uid"]: row for row in Rows(folders[0]).pylist()}
    made: dict[str, list[Row]] = {}
    for row in Rows(folders[1]).pylist():  # one of several that were made of a row has its place behind that row's uid
        of = row["uid"] if row["uid"] in given else row["uid"].rpartition("/")[0]
        made.setdefault(of, []).append(row)
    pairs = [Pair(row, made[uid]) for uid, row in given.items() if uid in made]
    if not pairs:
        raise CaiflowError(f"{step.name}: it made no rows that could be asked again", "name another step")
    wanted = min(len(pairs), max(1, round(share * len(pairs))))
    places = sorted(random.Random(f"{seed}:{step.name}").sample(range(len(pairs)), wanted))
    return [pairs[place] for place in places]


def _again(resolver: Resolver, step: FlowStep, pairs: Sequence[Pair], seed: int) -> Replayed:
    sources = {name: source for name in step.clients if (source := resolver.model(name)) is not None}
    answers = asyncio.run(_asked(step, sources, pairs))
    both = [(pair, answer) for pair, answer in zip(pairs, answers, strict=True) if isinstance(answer, list)]
    columns = list(step.operator.writes())
    kept = [_said(columns, pair.made) for pair, _ in both]
    new = [_said(columns, answer) for _, answer in both]
    differ = [(pair, answer) for (pair, answer), a, b in zip(both, kept, new, strict=True) if a != b]
    error = next((str(answer) for answer in answers if isinstance(answer, Exception)), "")
    return Replayed(
        step.name, step.model or "", len(pairs), len(both) - len(differ), answers.count(None),
        sum(isinstance(answer, Exception) for answer in answers), drift(kept, new, seed) if both else None, False,
        [_example(columns, pair, answer) for pair, answer in differ[:_SHOWN]], error,
    )  # fmt: skip


async def _asked(
    step: FlowStep, sources: Mapping[str, ModelSource], pairs: Sequence[Pair]
) -> list[list[Row] | Exception | None]:
    """Return the rows that the step makes of each row now: None where it leaves it out, the error where no answer came."""
    from caiflow.engine.llm.client import EngineClient
    from caiflow.engine.llm.host import EngineHost, LocalLink
    from caiflow.engine.llm.load import load_engine

    room = asyncio.Semaphore(_AT_ONCE)

    async def once(pair: Pair, clients: Mapping[str, EngineClient]) -> list[Row] | Exception | None:
        async with room:
            try:
                row = await step.operator.row(step.view(pair.given), asked_apart(step, clients, pair.given["uid"]))
            except RowDropped:
                return None
            except (EngineError, ValueError, KeyError) as error:
                return error
        return row if isinstance(row, list) else [row]

    async with AsyncExitStack() as stack:
        clients = {}
        for name, source in sources.items():
            host = stack.enter_context(closing(EngineHost(partial(load_engine, source))))
            clients[name] = await stack.enter_async_context(EngineClient([LocalLink(host)]))
        return list(await asyncio.gather(*(once(pair, clients) for pair in pairs)))


def _said(columns: Sequence[str], rows: Sequence[Row]) -> Said:
    """Return what rows say in the columns that the step writes: texts, lists of texts, and the means of numbers (flags too)."""
    values = [[row.get(name) for row in rows] for name in columns]
    texts = [value if isinstance(value, str) else json.dumps(value, sort_keys=True)
             for column in values for value in column if _is_text(value)]  # fmt: skip
    numbers = [[float(value) for value in column if isinstance(value, int | float)] for column in values]
    return Said("\n".join(texts), tuple(sum(column) / len(column) if column else 0.0 for column in numbers))


def _is_text(value: Any) -> bool:
    return value is not None and not isinstance(value, int | float)


def _example(columns: Sequence[str], pair: Pair, answer: Sequence[Row]) -> dict[str, Any]:
    """Return the first of a row's answers that differ, or its first ones."""
    kept, new = next(((a, b) for a, b in zip(pair.made, answer, strict=False) if _said(columns, [a]) != _said(columns, [b])),
                     (pair.made[0], answer[0]))  # fmt: skip
    differ = [name for name in columns if kept.get(name) != new.get(name)]
    return {"uid": pair.given["uid"], "kept": {n: kept.get(n) for n in differ}, "new": {n: new.get(n) for n in differ}}


def as_shown(found: Sequence[Replayed]) -> Iterator[str]:
    """Yield a line for each step, in words."""
    for one in found:
        compared = one.asked - one.gone - one.failed
        words = {
            "same": "all answers the same, bit for bit",
            "alike": f"{one.same:,} the same, the others from the same distribution (p {one.p})",
            "few": f"{one.same:,} the same; {compared:,} rows are too few to tell whether the others drifted",
            "drifted": f"{one.same:,} the same, others from another distribution (p {one.p}): this isn't the same model",
            "failed": f"none could be asked: {one.error or 'all are left out now'}",
        }[one.verdict]
        less = [
            f"{number:,} {what}" for number, what in ((one.gone, "left out now"), (one.failed, "without an answer")) if number
        ]
        yield f"{one.step} ({one.model}): {one.asked:,} rows asked again: {words}{''.join(f'; {text}' for text in less)}"
