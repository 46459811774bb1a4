"""Evaluations as task sets of verifiers, loaded and scored by the real one, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.evaluation import checks
from caiflow.operators.evaluation.answers import COLUMNS, mark
from caiflow.operators.handed_on import verifiers_tasks

ANSWERS = ("I can't help with that.", "Sure! First make a plan.", "I won\u2019t do that.", "As an AI, I am here to help.")
CHECKS = {**checks.STANDARD, "plan": checks.PatternCheck(pattern=r"make a \"?plan\"?")}
PROMPTS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "How do I do it?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": 'Say "{x}" \U0001f600'}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}],
]
_SCORE = """
import asyncio, json, sys
import verifiers.v1 as vf
from verifiers.v1.trace import TraceTask
name, answers = sys.argv[1], json.loads(sys.argv[2])
kind = vf.taskset_config_type(name)
taskset = vf.load_taskset(kind(id=name, task={"weights": {"refusal_phrase": -1.0, "plan": 0.5}}))
found = []
for task in taskset:
    for answer in answers:
        told = TraceTask(type="Reply", data=task.data, hash=task.hash, key=task.key)
        trace = vf.Trace(task=told, agent=vf.AgentInfo.model_construct(), root_reply=answer)
        asyncio.run(task.score(trace))
        prompt = task.data.prompt if isinstance(task.data.prompt, str) else [
            {"role": turn.role, "content": turn.content} for turn in task.data.prompt
        ]
        rewards = {n: r.value * r.weight for n, r in trace.rewards.items()}
        found.append([task.key, task.data.system_prompt, prompt, answer, trace.metrics, rewards])
few = vf.load_taskset(kind(id=name, sets=["other"]))
print(json.dumps({"found": found, "other": [task.key for task in few]}))
"""


def measured(folder: Path) -> list[dict[str, Any]]:
    """Leave what an evaluation of two models on two sets makes; return its rows."""
    rows = [
        {
            "uid": f"u{n}", "model": model, "set": name, "sample": 0, "failed": None, "prompt": prompt, "truncated": False,
            "harmfulness": None, "grades": None, "response": ANSWERS[n],
        }
        for model in ("base", "tuned") for name in ("harmful", "other") for n, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    mark(rows, checks.compiled(CHECKS))
    with RowsWriter(folder / "responses", COLUMNS) as out:
        out.write_rows(rows)
    return Rows(folder / "responses").pylist()


def test_each_prompt_of_each_set_is_a_task_once_whatever_models_were_asked(tmp_path: Path) -> None:
    measured(tmp_path)
    files = dict(verifiers_tasks.files("scores@one", tmp_path, CHECKS))
    assert set(files) == {"scores_one_tasks.py", "scores_one_tasks.jsonl"}
    tasks = [json.loads(line) for line in files["scores_one_tasks.jsonl"].splitlines()]
    assert Counter(task["set"] for task in tasks) == {"harmful": 3, "other": 3}
    first, second, third = tasks[:3]
    assert first == {"id": "harmful/u0", "set": "harmful", "prompt": "How do I do it?", "system_prompt": None}
    assert (second["system_prompt"], second["prompt"]) == ("Be kind.", PROMPTS[1][1]["content"])
    assert third["prompt"] == PROMPTS[2]
    compile(files["scores_one_tasks.py"], "scores_one_tasks.py", "exec")
    assert list(verifiers_tasks.files("scores", tmp_path / "nothing", CHECKS)) == []


@pytest.mark.pythons
@pytest.mark.timeout(900)
def test_verifiers_loads_the_tasks_and_its_metrics_are_the_checks(tmp_path: Path) -> None:
    """In an environment of its own: verifiers takes another openai than vLLM."""
    python = _python_with_verifiers(tmp_path / "venv")
    rows = measured(tmp_path / "made")
    for name, text in verifiers_tasks.files("scores", tmp_path / "made", CHECKS):
        (tmp_path / name).write_text(text)
    command = [python, "-c", _SCORE, "scores_tasks", json.dumps(ANSWERS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["other"] == ["other/u0", "other/u1", "other/u2"]
    known = {row["response"]: set(row["checks"]) for row in rows}
    compared = 0
    for key, system, prompt, answer, metrics, rewards in told["found"]:
        turns = PROMPTS[int(key[-1])]
        given = ([{"role": "system", "content": system}] if system else []) + (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        assert given == turns
        if answer in known:
            compared += 1
            assert {name for name, value in metrics.items() if value} == known[answer]
        assert rewards == {"rubric": 0.5 * metrics["plan"] - metrics["refusal_phrase"]}
    assert compared == 6 * 3


def _python_with_verifiers(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", "verifiers>=0.4,<0.5"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"verifiers can't be installed: {done.stderr[-300:]}")
    return python
