"""Two runs side by side: what differs in their settings, prompts, texts, judgements and figures.

Rows are joined by uid. Pure comparison; rendering is the report's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.changes import changes as component_changes
from caiflow.engine.events import read_run
from caiflow.engine.history import output_kind, read_metrics
from caiflow.engine.resolver import COMPONENTS, TEXTS

if TYPE_CHECKING:
    import polars as pl

ABSENT = "(absent)"
"""Stands for a value that one side doesn't have."""
TIMINGS = ("seconds", "per_second")
"""Ends of the names of figures that differ from run to run without meaning."""


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


@dataclass(frozen=True, slots=True)
class RunsDiff:
    """Everything that differs between two runs."""

    settings: Sequence[Change] = ()
    prompts: Sequence[Change] = ()
    rows: Sequence[RowsDiff] = ()
    metrics: Sequence[Change] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


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


def compare(old_dir: Path, new_dir: Path, *, examples: int = 3) -> RunsDiff:
    """Return what differs between two runs, with up to `examples` changed rows per step.

    Raises:
        FileNotFoundError: a folder holds no run.
    """
    old, new = read_run(old_dir), read_run(new_dir)
    both = [step for step in old["steps"] if step in new["steps"]]
    return RunsDiff(
        settings=tuple(changes(_settings(old_dir), _settings(new_dir))),
        prompts=tuple(_prompts(old_dir, new_dir, both)),
        rows=tuple(diff for step in both if (diff := _rows(old_dir, new_dir, step, examples)) is not None),
        metrics=tuple(c for c in changes(_figures(old, old_dir), _figures(new, new_dir)) if not c.path.endswith(TIMINGS)),
    )


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


def _rows(old_dir: Path, new_dir: Path, step: str, examples: int) -> RowsDiff | None:
    paths = [run_dir / "steps" / step for run_dir in (old_dir, new_dir)]
    if not all(path.is_dir() and output_kind(path) == "rows" for path in paths):
        return None
    if paths[0].resolve() == paths[1].resolve():
        return None
    import polars as pl

    old, new = (pl.scan_parquet(path / "*.parquet").collect() for path in paths)
    if "uid" not in old.columns or "uid" not in new.columns:
        return None
    return rows_diff(step, old, new, examples)


def rows_diff(step: str, old: pl.DataFrame, new: pl.DataFrame, examples: int = 3) -> RowsDiff:
    """Return how two tables differ, row by row of the same uid; equal uids are told apart by their order."""
    import polars as pl

    old, new = (table.with_columns(pl.int_range(pl.len()).over("uid").alias("_nth")) for table in (old, new))
    columns = [name for name in old.columns if name in new.columns and name not in ("uid", "_nth")]
    joined = old.join(new, on=["uid", "_nth"], how="inner", suffix="\0new", maintain_order="left")
    differs = pl.DataFrame({name: _differs(joined, name) for name in columns}) if columns else pl.DataFrame()
    any_differs = differs.select(pl.any_horizontal(pl.all())).to_series() if columns else pl.Series([], dtype=pl.Boolean)
    changed = len(any_differs.arg_true())
    pairs, flips = _flips(joined)
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
    )


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
    flipped = ((won == lost_new) & (lost == won_new) & (won != lost)).arg_true()
    return len(kept) + len(flipped), len(flipped)


def _examples(joined: pl.DataFrame, differs: pl.DataFrame, rows: pl.Series, limit: int) -> Iterator[RowExample]:
    for index in rows.arg_true().head(limit).to_list():
        for name in differs.columns:
            if differs[name][index]:
                old, new = joined[name][index], joined[f"{name}\0new"][index]
                yield RowExample(joined["uid"][index], name, _shown(old), _shown(new))


def _shown(value: Any) -> str:
    """Return a cell as text; a conversation is shown by its last turn."""
    import polars as pl

    plain = value.to_list() if isinstance(value, pl.Series) else value
    if isinstance(plain, list) and plain and isinstance(plain[-1], dict) and "content" in plain[-1]:
        return str(plain[-1]["content"])
    return str(plain)


def _figures(run: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, step in run["steps"].items():
        path = run_dir / "steps" / name
        has_file = path.is_dir() and output_kind(path) == "metrics"
        figures[name] = read_metrics(path) if has_file else step.get("metrics") or {}
    return figures
