"""A run opened from Python: its steps with their rows as lazy tables, figures as plain dicts, models as paths.

Reads what a run left behind, each time anew, so that a run that is still going on can be watched. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError, suggest
from caiflow.engine.lookback.history import model_card, output_dir, output_kind, read_metrics, step_dir
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.engine.store.journal import MADE, read_run

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from datasets import Dataset


class Table:
    """Rows on disk; nothing is read before it is asked for."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows.num_rows

    def __iter__(self) -> Iterator[Row]:
        for batch in self._rows.batches():
            yield from batch.to_pylist()

    def __repr__(self) -> str:
        return f"<{len(self)} rows: {', '.join(self.columns)}>"

    def select(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows with these columns alone; no other is read."""
        for batch in self._rows.batches(columns=columns):
            yield from batch.to_pylist()

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns in order with their types in caiflow's words (text, messages, number, ...)."""
        return dict(self._rows.columns)

    @property
    def files(self) -> list[Path]:
        """The Parquet files, in the order of their rows."""
        return self._rows.files

    def head(self, number: int = 5) -> list[Row]:
        """Return the first rows as dicts."""
        return self._rows.pylist(limit=number)

    def lazy(self) -> pl.LazyFrame:
        """Return a lazy polars frame: filters and selections are carried out while the files are read."""
        return self._rows.scan()

    def to_polars(self) -> pl.DataFrame:
        """Return all rows as a polars frame."""
        return self._rows.scan().collect()

    def to_arrow(self) -> pa.Table:
        """Return all rows as an Arrow table."""
        import pyarrow as pa

        return pa.Table.from_batches(list(self._rows.batches()), schema=self._rows.schema)

    def to_pandas(self) -> pd.DataFrame:
        """Return all rows as a pandas frame; needs pandas."""
        return self.to_arrow().to_pandas()

    def dataset(self) -> Dataset:
        """Return the rows as a Hugging Face data set, mapped from the files."""
        from datasets import Dataset

        return Dataset.from_parquet([str(file) for file in self.files])


class Step:
    """One step of a run. What it made is under `table`, `figures` or `path`, by its kind."""

    def __init__(self, run_dir: Path, name: str, record: Mapping[str, Any]) -> None:
        self.name, self._run_dir, self._record = name, run_dir, record

    def __repr__(self) -> str:
        return f"<step {self.name}: {self.op}, {self.status}>"

    @property
    def record(self) -> dict[str, Any]:
        """What run.json has of the step."""
        return dict(self._record)

    @property
    def is_there(self) -> bool:
        """Whether what the step made is (still) there."""
        return output_dir(self._run_dir, self.name, self._record).is_dir()

    @property
    def is_made(self) -> bool:
        """Whether the step made what it is to make, and that is (still) there."""
        return self.status in MADE and self.is_there

    @property
    def op(self) -> str:
        """The operator's name."""
        return str(self._record["op"])

    @property
    def status(self) -> str:
        """What became of the step: done, cached, failed, skipped, running or waiting."""
        return str(self._record["status"])

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures that the step kept of itself, as in run.json: losses, rates, counts."""
        return dict(self._record.get("metrics") or {})

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What is wrong with what the step made, as in run.json: measure, value, threshold, message, uids."""
        return [note for note in read_run(self._run_dir).get("notes", ()) if note["step"] == self.name]

    @property
    def path(self) -> Path:
        """The folder of what the step made; of a model, what `from_pretrained` and `models:` take.

        Raises:
            CaiflowError: the step made nothing.
        """
        return step_dir(self._run_dir, self.name).resolve()

    @property
    def kind(self) -> str:
        """What the step made: rows, model or metrics."""
        return output_kind(self.path)

    @property
    def table(self) -> Table:
        """The rows.

        Raises:
            CaiflowError: the step made a model or figures.
        """
        return Table(self._rows())

    @property
    def dropped(self) -> Table:
        """The rows that were left out, with a column `reason`; empty where there were none."""
        return Table(self._rows().dropped())

    @property
    def figures(self) -> dict[str, Any]:
        """The content of metrics.json of a step that measures.

        Raises:
            CaiflowError: the step measures nothing.
        """
        if self.kind != "metrics":
            raise CaiflowError(f"{self.name}: {self.op} makes {self.kind}, not figures; see `metrics`, `table` or `path`")
        return read_metrics(self.path)

    @property
    def card(self) -> dict[str, Any]:
        """What a trained model's folder says of itself: architecture, size in bytes, metrics, loss curve."""
        return model_card(self.path)

    def _rows(self) -> Rows:
        if self.kind != "rows":
            raise CaiflowError(f"{self.name}: {self.op} makes {self.kind}, not rows; see `path` or `figures`")
        return Rows(self.path)


class Run(Mapping[str, Step]):
    """A run's folder, as a mapping of its steps by name."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __getitem__(self, name: str) -> Step:
        steps = self.record["steps"]
        if name not in steps:
            raise KeyError(f"{self.path}: no step {name!r} in this run; {suggest(name, steps, 'steps')}")
        return Step(self.path, name, steps[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.record["steps"])

    def __len__(self) -> int:
        return len(self.record["steps"])

    def __repr__(self) -> str:
        return f"<run {self.name}: {self.status}, {len(self)} steps, {self.path}>"

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json, with the status as it is now."""
        return read_run(self.path)

    @property
    def name(self) -> str:
        """The spec's name."""
        return str(self.record["name"])

    @property
    def status(self) -> str:
        """running, done, failed or interrupted."""
        return str(self.record["status"])

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """The figures of every step that measured something, by step."""
        made = (name for name, step in self.items() if step.is_made)
        return {name: self[name].figures for name in made if self[name].kind == "metrics"}
