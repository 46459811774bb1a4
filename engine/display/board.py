"""The state of a run folded from its events, and the few words that describe each step. Pure; draws nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from caiflow.engine.display.terminal import escaped
from caiflow.engine.store.journal import MADE

FORETOLD_FROM = 0.05
"""From this part of its steps on, counted from the first that it told of, a training's time left is told."""


@dataclass(slots=True)
class StepState:
    """One step as the events told it so far; rates are per second of wall time."""

    name: str
    op: str = ""
    kind: str = "rows"
    """What it makes; for a model, `done` and `total` count optimizer steps."""
    inputs: tuple[str, ...] = ()
    status: str = "waiting"
    done: int = 0
    total: int | None = None
    cached: int = 0
    dropped: int = 0
    failed: int = 0
    tokens_per_second: float | None = None
    loss: float | None = None
    started: float | None = None
    told: float = 0.0
    """When it last told how far it is."""
    busy_s: float | None = None
    """Its share of the time of its chain, as it was then."""
    left_s: float | None = None
    """The time until its rows are through, as it was then."""
    first: tuple[float, int] | None = None
    """When a training first told how far it is, and how far it was: what came before was no training."""
    seconds: float | None = None
    rows_out: int | None = None
    doing: str = ""
    """What it does before it tells how far it is."""
    waiting: str = ""
    """Whom it has long been waiting for, as it last told."""
    note: str = ""
    error: str = ""
    notes: tuple[Mapping[str, Any], ...] = ()
    """What is wrong with what it made, once it is done."""

    @property
    def ended(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status not in ("waiting", "running")

    def look(self) -> str:
        """Return the status, or `noted` for a step that is done and has notes."""
        return "noted" if self.notes and self.status in MADE else self.status

    def elapsed_s(self, now: float) -> float | None:
        """Return the seconds this step took, or has taken up to `now`: of a chain's time, its share."""
        if self.seconds is None and self.busy_s is not None:
            return self.busy_s
        return self.seconds if self.started is None or self.seconds is not None else max(0.0, now - self.started)

    def eta_s(self, now: float) -> float | None:
        """Return the seconds left, as a chain of rows told them or at a training's rate so far; None where not yet known."""
        left = self.left_s if self.first is None else self._training_left_s(*self.first)
        return None if left is None or self.status != "running" else max(0.0, left - (now - self.told))

    def _training_left_s(self, begun: float, before: int) -> float | None:
        worked, total = self.done - before, self.total or 0
        if worked <= 0 or worked < FORETOLD_FROM * (total - before):
            return None
        return (total - self.done) * (self.told - begun) / worked


class Latest(NamedTuple):
    """The latest row of a step: its texts by column, that which was made last."""

    step: str
    texts: Mapping[str, str]
    made: str
    changed: str = ""
    """The column of which the one that was made is another version."""


@dataclass(slots=True)
class Board:
    """A run as the events told it so far."""

    name: str = ""
    started: float = 0.0
    status: str = "running"
    steps: dict[str, StepState] = field(default_factory=dict)
    samples: dict[str, Latest] = field(default_factory=dict)
    """The latest row of each step, the newest last."""
    entering: tuple[str, float] | None = None
    """What is waited for before any step begins, and since when."""
    loading: dict[str, float] = field(default_factory=dict)
    """Models whose engines are being loaded, and since when."""

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event; unknown kinds and steps are ignored."""
        kind, step = event["event"], self.steps.get(event.get("step", ""))
        if kind == "run_started":
            self.name, self.started = event.get("name", ""), event["t"]
            self.steps = {step["name"]: _announced(step) for step in event["steps"]}
        elif kind == "run_done":
            self.status = event["status"]
        elif kind == "entering":
            self.entering = event["text"], event["t"]
        elif kind == "engine_starting":
            self.loading[event["model"]] = event["t"]
        elif kind == "engine_ready":
            self.loading.pop(event["model"], None)
        elif kind == "sample":
            texts = {clean(column): clean(text) for column, text in event["texts"].items()}
            self.samples.pop(event["step"], None)
            told = Latest(clean(event["step"]), texts, clean(event["made"]), clean(event.get("changed", "")))
            self.samples[event["step"]] = told
        elif step is not None:
            _advance(step, event)
            self.entering = None
            if step.status == "failed":
                self.loading.clear()  # an engine that can't be loaded is told by the step that waited for it

    def under_way(self, now: float) -> Iterator[str]:
        """Yield what happens now, in words, that which holds up the rest first, with its time."""
        if self.entering is not None:
            yield f"{self.entering[0]} ({duration(max(0.0, now - self.entering[1]))})"
        yield from (f"loading {model} ({duration(max(0.0, now - since))})" for model, since in self.loading.items())
        running = [step for step in self.steps.values() if step.status == "running"]
        yield from (f"{step.name} waits for {step.waiting}" for step in running if step.waiting)
        doing: dict[str, list[str]] = {}
        for step in running:
            if step.doing and not step.waiting:
                doing.setdefault(step.doing, []).append(step.name)
        yield from (f"{', '.join(names)}: {said}" for said, names in doing.items())
        if at_work := [step.name for step in running if not step.doing and not step.waiting]:
            yield f"at work: {', '.join(at_work)}"

    def share(self) -> float:
        """Return how much of the run is done: a step at work counts by its rows."""
        parts = (1.0 if step.ended else step.done / step.total if step.total else 0.0 for step in self.steps.values())
        return sum(parts) / len(self.steps) if self.steps else 0.0

    def left_s(self, now: float) -> tuple[float, bool] | None:
        """Return the seconds until the steps at work are through, and whether none comes behind them; None while unknown."""
        known = [left for step in self.steps.values() if (left := step.eta_s(now))]
        return (max(known), all(step.status != "waiting" for step in self.steps.values())) if known else None


def _announced(step: Mapping[str, Any]) -> StepState:
    return StepState(step["name"], step["op"], step.get("kind", "rows"), tuple(step.get("inputs", ())))


_TOLD = (
    "done", "total", "cached", "dropped", "failed", "tokens_per_second", "loss", "busy_s", "seconds", "rows_out",
    "doing", "note", "error",
)  # fmt: skip
"""What a step keeps of its events until another one says otherwise."""


def _advance(step: StepState, event: Mapping[str, Any]) -> None:
    for name in _TOLD:
        if event.get(name) is not None:
            setattr(step, name, event[name])
    if event["event"] in ("step_started", "step_progress"):
        step.status = "running"
        step.started = step.started or event["t"]
    if event["event"] == "step_progress" and "done" in event:
        step.told, step.left_s, step.doing = event["t"], event.get("left_s"), ""
        step.waiting = event.get("waiting", "")
        if step.kind == "model":
            step.first = step.first or (event["t"], event["done"])
    elif event["event"] == "step_done":
        step.status = event["status"]
        step.notes = tuple(event.get("notes", ()))


def clean(text: str) -> str:
    """Return `text` on one line, its control characters escaped, so that a model's answer can't steer the terminal."""
    return escaped(" ".join(text.split()))


def duration(seconds: float) -> str:
    """Return seconds as people read them: `0.4s`, `42s`, `3m 05s`, `2h 10m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def amount_text(step: StepState, *, named: bool = False) -> str:
    """Return how far a step is: `120/500`, `500 rows` where `named`, `12/90 steps` of a training; nothing while unknown."""
    unit = " steps" if step.kind == "model" else " rows" if named else ""
    if step.status in MADE:
        return "" if step.rows_out is None else f"{step.rows_out:,}{unit}"
    if not step.total:
        return f"{step.done:,}{unit}" if step.done else ""
    return f"{step.done:,}/{step.total:,}{unit}"


def notes_text(step: StepState) -> str:
    """Return what else is worth a word: rows cached, dropped, failed; speed; loss; what it waits for; an error's first line.

    The loss of a finished training is called the last, since reports have the mean.
    """
    cached = 0 if step.status == "cached" else step.cached
    counts = [f"{n:,} {word}" for n, word in ((cached, "cached"), (step.dropped, "dropped"), (step.failed, "failed")) if n]
    if step.status == "running" and step.tokens_per_second:
        counts.append(f"{step.tokens_per_second:,.0f} tokens/s")
    if step.loss is not None:
        counts.append(f"{'last ' if step.status == 'done' else ''}loss {step.loss:.3f}")
    if step.status == "running" and step.doing:
        counts.append(clean(step.doing))
    if step.status == "running" and step.waiting:
        counts.insert(0, f"waits for {clean(step.waiting)}")
    if step.note:
        counts.append(clean(step.note))
    if step.notes:
        counts.append(counted_notes(step.notes))
    if step.error:
        counts.append(clean(step.error))
    return ", ".join(counts)


def counted_notes(notes: Sequence[Mapping[str, Any]]) -> str:
    """Return `1 note`, `2 notes`."""
    return f"{len(notes)} note{'s' * (len(notes) > 1)}"


def note_text(note: Mapping[str, Any]) -> str:
    """Return a note on one line: its sentence and the rows to look at."""
    rows = f" (rows {', '.join(note['uids'])})" if note["uids"] else ""
    return clean(f"{note['message']}{rows}")


def time_text(step: StepState, now: float) -> str:
    """Return time taken, and the time left of a running step: `12s, 40s left`."""
    taken, left = step.elapsed_s(now), step.eta_s(now)
    if taken is None or step.status in ("waiting", "skipped"):
        return ""
    return duration(taken) + (f", {duration(left)} left" if left else "")
