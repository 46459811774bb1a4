"""Bounds on a finished run's figures, as a build in continuous integration holds it to them.

    caiflow_gates: 1
    notes: 0                                        # at most so many notes of the run; left out, they don't count
    steps:
      scores: {models.rl_cai.harmful.no_refusal_phrase: "<= 10%", models.rl_cai.helpful.no_refusal_phrase: ">= 80%"}
      preference: {order_flips: "< 0.4"}

A figure with an interval holds where all of the interval does. Reads a run; never changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from caiflow.engine.display.report import central, leaves
from caiflow.engine.errors import Problem, SpecError, WrongValue, suggest
from caiflow.engine.health import Bound
from caiflow.engine.lookback.history import output_dir, step_figures
from caiflow.engine.store.artifacts import read_artifact
from caiflow.engine.store.journal import MADE, read_run
from caiflow.engine.yaml.reader import read_yaml
from caiflow.engine.yaml.tree import Node, dotted

VERSION = 1
COUNTS = ("rows_in", "rows_out", "dropped", "failed")
_FORM = "write `caiflow_gates: 1` and `steps: {STEP: {FIGURE: BOUND}}`"

Verdict = Literal["holds", "crosses", "fails", "missing"]
"""Within the bound; its interval reaches beyond it; beyond it altogether; the run has no such figure, or no value for it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound and what came of it; `low` and `high` are the figure's interval where it has one, `n` what is behind it."""

    step: str
    figure: str
    bound: str
    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


def gates(path: Path, run_dir: Path) -> list[Gate]:
    """Return what came of every bound that a file sets for a run, in the file's order.

    Raises:
        SpecError: the file isn't one of bounds, or names a step or a figure that the run doesn't have.
    """
    tree, problems = read_yaml(path), list[Problem]()
    run = read_run(run_dir)
    found = list(_gates(tree, run_dir, run, problems))
    if problems:
        raise SpecError(tuple(problems))
    return found


def _gates(tree: Node, run_dir: Path, run: Mapping[str, Any], problems: list[Problem]) -> Iterator[Gate]:
    if (version := tree.get("caiflow_gates")) is None or version.value != VERSION:
        _refuse(problems, version or tree, (), "this is no file of gates", _FORM)
        return
    for name, node in tree.items():
        if name not in ("caiflow_gates", "steps", "notes"):
            _refuse(problems, node, (name,), f"unknown key `{name}`", suggest(name, ("steps", "notes"), "keys"), key=True)
    if (most := tree.get("notes")) is not None:
        yield from _notes(most, run, problems)
    steps = tree.get("steps")
    for step, node in steps.items() if steps else ():
        if step not in run["steps"]:
            _refuse(problems, node, ("steps", step), f"no step `{step}`", suggest(step, run["steps"], "steps"), key=True)
            continue
        yield from _step(step, node, run_dir, run["steps"][step], problems)


def _notes(most: Node, run: Mapping[str, Any], problems: list[Problem]) -> Iterator[Gate]:
    if not isinstance(most.value, int) or isinstance(most.value, bool) or most.value < 0:
        _refuse(problems, most, ("notes",), f"`notes` is the most notes that a run may have, got {most.value!r}", "write 0")
        return
    number = len(run.get("notes", ()))
    yield Gate("", "notes", f"<= {most.value}", "holds" if number <= most.value else "fails", number)


def _step(step: str, node: Node, run_dir: Path, record: Mapping[str, Any], problems: list[Problem]) -> Iterator[Gate]:
    figures = {**_counts(run_dir, step, record), **dict(leaves(step_figures(run_dir, step, record)))}
    known = {
        name: value for name, value in figures.items()
        if value is None or isinstance(value, Mapping) or central(value) is not None
    }  # fmt: skip
    for name, text in node.items():
        path = ("steps", step, name)
        try:
            bound = Bound.parse(str(text.value))
        except WrongValue as wrong:
            _refuse(problems, text, path, wrong.message, wrong.hint)
            continue
        if record["status"] not in MADE:
            yield Gate(step, name, str(bound), "missing")
        elif name not in known:
            _refuse(problems, text, path, f"`{step}` has no figure `{name}`", suggest(name, known, "figures"), key=True)
        else:
            yield _held(step, name, bound, known[name])


def _counts(run_dir: Path, step: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's counts: of run.json, or else, since it hasn't all of a cached step, those sealed with its output."""
    path = output_dir(run_dir, step, record)
    sealed = read_artifact(path.resolve()).meta.get("counts", {}) if path.is_dir() else {}
    found = {name: sealed.get(name) if record.get(name) is None else record[name] for name in COUNTS}
    return {name: count for name, count in found.items() if count is not None}


def _held(step: str, name: str, bound: Bound, figure: Any) -> Gate:
    value, about = central(figure), figure if isinstance(figure, Mapping) else {}
    low, high = about.get("low"), about.get("high")
    told = (value, low, high, about.get("n"))
    if value is None:
        return Gate(step, name, str(bound), "missing", *told)
    held = [bound.holds(end) for end in (low, high) if end is not None] or [bound.holds(value)]
    verdict: Verdict = "holds" if all(held) else "crosses" if any(held) else "fails"
    return Gate(step, name, str(bound), verdict, *told)


def _refuse(problems: list[Problem], node: Node, path: tuple[str, ...], message: str, hint: str, *, key: bool = False) -> None:
    at = node.key if key else node.at
    problems.append(Problem(at.file, at.line, at.col, dotted(path), message, hint))
