"""What a run leaves behind as it goes: each step's status, the events, links to the artifacts, and what `gc` must keep for it.

Owns the statuses: a step's status changes here and nowhere else, and each change is written down. Decides none: that is the
runner's.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from caiflow.engine.display.report import central, leaves
from caiflow.engine.display.terminal import escaped
from caiflow.engine.display.trackers import report_figures
from caiflow.engine.errors import PlanError
from caiflow.engine.health import DROPPED, ROWS, Reading, notes, unmet
from caiflow.engine.identity import digest
from caiflow.engine.plan.components import COMPONENTS, TEXTS, Components, Resolver
from caiflow.engine.plan.lock import LOCK, compare_locks, grade, make_lock, read_lock, write_lock
from caiflow.engine.plan.relocate import portable
from caiflow.engine.run.sending import Sending
from caiflow.engine.store.artifacts import Artifact
from caiflow.engine.store.checkpoints import left_learnt
from caiflow.engine.store.disk import finite, point, write_atomic
from caiflow.engine.store.journal import MADE, Journal, StepStatus

if TYPE_CHECKING:
    from caiflow.engine.run.units import StepResult
    from caiflow.engine.spec.grammar import Step

UNMADE: tuple[StepStatus, ...] = ("failed", "skipped")
SETTLED: tuple[StepStatus, ...] = (*MADE, *UNMADE)


class RunFolder:
    """The folder of one run, and the status of every step it is to settle."""

    def __init__(self, resolver: Resolver, out_dir: Path, journal: Journal, steps: Sequence[Step], interrupted: Event) -> None:
        self.status: dict[str, StepStatus] = {step.name: "waiting" for step in steps}
        self.components: dict[str, Components] = {}
        self._resolver = resolver
        self._out_dir = out_dir
        self._journal = journal
        self._steps = steps
        self._started: dict[str, float] = {}
        self._results: dict[str, StepResult] = {}
        self._sending = Sending(resolver.bucket, journal, interrupted)

    def open(self) -> None:
        """Write what is known before the first step, and look whether the bucket takes what is to come.

        Raises:
            StoreError: it doesn't.
        """
        spec = self._resolver.spec
        (self._out_dir / "steps").mkdir(parents=True, exist_ok=True)
        (self._out_dir / "spec.yaml").write_text(portable(spec), encoding="utf-8")
        (self._out_dir / TEXTS).write_text(json.dumps(self._resolver.texts(), indent=1, ensure_ascii=False), encoding="utf-8")
        self._keep_reached()
        steps = [
            {"name": s.name, "op": s.op, "kind": s.operator_type().kind, "inputs": list(self._resolver.edges(s))}
            for s in self._steps
        ]
        variant = " ".join(spec.variant) or None
        self._journal.emit("run_started", name=spec.name, variant=variant, spec=digest(spec.raw), seed=spec.seed, steps=steps)
        self._sending.begin()

    def close(self) -> None:
        """Send no more to the bucket."""
        self._sending.close()

    def unsettled(self) -> list[Step]:
        """Return the steps that wait or run."""
        return [step for step in self._steps if self.status[step.name] not in SETTLED]

    def all_made(self) -> bool:
        """Return whether no step failed or was skipped."""
        return not any(status in UNMADE for status in self.status.values())

    def lost_an_input(self, step: Step) -> bool:
        """Return whether something that the step needs will not be made by this run."""
        return any(self.status.get(name) in UNMADE for name in self._resolver.edges(step))

    def has_inputs(self, step: Step) -> bool:
        """Return whether all that the step needs has settled."""
        return all(self.status[name] in SETTLED for name in self._resolver.edges(step))

    def lock(self) -> None:
        """Write the run's lock; where one lies beside the spec, say how far this run is the same."""
        made = make_lock(self._resolver)
        write_lock(self._out_dir, made)
        given = self._resolver.spec.base_dir / LOCK
        if given.is_file():
            try:
                before = read_lock(given)
            except PlanError as error:
                self._journal.emit("log", text=f"not compared with a lock: {error}")
                return
            drift = [str(found) for found in compare_locks(before, made)]
            self._journal.emit("lock_compared", lock=str(given), grade=grade(before, made), drift=drift)

    def whole(self) -> bool:
        """Return whether no step failed or was skipped and, once the wait for it is over, all lies in the bucket."""
        return self._sending.finish() and self.all_made()

    def report(self) -> None:
        """Tell the trackers of the run's trainings what its evaluations measured, where everything is made."""
        told = dict.fromkeys(name for step in self._steps for name in getattr(step.params, "report_to", ()))
        figures = dict(self._figures()) if told and self.all_made() else {}
        if figures:
            run = f"{self._resolver.spec.name} {self._out_dir.name}"
            for said in report_figures(list(told), figures, run):
                self._journal.emit("log", text=said)

    def _figures(self) -> Iterator[tuple[str, float]]:
        """Yield what was measured as `STEP/FIGURE`, the ends of its interval as `STEP/FIGURE.low` and `.high`."""
        for name, artifact in self._resolver.artifacts.items():
            path = artifact.path / "metrics.json"
            for figure, value in leaves(json.loads(path.read_bytes())) if path.exists() else ():
                about = value if isinstance(value, Mapping) else {}
                for end, number in (("", central(value)), (".low", about.get("low")), (".high", about.get("high"))):
                    if number is not None:
                        yield f"{name}/{figure}{end}", float(number)

    def keep(self, *, artifacts: Iterable[str] = (), ledgers: Iterable[str] = ()) -> None:
        """Have `gc` keep these for this run."""
        self._resolver.store.record_run(self._resolver.spec.name, self._out_dir, artifacts=artifacts, ledgers=ledgers)

    def start(self, step: Step) -> None:
        """Note that the step runs now."""
        self.status[step.name] = "running"
        self._started[step.name] = time.monotonic()
        self._journal.emit("step_started", step=step.name)

    def begin_anew(self, steps: Iterable[Step]) -> None:
        """Note that steps which ran are to be begun once more."""
        self.status.update({step.name: "waiting" for step in steps})

    def cache(self, step: Step, artifact: Artifact) -> None:
        """Settle a step whose artifact was there."""
        self._accept(step, "cached", artifact, {"cached": artifact.rows_out, "failed": artifact.failed})

    def seal(self, step: Step, result: StepResult, beside: Mapping[str, StepResult]) -> None:
        """Settle a step by making its staged output an artifact; `beside` are the results of all steps that were made with it.

        Where another run was first with its input, and has rows in it that failed here, the step is to be made of those.
        """
        if self._misses_rows(step, result, beside):
            assert result.staged is not None, step.name
            shutil.rmtree(result.staged)
            result.staged.mkdir()
            self._journal.emit(
                "log", text=f"{step.name} is made anew: another run has rows of {step.input} that failed in this one"
            )
            self.begin_anew([step])
            return
        components = self._resolver.components(step)
        self._results[step.name] = result
        assert components is not None, step.name
        assert result.staged is not None, step.name
        self.components[step.name] = components
        meta = {
            "kind": step.operator_type().kind,
            "op": step.op,
            "components": components,
            "metrics": finite(result.metrics),
            "rows_in": result.rows_in,
            "rows_out": result.rows_out,
            "counts": dict(result.counts),
            "readings": {name: reading._asdict() for name, reading in result.readings.items()},
            "seconds": self._seconds(step),
        }
        artifact = self._resolver.store.seal(digest(components), result.staged, meta)
        self._resolver.artifacts[step.name] = artifact
        self._accept(step, "done", artifact, result.counts)

    def _misses_rows(self, step: Step, result: StepResult, beside: Mapping[str, StepResult]) -> bool:
        """Return whether a step's input, which was made with it, has other rows by now, or is itself to be made anew."""
        given = self._resolver.artifacts.get(step.input)
        return step.input in beside and (given is None or given.rows_out != result.rows_in)

    def learnt(self, step: Step) -> Artifact | None:
        """Return what a training learnt, whatever became of saving it; what lies in its work folder is sealed first."""
        resolver, components = self._resolver, self.components[step.name]
        key = resolver.learnt_key(step, components)
        left = left_learnt(resolver.store.work_path(resolver.work_key(step, components)))
        if key is None or left is None:
            return resolver.learnt(step, components)
        return resolver.store.seal(key, left, {"kind": step.operator_type().kind, "op": step.op, "learnt": True})

    def _accept(self, step: Step, status: StepStatus, artifact: Artifact, counts: Mapping[str, int | None]) -> None:
        """Settle a step whose output is there: as failed where that isn't what the step requires of it."""
        wrong = unmet(step.params.require, _values(artifact))
        if not wrong:
            self._settle(step, status, artifact, counts)
            return
        reason = (
            f"{'; '.join(wrong)}; the steps behind it don't begin, all that was made is kept: look at it with "
            f"`caiflow show {self._out_dir} {step.name}`, then change what made it, or its `require`, and run again"
        )
        self._settle(step, "failed", artifact, counts, error=reason)

    def skip(self, step: Step) -> None:
        """Settle a step that lost an input."""
        self._settle(step, "skipped")

    def fail(self, step: Step, reason: str, counts: Mapping[str, int] | None = None) -> None:
        """Settle a step by what ended it: the whole in a log of its own, the first line in the event."""
        log = self._out_dir / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(escaped(reason) + "\n", encoding="utf-8")
        first = reason.strip().splitlines()[0].removeprefix(f"{step.name}: ") if reason.strip() else "failed"
        self._settle(step, "failed", counts=counts, error=f"{first}; the whole report is in {log}")

    def _settle(
        self,
        step: Step,
        status: StepStatus,
        artifact: Artifact | None = None,
        counts: Mapping[str, int | None] | None = None,
        error: str | None = None,
    ) -> None:
        self.status[step.name] = status
        if artifact is not None:
            point(self._out_dir / "steps" / step.name, artifact.path)
            self._sending.add(step.name, artifact)
        self._keep_reached()
        shown = ("cached", "dropped", "failed", "calls", "reused_calls", "prompt_tokens", "completion_tokens")
        found = notes(self._resolver.spec.operators[step.name].all_measures(), _readings(artifact)) if artifact else []
        self._journal.emit(
            "step_done",
            step=step.name,
            status=status,
            digest=artifact.digest if artifact else None,
            rows_in=artifact.rows_in if artifact else None,
            rows_out=artifact.rows_out if artifact else None,
            seconds=self._seconds(step),
            metrics=dict(artifact.metrics) if artifact else None,
            notes=[{"step": step.name, **note} for note in found] or None,
            error=error,
            **{name: (counts or {}).get(name) for name in shown},
            **self._taken(step),
        )

    def _seconds(self, step: Step) -> float:
        """Return what the step took: its own share where it told that, else the time since it was started."""
        made = self._results.get(step.name)
        if made is not None and made.seconds is not None:
            return made.seconds
        begun = self._started.get(step.name)
        return round(time.monotonic() - begun, 3) if begun else 0.0

    def _taken(self, step: Step) -> dict[str, float]:
        """Return what the step took of the machines beside time: GPU-hours, where there are GPUs, and memory."""
        made = self._results.get(step.name)
        if made is None:
            return {}
        hours = {"gpu_hours": round(made.gpus * self._seconds(step) / 3600, 6)} if made.gpus else {}
        return {**hours, **made.peaks}

    def _keep_reached(self) -> None:
        """Keep what this run reaches where `gc`, `runs` and the next plan look for it."""
        if self.components:
            write_atomic(self._out_dir / COMPONENTS, json.dumps(self.components, indent=1) + "\n")
        learnt = (self._resolver.learnt_key(self._resolver.spec.steps[name], found) for name, found in self.components.items())
        made = [artifact.digest for artifact in self._resolver.artifacts.values()]
        self.keep(artifacts=[*made, *filter(None, learnt)])


def _readings(artifact: Artifact) -> dict[str, Reading]:
    """Return the readings that were sealed with an artifact; none of one from before there were any."""
    return {name: Reading(**reading) for name, reading in artifact.meta.get("readings", {}).items()}


def _values(artifact: Artifact) -> dict[str, float]:
    """Return what a step may require bounds of, by name."""
    found = {name: reading.value for name, reading in _readings(artifact).items()}
    if artifact.rows_out is not None:
        found[ROWS] = artifact.rows_out
    if artifact.rows_in:
        counts: Mapping[str, Any] = artifact.meta.get("counts", {})
        found[DROPPED] = (counts.get("dropped") or 0) / artifact.rows_in
    return found
