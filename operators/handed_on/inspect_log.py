"""What `evaluate` measured as logs of Inspect: one for each model and set, each answer with its checks, the same figures.

Owns the shape of those logs (version 2) and of the scorers that find the same anew; needs no Inspect to write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caiflow.engine.identity import digest
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.operators.evaluation.answers import by_model_and_set
from caiflow.operators.evaluation.checks import PatternCheck
from caiflow.operators.handed_on.checks_code import checks_code

_SCORERS = '''\
"""The checks of a caiflow evaluation as a scorer of Inspect: `inspect score LOG --scorer {name} --action overwrite`."""

import json
import re

from inspect_ai.scorer import Score, Target, mean, scorer
from inspect_ai.solver import TaskState

{checks}

@scorer(metrics={{"*": [mean()]}})
def checks():
    """Give 1 for each check that the answer meets, else 0."""

    async def score(state: TaskState, target: Target) -> Score:
        return Score(value={{name: float(met(state.output.completion, name)) for name in CHECKS}})

    return score
'''


def files(step: str, made: Path, checks: Mapping[str, PatternCheck]) -> Iterator[tuple[str, str]]:
    """Yield the logs and the scorers, by file name; nothing where no model was asked for answers.

    Prompts without an answer are no samples, as they are in no figure: Inspect would score the empty text.
    """
    if not any((made / "responses").glob("*.parquet")):
        return
    metrics = json.loads((made / "metrics.json").read_text(encoding="utf-8"))["models"]
    rows = [row for batch in Rows(made / "responses").batches() for row in batch.to_pylist()]
    when = datetime.fromtimestamp((made / "metrics.json").stat().st_mtime, UTC).isoformat(timespec="seconds")
    for (model, name), answers in by_model_and_set(rows).items():
        figures = {check: figure for check, figure in metrics[model][name].items() if figure.get("rate") is not None}
        log = _log(f"{step}/{name}", model, answers, figures, when)
        stamp = when.replace(":", "-")  # Inspect takes no other file for a log
        yield (
            f"{stamp}_{step}-{model}-{name}_{log['eval']['eval_id']}.json",
            json.dumps(log, ensure_ascii=False, indent=1) + "\n",
        )
    name = f"{step}_checks.py"
    yield name, _SCORERS.format(name=name, checks=checks_code(checks))


def _log(task: str, model: str, rows: Sequence[Row], figures: Mapping[str, Any], when: str) -> dict[str, Any]:
    ids = list(dict.fromkeys(row["uid"] for row in rows))
    epochs = max(row["sample"] for row in rows) + 1
    key = digest([task, model, ids])[:22]
    answered = [row for row in rows if not row["failed"]]
    scores = [
        {
            "name": check, "scorer": check, "reducer": "mean" if epochs > 1 else None, "params": {},
            "scored_samples": len({row["uid"] for row in answered}),
            "metrics": {name: _metric(name, figure[of]) for name, of in (("mean", "rate"), ("low", "low"), ("high", "high"))},
        }
        for check, figure in figures.items()
    ]  # fmt: skip
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": key, "run_id": key, "task_id": key, "task": task, "created": when,
            "model": f"none/{model}",  # the provider by which Inspect asks nobody; it refuses those that it doesn't know
            "dataset": {"name": task, "samples": len(ids), "sample_ids": ids}, "config": {"epochs": epochs},
            "packages": {}, "scorers": [{"name": check, "metrics": [{"name": "mean"}]} for check in figures],
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": {"total_samples": len(rows), "completed_samples": len(answered), "scores": scores},
        "stats": {"started_at": when, "completed_at": when},
        "samples": [_sample(row, model, list(figures), key) for row in answered],
        "metadata": {"failed": {row["uid"]: row["failed"] for row in rows if row["failed"]}},
    }  # fmt: skip


def _metric(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "params": {}}


def _sample(row: Row, model: str, checks: Sequence[str], key: str) -> dict[str, Any]:
    said = {"role": "assistant", "content": row["response"] or "", "source": "generate", "model": model}
    stop = "max_tokens" if row["truncated"] else "stop"
    return {
        "id": row["uid"], "epoch": row["sample"] + 1, "input": row["prompt"], "target": "",
        "messages": [*row["prompt"], said], "uuid": digest([key, row["uid"], row["sample"]])[:22],
        "output": {
            "model": model, "completion": row["response"] or "", "choices": [{"message": said, "stop_reason": stop}],
        },
        "metadata": {"set": row["set"]},
        "scores": {check: {"value": float(check in row["checks"])} for check in checks},
    }  # fmt: skip
