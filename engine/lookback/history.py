"""Looking back: which runs there are, which one a word means, and the rows of a run's steps. Reads only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine.errors import CaiflowError, StoreError, suggest
from caiflow.engine.lookback.tags import said_of
from caiflow.engine.store.journal import read_run

if TYPE_CHECKING:
    from caiflow.engine.store.artifacts import Store


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in the list of runs; `steps` counts its steps by status, `notes` what is wrong with what they made."""

    name: str
    path: Path
    status: str
    started: float
    seconds: float | None
    steps: Mapping[str, int]
    notes: int = 0
    variant: str = ""
    """What was asked beside the spec's file: `--sample 8`; empty of a full run."""
    tags: tuple[str, ...] = ()
    note: str = ""


def list_runs(store: Store) -> list[RunLine]:
    """Return the runs of this store whose folders still exist, oldest first."""
    return [line for record in store.runs() if (line := _line(record.run_dir)) is not None]


def _line(run_dir: Path) -> RunLine | None:
    try:
        run = read_run(run_dir)
    except (OSError, StoreError, KeyError):
        return None
    counts = Counter(step["status"] for step in run["steps"].values())
    told = (len(run.get("notes", ())), run.get("variant", ""), *said_of(run_dir))
    return RunLine(run["name"], run_dir, run["status"], run["started"], run["seconds"], dict(counts), *told)


def find_run(name: str, store: Store) -> Path:
    """Return the folder of a run: a path, `last`, a run's folder name, or the latest run of a spec's name.

    Of several that are meant, runs below the current folder go before those elsewhere, and the later before the earlier.

    Raises:
        CaiflowError: no run is meant by `name`; the message has the nearest.
    """
    if (Path(name) / "run.json").exists():
        return Path(name)
    here = Path.cwd()
    runs = sorted(list_runs(store), key=lambda line: line.path.is_relative_to(here))
    if name in ("last", "latest") and runs:
        return runs[-1].path
    meant = [line.path for line in runs if name in (line.path.name, line.name, f"{line.name}/{line.path.name}")]
    if meant:
        return meant[-1]
    known = [word for line in reversed(runs) for word in (line.name, line.path.name)]
    raise CaiflowError(f"{name}: no such run", suggest(name, known, "runs"))


def step_dir(run_dir: Path, step: str) -> Path:
    """Return the folder of a step's output.

    Raises:
        CaiflowError: the run has no such step, or the step made no output.
    """
    steps = read_run(run_dir)["steps"]
    if step not in steps:
        raise CaiflowError(f"{run_dir}: no step {step!r} in this run", suggest(step, steps, "steps"))
    path = output_dir(run_dir, step, steps[step])
    if not path.is_dir():
        status = steps[step]["status"]
        reason = f" ({steps[step]['error']})" if steps[step].get("error") else ""
        raise CaiflowError(f"{step}: no output, the step is {status}{reason}", "run the spec again")
    return path


def output_dir(run_dir: Path, step: str, record: Mapping[str, Any]) -> Path:
    """Return where the run's link to a step's output leads; where it leads nowhere any more, the output's place in the store.

    `record` is the step's own in run.json. Where neither is there, the link is returned.
    """
    from caiflow.engine.store.artifacts import Store

    link = run_dir / "steps" / step
    if link.is_dir() or not (digest := record.get("digest")):
        return link
    kept = Store().path(digest)
    return kept if kept.is_dir() else link


def output_kind(path: Path) -> Literal["rows", "metrics", "model"]:
    """Return what a step's folder holds."""
    if (path / "metrics.json").exists():
        return "metrics"
    return "rows" if any(path.glob("*.parquet")) else "model"


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of metrics.json in a step's folder."""
    return _read_json(path / "metrics.json")


def step_figures(run_dir: Path, step: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a step: of one that measures its metrics.json, else what it kept of itself in run.json."""
    path = output_dir(run_dir, step, record)
    measured = path.is_dir() and output_kind(path) == "metrics"
    return read_metrics(path) if measured else dict(record.get("metrics") or {})


def evaluations(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each step of a run that measured something, with its figures."""
    for step, record in read_run(run_dir)["steps"].items():
        path = output_dir(run_dir, step, record)
        if path.is_dir() and output_kind(path) == "metrics":
            yield step, read_metrics(path)


def model_card(path: Path) -> dict[str, Any]:
    """Return what a trained model's folder says of itself: architecture, size, metrics, and its loss curve."""
    from caiflow.engine.store.artifacts import read_artifact

    config, adapter = (_read_json(path / name) for name in ("config.json", "adapter_config.json"))
    history = path / "_history.jsonl"
    return {
        "path": str(path.resolve()),
        "architecture": ", ".join(config.get("architectures") or ()),
        "adapter_of": adapter.get("base_model_name_or_path"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "size_bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
        "metrics": dict(read_artifact(path.resolve()).metrics),
        "history": [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()] if history.exists() else [],
    }


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content
