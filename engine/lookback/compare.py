"""Two runs side by side: what differs in their settings, prompts, texts, judgements and figures.

Rows are joined by uid. Pure comparison; rendering is the report's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine import registry
from caiflow.engine.display.board import clean
from caiflow.engine.display.report import leaves
from caiflow.engine.lookback.history import output_dir, output_kind, step_figures
from caiflow.engine.plan.changes import changes as component_changes
from caiflow.engine.plan.components import COMPONENTS, TEXTS
from caiflow.engine.store.journal import MADE, read_run

if TYPE_CHECKING:
    import polars as pl

ABSENT = "(absent)"
"""Stands for a value that one side doesn't have."""
TIMINGS = ("seconds", "per_second")
"""Ends of the names of figures that differ from run to run without meaning."""
EXCERPT, LONG_EXCERPT = 80, 200
"""Characters shown of a changed value, and of a changed text of a row."""
CUT = "..."


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs, at a dotted path."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class RowExample:
    """One value of one row that differs."""

    uid: str
    column: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class RowsDiff:
    """How the rows of one step differ. `columns` counts rows per changed column.

    `pairs` counts the judged pairs both runs have (the same two answers), `flips` those whose winner changed; None where the
    step judges nothing.
    """

    step: str
    same: int
    changed: int
    only_old: int
    only_new: int
    columns: Mapping[str, int]
    pairs: int | None = None
    flips: int | None = None
    examples: Sequence[RowExample] = ()
    texts: Sequence[str] = ()
    """The changed columns that hold texts, conversations included."""


@dataclass(frozen=True, slots=True)
class OneSided:
    """A step that only one of the runs made. `other` is its status in the other run; None where that has no such step."""

    step: str
    made_in: Literal["old", "new"]
    other: str | None


@dataclass(frozen=True, slots=True)
class FigureChange:
    """One figure of a step that differs, with its interval where it has one; `apart` where the two intervals don't overlap."""

    step: str
    name: str
    old: Any
    new: Any
    apart: bool | None
    """None of figures without intervals."""


@dataclass(frozen=True, slots=True)
class RunsDiff:
    """Everything that differs between two runs."""

    settings: Sequence[Change] = ()
    prompts: Sequence[Change] = ()
    rows: Sequence[RowsDiff] = ()
    metrics: Sequence[Change] = field(default_factory=tuple)
    figures: Sequence[FigureChange] = ()
    """The same as `metrics`, a figure with its interval as one; those that are apart first in each step."""
    notes: Sequence[Change] = ()
    """By step and measure; the value is the note's sentence."""
    one_sided: Sequence[OneSided] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def excerpts(self) -> RunsDiff:
        """Return the same with long texts cut down to where they differ."""
        return replace(
            self,
            settings=tuple(map(_cut, self.settings)),
            prompts=tuple(map(_cut, self.prompts)),
            rows=tuple(replace(rows, examples=tuple(map(_cut_example, rows.examples))) for rows in self.rows),
            metrics=tuple(map(_cut, self.metrics)),
            notes=tuple(map(_cut, self.notes)),
        )


def changes(old: Any, new: Any, path: str = "") -> Iterator[Change]:
    """Yield the leaves that differ between two JSON values; lists are compared item by item."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key, ABSENT), new.get(key, ABSENT), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list):
        for i in range(max(len(old), len(new))):
            yield from changes(old[i] if i < len(old) else ABSENT, new[i] if i < len(new) else ABSENT, f"{path}[{i}]")
    elif old != new:
        yield Change(path, old, new)


def excerpt(old: str, new: str, limit: int) -> tuple[str, str]:
    """Return two texts on one line each, cut to `limit` characters around the first place where they differ."""
    before, after = clean(old), clean(new)
    if before == after:
        before, after = json.dumps(old), json.dumps(new)
    longest = max(len(before), len(after))
    if longest <= limit:
        return before, after
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, min(same - limit // 3, longest - (limit - len(CUT))))
    if start and (word := before.find(" ", start, same)) >= 0:
        start = word + 1
    start = start if start > len(CUT) else 0
    return _window(before, start, limit), _window(after, start, limit)


def _window(text: str, start: int, limit: int) -> str:
    lead = CUT if start else ""
    rest = text[start:]
    room = limit - len(lead)
    return lead + (rest if len(rest) <= room else rest[: room - len(CUT)] + CUT)


def _cut(change: Change) -> Change:
    if not (isinstance(change.old, str) and isinstance(change.new, str)):
        return change
    return Change(change.path, *excerpt(change.old, change.new, EXCERPT))


def _cut_example(example: RowExample) -> RowExample:
    return RowExample(example.uid, example.column, *excerpt(example.old, example.new, LONG_EXCERPT))


def compare(old_dir: Path, new_dir: Path, *, examples: int = 3) -> RunsDiff:
    """Return what differs between two runs, with up to `examples` changed rows per step.

    Raises:
        FileNotFoundError: a folder holds no run.
    """
    old, new = read_run(old_dir), read_run(new_dir)
    one_sided = tuple(_one_sided(old["steps"], new["steps"]))
    both = [step for step in old["steps"] if all(_made(run["steps"].get(step)) for run in (old, new))]
    judging = {step for step in both if _judges(old_dir, old["steps"], step) and _judges(new_dir, new["steps"], step)}
    return RunsDiff(
        settings=tuple(changes(_settings(old_dir), _settings(new_dir))),
        prompts=tuple(_prompts(old_dir, new_dir, both)),
        rows=tuple(
            diff for step in both if (diff := _rows(old_dir, new_dir, step, examples, judges=step in judging)) is not None
        ),
        metrics=tuple(
            c for c in changes(_figures(old, old_dir, both), _figures(new, new_dir, both)) if not c.path.endswith(TIMINGS)
        ),
        figures=tuple(figure_changes(_figures(old, old_dir, both), _figures(new, new_dir, both))),
        notes=tuple(changes(_notes(old, both), _notes(new, both))),
        one_sided=one_sided,
    )


def _notes(run: Mapping[str, Any], steps: Sequence[str]) -> dict[str, str]:
    found = (note for note in run.get("notes", ()) if note["step"] in steps)
    return {f"{note['step']}.{note['measure']}": note["message"] for note in found}


def _made(step: Mapping[str, Any] | None) -> bool:
    return step is not None and step["status"] in MADE


def _one_sided(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[OneSided]:
    for step in dict.fromkeys([*old, *new]):
        made = [_made(steps.get(step)) for steps in (old, new)]
        if made[0] != made[1]:
            other = (new if made[0] else old).get(step)
            yield OneSided(step, "old" if made[0] else "new", other["status"] if other else None)


def _judges(run_dir: Path, steps: Mapping[str, Any], step: str) -> bool:
    """Return whether a step chose between answers itself: by its operator, or because its inputs have no chosen answer yet."""
    inputs = [output_dir(run_dir, name, steps.get(name, {})) for name in steps[step].get("inputs", ())]
    return _chooses(steps[step]["op"]) or (bool(inputs) and not any(map(_has_chosen, inputs)))


def _chooses(op: str) -> bool:
    """Return whether the rows of an operator say which of two answers won; False of one that isn't installed any more."""
    return registry.exists(op) and getattr(registry.operator(op), "chooses", False)


def _has_chosen(path: Path) -> bool:
    if not path.is_dir() or output_kind(path) != "rows":
        return False
    import polars as pl

    return "chosen" in pl.read_parquet_schema(next(path.glob("*.parquet")))


def _settings(run_dir: Path) -> Any:
    import yaml

    path = run_dir / "spec.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _prompts(old_dir: Path, new_dir: Path, steps: Sequence[str]) -> Iterator[Change]:
    """Yield what differs in the texts and principles that went into the steps' identities.

    A principle that several steps draw from is named once, by the text of it that changed.
    """
    old, new = (_read(run_dir / COMPONENTS) for run_dir in (old_dir, new_dir))
    texts = {**_read(old_dir / TEXTS), **_read(new_dir / TEXTS)}
    shared: list[Change] = []
    for step in steps:
        for name, before, after in component_changes(old.get(step, {}), new.get(step, {})):
            group = name.partition(".")[0]
            old_side, new_side = (ABSENT if value is None else value for value in (before, after))
            if group in ("principles", "few_shot") and {old_side, new_side} <= {*texts, ABSENT}:
                shared += changes(texts.get(old_side, ABSENT), texts.get(new_side, ABSENT), name)
            elif group in ("uses", "principles", "few_shot", "operator"):
                yield from changes(old_side, new_side, f"{step}.{name}")
    yield from (change for i, change in enumerate(shared) if change not in shared[:i])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _rows(old_dir: Path, new_dir: Path, step: str, examples: int, *, judges: bool) -> RowsDiff | None:
    paths = [output_dir(run_dir, step, read_run(run_dir)["steps"][step]) for run_dir in (old_dir, new_dir)]
    return _rows_diff(step, paths[0], paths[1], examples, judges=judges)


def rows_of_step(old: Path, new_dir: Path, new: Mapping[str, Any], step: str) -> RowsDiff | None:
    """Return how the rows in the folder `old` differ from those that a run made in a step; None where either has no rows."""
    path = output_dir(new_dir, step, new["steps"][step])
    return _rows_diff(step, old, path, 0, judges=_judges(new_dir, new["steps"], step))


def _rows_diff(step: str, old_path: Path, new_path: Path, examples: int, *, judges: bool) -> RowsDiff | None:
    if not all(path.is_dir() and output_kind(path) == "rows" for path in (old_path, new_path)):
        return None
    if old_path.resolve() == new_path.resolve():
        return None
    import polars as pl

    old, new = (pl.scan_parquet(path / "*.parquet").collect() for path in (old_path, new_path))
    if "uid" not in old.columns or "uid" not in new.columns:
        return None
    return rows_diff(step, old, new, examples, judges=judges)


def rows_diff(step: str, old: pl.DataFrame, new: pl.DataFrame, examples: int = 3, *, judges: bool = True) -> RowsDiff:
    """Return how two tables differ, row by row of the same uid; equal uids are told apart by their order."""
    import polars as pl

    old, new = (table.with_columns(pl.int_range(pl.len()).over("uid").alias("_nth")) for table in (old, new))
    columns = [name for name in old.columns if name in new.columns and name not in ("uid", "_nth")]
    joined = old.join(new, on=["uid", "_nth"], how="inner", suffix="\0new", maintain_order="left")
    differs = pl.DataFrame({name: _differs(joined, name) for name in columns}) if columns else pl.DataFrame()
    any_differs = differs.select(pl.any_horizontal(pl.all())).to_series() if columns else pl.Series([], dtype=pl.Boolean)
    changed = len(any_differs.arg_true())
    pairs, flips = _flips(joined) if judges else (None, None)
    return RowsDiff(
        step=step,
        same=joined.height - changed,
        changed=changed,
        only_old=old.height - joined.height,
        only_new=new.height - joined.height,
        columns={name: len(differs[name].arg_true()) for name in columns if differs[name].any()},
        pairs=pairs,
        flips=flips,
        examples=tuple(_examples(joined, differs, any_differs, examples)),
        texts=tuple(name for name in differs.columns if differs[name].any() and _holds_texts(joined[name].dtype)),
    )


def _holds_texts(kind: Any) -> bool:
    import polars as pl

    if isinstance(kind, pl.List):
        return _holds_texts(kind.inner)
    if isinstance(kind, pl.Struct):
        return any(_holds_texts(field.dtype) for field in kind.fields)
    return bool(kind == pl.String)


def _differs(joined: pl.DataFrame, name: str) -> pl.Series:
    old, new = joined[name], joined[f"{name}\0new"]
    if old.dtype != new.dtype or old.dtype.is_nested():
        old, new = _text(old), _text(new)
    return old.ne_missing(new)


def _text(values: pl.Series) -> pl.Series:
    import polars as pl

    texts = [None if value is None else json.dumps(value, default=str) for value in values.to_list()]
    return pl.Series(values.name, texts, dtype=pl.String)


def _flips(joined: pl.DataFrame) -> tuple[int | None, int | None]:
    """Return how many judged pairs are the same two answers in both runs, and how many of those changed the winner."""
    if not {"chosen", "rejected", "chosen\0new", "rejected\0new"} <= set(joined.columns):
        return None, None
    won, lost, won_new, lost_new = (_text(joined[name]) for name in ("chosen", "rejected", "chosen\0new", "rejected\0new"))
    kept = ((won == won_new) & (lost == lost_new)).arg_true()
    turned = (won == lost_new) & (lost == won_new) & (won != lost)
    flipped = turned
    for name in {"p_chosen", "p_chosen\0new"} & set(joined.columns):  # a tie that was kept had no winner
        flipped = flipped & (joined[name] != 0.5).fill_null(True)
    return len(kept) + len(turned.arg_true()), len(flipped.arg_true())


def _examples(joined: pl.DataFrame, differs: pl.DataFrame, rows: pl.Series, limit: int) -> Iterator[RowExample]:
    for index in rows.arg_true().head(limit).to_list():
        told = set()
        for name in differs.columns:
            if differs[name][index]:
                old, new = joined[name][index], joined[f"{name}\0new"][index]
                shown = _shown(old), _shown(new)
                if shown[0] == shown[1]:
                    shown = str(_listed(old)), str(_listed(new))
                if shown not in told:  # a list of rounds has what the column of its last one has
                    yield RowExample(joined["uid"][index], name, *shown)
                told.add(shown)


def _shown(value: Any) -> str:
    """Return a cell as text; a conversation is shown by its last turn, and a list of one text by that."""
    plain = _listed(value)
    if isinstance(plain, list) and len(plain) == 1 and isinstance(plain[0], str):
        return plain[0]
    if isinstance(plain, list) and plain and isinstance(plain[-1], dict) and "content" in plain[-1]:
        return str(plain[-1]["content"])
    return str(plain)


def _listed(value: Any) -> Any:
    import polars as pl

    return value.to_list() if isinstance(value, pl.Series) else value


def figure_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[FigureChange]:
    """Yield the figures by step that differ, those whose intervals are apart first, timings left out."""
    for step in old:
        before, after = (dict(leaves(figures[step])) for figures in (old, new))
        found = [
            FigureChange(step, name, before.get(name), after.get(name), _apart(before.get(name), after.get(name)))
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name) and not name.endswith(TIMINGS)
        ]
        yield from sorted(found, key=lambda change: not change.apart)


def _apart(old: Any, new: Any) -> bool | None:
    known = [value for value in (old, new) if isinstance(value, Mapping) and None not in (value.get("low"), value.get("high"))]
    if len(known) < 2:
        return None
    return bool(max(value["low"] for value in known) > min(value["high"] for value in known))


def _figures(run: Mapping[str, Any], run_dir: Path, steps: Sequence[str]) -> dict[str, Any]:
    return {name: step_figures(run_dir, name, run["steps"][name]) for name in steps}
