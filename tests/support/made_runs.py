"""Finished runs made by hand in the real store: one step of each kind, with the rows that a test wants. No model is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.identity import digest
from caiflow.engine.plan.components import TEXTS
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.artifacts import Artifact, Store

PRINCIPLES = [{"id": "kind", "rule": "Be kind."}, {"id": "honest", "rule": "Be honest <b>always</b>."}]
RATES = {"base": 0.9, "tuned": 0.1}


def plain_rows(number: int) -> list[dict[str, Any]]:
    """Return rows that went through critique and revision; every fourth revision changes nothing."""
    return [
        {
            "uid": f"{i:08x}",
            "prompt": [{"role": "user", "content": f"How do I make thing {i}?"}],
            "response": f"First take number {i}, then wait.",
            "principle": PRINCIPLES[i % 2]["id"],
            "critique": f"The answer {i} is rude.",
            "revision": f"First take number {i}, then wait." if i % 4 == 0 else f"Please take number {i} kindly, then wait.",
        }
        for i in range(number)
    ]


def made_run(home: Path, run_dir: Path, rows: Sequence[dict[str, Any]], *, name: str = "made", rate: float = 0.1) -> Path:
    """Leave the run of a small recipe, and what its steps made, in a store at `home`."""
    store = Store(home)
    without = {"red": ("response", "principle", "critique", "revision"), "answers": ("principle", "critique", "revision")}
    steps: dict[str, Any] = {}

    def step(made: str, op: str, inputs: list[str], artifact: Artifact, **more: Any) -> None:
        (run_dir / "steps").mkdir(parents=True, exist_ok=True)
        (run_dir / "steps" / made).symlink_to(artifact.path)
        record = {"op": op, "digest": artifact.digest, "status": "done", "inputs": inputs, "seconds": 3.0, "metrics": {}}
        steps[made] = {**record, "rows_in": artifact.rows_in, "rows_out": artifact.rows_out, **more}

    chain = {"red": "load", "answers": "generate", "critiques": "critique", "revisions": "revise"}
    for source, (made, op) in zip(["", *chain], chain.items(), strict=False):
        gone = without.get(made, ("revision",) if made == "critiques" else ())
        kept = [{key: value for key, value in row.items() if key not in gone} for row in rows]
        step(made, op, [source] if source else [], _rows(store, run_dir, made, kept, []))
    left = [row for row in rows if row["revision"] == row["response"]]
    kept = [row for row in rows if row["revision"] != row["response"]]
    step("clean", "filter", ["revisions"], _rows(store, run_dir, "clean", kept, left), dropped=len(left))
    judged = [
        {
            **{key: kept[i][key] for key in ("uid", "prompt")}, "chosen": kept[i]["revision"], "rejected": kept[i]["response"],
            "principle": "kind", "principles": ["kind"], "outcome": "decided", "p_chosen": 0.8, "margin": 0.6,
            "p_a": [0.9, 0.9] if i % 2 else [0.9, 0.1], "unparsable_votes": 0,
        }
        for i in range(min(8, len(kept)))
    ]  # fmt: skip
    figures = {"order_flips": 0.5, "ties": 0.0, "entropy_bits": 0.72}
    step("judged", "judge", ["clean"], _rows(store, run_dir, "judged", judged, []), metrics=figures)
    step("tuned", "sft", ["clean"], _model(store, run_dir), metrics={"train_loss": 0.9})
    step("scores", "evaluate", ["red"], _scores(store, run_dir, rate))
    note = {
        "step": "judged",
        "measure": "order_flips",
        "value": 0.5,
        "threshold": 0.4,
        "uids": [judged[0]["uid"]] if judged else [],
    }
    notes = [{**note, "message": "judgements that flip with the order of the answers: 50%; the judge goes by position"}]
    run = {"name": name, "status": "done", "started": 1.8e9, "seconds": 61.0, "caiflow": "0.1.0", "seed": 7, "steps": steps}
    (run_dir / "run.json").write_text(json.dumps({**run, "notes": notes}))
    (run_dir / "spec.yaml").write_text("caiflow: 1\nseed: 7\n")
    (run_dir / TEXTS).write_text(json.dumps({digest(one): one for one in PRINCIPLES}))
    store.record_run(name, run_dir, artifacts=[record["digest"] for record in steps.values()])
    return run_dir


def _rows(
    store: Store, run_dir: Path, name: str, rows: Sequence[dict[str, Any]], dropped: Sequence[dict[str, Any]]
) -> Artifact:
    staged = store.stage(digest([str(run_dir), name]))
    with RowsWriter(staged) as out:
        out.write_rows(rows)
        if dropped:
            out.drop(dropped, "unchanged")
    reading = {"order_flips": {"value": 0.5, "flawed": 4, "of": 8, "uids": [row["uid"] for row in rows[:1]]}}
    meta = {"kind": "rows", "rows_in": len(rows) + len(dropped), "rows_out": len(rows)}
    return store.seal(digest([str(run_dir), name]), staged, {**meta, "readings": reading if name == "judged" else {}})


def _model(store: Store, run_dir: Path) -> Artifact:
    staged = store.stage(digest([str(run_dir), "tuned"]))
    (staged / "config.json").write_text('{"architectures": ["Small"]}')
    points = [{"step": i, "loss": 3 / i, "reward": i / 10, "kl": i / 100} for i in range(1, 40)]
    (staged / "_history.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return store.seal(digest([str(run_dir), "tuned"]), staged, {"kind": "model", "metrics": {"train_loss": 0.9}})


def _scores(store: Store, run_dir: Path, rate: float) -> Artifact:
    staged = store.stage(digest([str(run_dir), "scores"]))
    rates = {**RATES, "tuned": rate}
    models = {
        model: {
            "harmful": {"no_refusal_phrase": {"rate": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1), "n": 40}},
            "helpful": {"no_refusal_phrase": {"rate": 0.95, "low": 0.85, "high": 0.99, "n": 40}},
        }
        for model, value in rates.items()
    }
    points = {
        model: {
            "helpfulness": 0.95, "harmlessness": 1 - value, "helpfulness_interval": [0.85, 0.99],
            "harmlessness_interval": [0.9 - value, min(1, 1.1 - value)], "on_frontier": model == "tuned",
        }
        for model, value in rates.items()
    }  # fmt: skip
    frontier = {"helpfulness": "helpful.no_refusal_phrase", "harmlessness": "harmful.refusal_phrase", "points": points}
    (staged / "metrics.json").write_text(json.dumps({"models": models, "frontier": frontier}))
    return store.seal(digest([str(run_dir), "scores"]), staged, {"kind": "metrics"})
