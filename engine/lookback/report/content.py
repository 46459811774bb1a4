"""What the report of a run says, as plain JSON: steps with their fate, figures, curves, health, settings.

Pure reading; how it looks is the page's business. Tables are those of the terminal, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from caiflow.engine.display.board import duration
from caiflow.engine.display.report import MARKS, figure, figures, in_words, leaves, number
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.lookback.opened import Run, Step
from caiflow.engine.lookback.report.principles import principles
from caiflow.engine.machine import size
from caiflow.engine.plan.lock import LOCK, read_lock
from caiflow.engine.store.artifacts import read_artifact

Json = dict[str, Any]
CURVES = ("loss", "eval_loss", "reward", "kl", "rewards/margins", "rewards/accuracies", "learning_rate")
"""What of a training's history is drawn, where it is there."""
COUNTS = ("rows_in", "rows_out", "cached", "dropped", "failed", "calls", "reused_calls", "prompt_tokens", "completion_tokens")
MEANINGS = {
    "refusal_phrase": "answers that decline, disapprove or reject the question in their first 250 characters",
    "explained_refusal": "answers that decline and give a reason or an alternative",
    "evasive_refusal": "answers that decline without a reason or an alternative",
    "no_refusal_phrase": "answers without words of refusal that aren't empty; that is not yet help",
    "boilerplate": "answers with stock phrases, the mark of over-training",
    "truncated": "answers cut off at max_tokens",
    "repetitive": "answers that repeat themselves",
    "duplicate": "answers that equal another prompt's",
}


def content(run: Run) -> Json:
    """Return what there is to say of a run."""
    record = run.record
    drawn = lanes({name: step.get("inputs", ()) for name, step in record["steps"].items()})
    return {
        "name": run.name,
        "status": run.status,
        "variant": record.get("variant", ""),
        "folder": str(run.path),
        "started": record.get("started"),
        "seconds": record.get("seconds"),
        "taken": duration(record["seconds"]) if record.get("seconds") else "",
        "caiflow": record.get("caiflow", ""),
        "seed": record.get("seed"),
        "steps": [_step(run[name], drawn[name].index("●") // 2) for name in run],
        "notes": record.get("notes", []),
        "figures": [_figures(name, metrics) for name, metrics in run.figures.items()],
        "curves": [curve for step in run.values() if step.is_made and (curve := _curves(step))],
        "health": [line for step in run.values() if step.is_made for line in _health(step)],
        "principles": principles(run),
        "settings": _settings(run),
    }


def _step(step: Step, lane: int) -> Json:
    record = step.record
    return {
        "name": step.name,
        "op": step.op,
        "status": step.status,
        "lane": lane,
        "inputs": list(record.get("inputs", ())),
        "error": record.get("error") or "",
        "taken": duration(record["seconds"]) if record.get("seconds") and step.status != "cached" else "",
        "memory": size(record["peak_memory_bytes"]) if record.get("peak_memory_bytes") else "",
        "gpu_hours": record.get("gpu_hours"),
        "metrics": [[path, figure(value)] for path, value in leaves(step.metrics)],
        **{name: record.get(name) for name in COUNTS},
    }


def _figures(step: str, metrics: Mapping[str, Any]) -> Json:
    return {
        "step": step,
        "rates": list(_rates(metrics)),
        "tables": [_plain(table) for table in figures(metrics, step)],
        "frontier": metrics.get("frontier"),
    }


def _rates(metrics: Mapping[str, Any]) -> Iterator[Json]:
    """Yield each set and check with every model's rate, interval and number of answers, and what sets arms apart."""
    models = metrics.get("models") or {}
    places = dict.fromkeys((s, c) for sets in models.values() for s, checks in sets.items() for c in checks)
    for set_name, check in places:
        found = {model: sets.get(set_name, {}).get(check) for model, sets in models.items()}
        rates = [{"model": model, **value} for model, value in found.items() if isinstance(value, Mapping) and "rate" in value]
        if rates and (check not in MARKS or any(rate["rate"] for rate in rates)):
            arms = {name: sets.get(set_name, {}).get(check) for name, sets in (metrics.get("arms") or {}).items()}
            told = {name: in_words(one) for name, one in arms.items() if one}
            yield {"set": set_name, "check": check, "means": MEANINGS.get(check, ""), "rates": rates, "arms": told}


def _plain(table: Table) -> Json:
    """Return a table of the terminal as texts."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title or ""),
        "columns": [str(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*cells, strict=True)],
    }


def _curves(step: Step) -> Json | None:
    history = step.card["history"] if step.kind == "model" else []
    found = {
        name: [[point["step"], point[name]] for point in history if isinstance(point.get(name), int | float)] for name in CURVES
    }
    series = [{"name": name, "points": points} for name, points in found.items() if len(points) > 1]
    return {"step": step.name, "series": series} if series else None


def _health(step: Step) -> Iterator[Json]:
    """Yield each measure that was read of what a step made, with its note where it is out of bounds."""
    notes = {note["measure"]: note for note in step.notes}
    for name, reading in read_artifact(step.path).meta.get("readings", {}).items():
        note = notes.get(name)
        said = f"{reading['flawed']:,} of {reading['of']:,}" if reading.get("of") is not None else ""
        yield {
            "step": step.name,
            "measure": name,
            "value": number(reading["value"]),
            "rows": said,
            "bound": number(note["threshold"]) if note else "",
            "note": note["message"] if note else "",
            "uids": list(reading.get("uids") or ()),
        }


def _settings(run: Run) -> Json:
    spec, lock = run.path / "spec.yaml", run.path / LOCK
    return {
        "spec": spec.read_text(encoding="utf-8") if spec.exists() else "",
        "lock": [[path, figure(value)] for path, value in leaves(read_lock(lock))] if lock.exists() else [],
    }
