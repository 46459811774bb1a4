"""Evaluations as logs of Inspect, read, rescored and listed by the real one, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.rows.folder import RowsWriter
from caiflow.operators.evaluation import checks
from caiflow.operators.evaluation.answers import COLUMNS, by_model_and_set, mark, rates
from caiflow.operators.handed_on import inspect_log

ANSWERS = (
    "I can't help with that, because it would hurt people.",
    "Sure! First make a plan.",
    "I won\u2019t do that.",
    "",
    "As an AI, I am here to help.",
)
CHECKS = {**checks.STANDARD, "plan": checks.PatternCheck(pattern=r"make a \"?plan\"?")}
_READ = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log
found = {}
for info in list_eval_logs(sys.argv[1]):
    log = read_eval_log(info)
    scores = {s.name: {name: metric.value for name, metric in s.metrics.items()} for s in log.results.scores}
    said = [[sample.id, sample.epoch, sample.output.completion] for sample in log.samples]
    found[log.eval.task + " " + log.eval.model] = {"status": log.status, "scores": scores, "samples": said}
print(json.dumps(found))
"""


def measured(folder: Path, samples: int = 1) -> dict[str, Any]:
    """Leave what an evaluation makes of some answers; return its figures."""
    rows = [
        {
            "uid": f"u{n}", "model": model, "set": "harmful", "sample": sample, "failed": "no answer" if n == 5 else None,
            "prompt": [{"role": "user", "content": f"How do I do {n}?"}], "truncated": n == 1,
            "harmfulness": None, "grades": None,
            "response": "" if n == 5 else ANSWERS[(n + sample + (model == "tuned")) % len(ANSWERS)],
        }
        for model in ("base", "tuned") for n in range(6) for sample in range(samples)
    ]  # fmt: skip
    figures: dict[str, Any] = {}
    for (model, name), group in by_model_and_set(rows).items():
        mark(group, checks.compiled(CHECKS))
        figures.setdefault(model, {})[name] = rates(group, list(CHECKS))
    with RowsWriter(folder / "responses", COLUMNS) as out:
        out.write_rows(rows)
    (folder / "metrics.json").write_text(json.dumps({"models": figures}))
    return figures


@pytest.mark.parametrize("samples", [1, 3])
def test_each_answer_has_its_checks_and_their_mean_is_the_figure(tmp_path: Path, samples: int) -> None:
    figures = measured(tmp_path, samples)
    files = dict(inspect_log.files("scores", tmp_path, CHECKS))
    logs = {name.split("_")[1]: json.loads(text) for name, text in files.items() if name.endswith(".json")}
    assert set(logs) == {"scores-base-harmful", "scores-tuned-harmful"}
    for model, sets in figures.items():
        log = logs[f"scores-{model}-harmful"]
        for score in log["results"]["scores"]:
            figure = sets["harmful"][score["name"]]
            assert score["metrics"]["mean"]["value"] == figure["rate"]
            assert (score["metrics"]["low"]["value"], score["metrics"]["high"]["value"]) == (figure["low"], figure["high"])
            told = [sample["scores"][score["name"]]["value"] for sample in log["samples"]]
            assert sum(told) / len(told) == pytest.approx(figure["rate"])
        assert len(log["samples"]) == 5 * samples
        assert log["metadata"] == {"failed": {"u5": "no answer"}}


def test_nothing_is_written_where_no_model_was_asked(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    assert list(inspect_log.files("scores", tmp_path, CHECKS)) == []


@pytest.fixture(scope="module")
def inspect_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with Inspect, whose fsspec is another than `datasets` takes."""
    folder = tmp_path_factory.mktemp("inspect")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", "inspect-ai>=0.3.285"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Inspect can't be installed: {done.stderr[-300:]}")
    return python


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("samples", [pytest.param(1, marks=pytest.mark.campaign), 3])
def test_inspect_reads_and_scores_them_to_the_same_figures(tmp_path: Path, inspect_python: str, samples: int) -> None:
    figures = measured(tmp_path / "made", samples)
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, text in inspect_log.files("scores", tmp_path / "made", CHECKS):
        (logs / name).write_text(text)
    found = _run([inspect_python, "-c", _READ, str(logs)])
    assert set(found) == {"scores/harmful none/base", "scores/harmful none/tuned"}
    for model, sets in figures.items():
        log = found[f"scores/harmful none/{model}"]
        assert log["status"] == "success"
        assert len(log["samples"]) == 5 * samples
        for check, figure in sets["harmful"].items():
            assert log["scores"][check] == {"mean": figure["rate"], "low": figure["low"], "high": figure["high"]}
    scorer = f"{logs / 'scores_checks.py'}@checks"
    for path in sorted(logs.glob("*.json")):
        command = [str(Path(inspect_python).with_name("inspect")), "score", str(path), "--scorer", scorer]
        done = subprocess.run([*command, "--action", "overwrite", "--overwrite"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    again = _run([inspect_python, "-c", _READ, str(logs)])
    for model, sets in figures.items():
        scores = again[f"scores/harmful none/{model}"]["scores"]
        for check in CHECKS:
            assert scores[check]["mean"] == pytest.approx(sets["harmful"][check]["rate"]), check


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
