"""`caiflow doctor --try`: the real trials on this machine, and what is said of trials that end badly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from caiflow.engine.commands.diagnosis import Diagnosis
from caiflow.engine.commands.trials import engines, runs, trainings
from caiflow.engine.commands.trials.bench import make
from caiflow.engine.commands.trials.table import TRIALS, Trial, chosen
from caiflow.engine.errors import SpecError
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.operator import Job
from caiflow.engine.training.loop import write_history

TESTS = Path(__file__).parents[2]


def doctor(home: Path, *trials: str, path: str = "") -> tuple[int, dict[str, dict[str, str]]]:
    """Return the command's exit code and what it found, by what was tried."""
    environment = {**os.environ, "CAIFLOW_HOME": str(home), "PYTHONPATH": path, "TMPDIR": str(home)}
    command = [sys.executable, "-m", "caiflow.engine.cli", "doctor", "--json", "--try", *trials]
    home.mkdir(exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, {diagnosis["what"]: diagnosis for diagnosis in json.loads(done.stdout)["findings"]}


def tried(
    body: str, parts: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float = 120
) -> list[Diagnosis]:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return list(make(Trial(body, f"support.planted_trials:{body}", tuple(parts), limit_s), folder))


def verdicts(found: Sequence[Diagnosis]) -> list[str]:
    return [diagnosis.verdict for diagnosis in found]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets, which may have 107 bytes in all."""
    with tempfile.TemporaryDirectory(prefix="dr") as folder:
        yield Path(folder)


EVERYTHING = [trial.name for trial in TRIALS if trial.name != "vllm"]


@pytest.mark.slow
@pytest.mark.soak
def test_engines_trainings_and_ray_are_tried_on_this_machine_in_one_command(short_path: Path) -> None:
    code, found = doctor(short_path, *EVERYTHING)
    parts = [part for trial in chosen(EVERYTHING) for part in trial.parts]
    assert [found[part]["detail"] for part in parts if found[part]["verdict"] == "broken"] == []
    assert code == 0
    assert "loss" in found["train float32"]["detail"]
    assert "after" not in found
    assert not list(short_path.glob("caiflow-doctor-*"))  # nothing is left where all is well


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.soak
def test_vllm_is_held_against_transformers_in_every_kind_of_request(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "vllm")
    (trial,) = chosen(["vllm"])
    assert [found[part]["verdict"] for part in trial.parts] == ["ok"] * 6, found
    assert code == 0


@pytest.mark.soak
def test_a_broken_vllm_is_named_with_its_cause_and_makes_the_command_fail(tmp_path: Path) -> None:
    package = tmp_path / "path" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    code, found = doctor(tmp_path / "home", "vllm", path=str(package.parent))
    assert code == 1
    assert found["vllm starts"]["verdict"] == "broken"
    assert "libcudart.so.13: cannot open shared object file" in found["vllm starts"]["detail"]
    assert found["vllm answers"] == {"what": "vllm answers", "verdict": "skipped", "detail": "vLLM didn't start", "hint": ""}
    log = Path(found["vllm starts"]["hint"].removeprefix("the whole output is in "))
    assert "Traceback" in log.read_text()


def test_each_part_has_its_own_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ("fine", "absent", "wrong", "fine again")
    found = tried("mixed", parts, tmp_path, monkeypatch)
    assert [diagnosis.what for diagnosis in found] == list(parts)
    assert verdicts(found) == ["ok", "skipped", "broken", "ok"]
    assert found[1].detail == "there is none here"
    assert found[2].detail == "ZeroDivisionError: division by zero"


def test_a_crash_is_a_line_with_the_signal_and_the_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried("crashing", ("fine", "crash", "later"), tmp_path, monkeypatch)
    assert verdicts(found) == ["ok", "broken", "skipped"]
    assert found[1].detail.startswith("its process was ended by SIGSEGV: ")
    assert "illegal memory access" in found[1].detail
    assert found[2].detail == "crash is broken"


def test_what_a_trial_leaves_behind_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = tried("leaving", ("never",), tmp_path, monkeypatch, limit_s=3600)
    assert found.verdict == "broken"
    assert "RuntimeError: no such device" in found.detail
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_trial_that_hangs_is_ended_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = tried("hanging", ("hang",), tmp_path, monkeypatch, limit_s=5)
    assert (found.verdict, found.detail.startswith("took longer than 5 s")) == ("broken", True)


def test_a_trial_that_isn_t_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="no trial 'spred'; did you mean `spread`"):
        chosen(["spred"])
    assert chosen([]) == list(TRIALS)


class WrongEngine:
    """An engine that answers at once and wrongly; no real one can be had that does."""

    capacity = 8

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.asked: list[int] = []

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        self.asked += [number for number, _ in requests]

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        numbers, self.asked = self.asked, []
        return [(number, self.completion) for number in numbers]

    def close(self) -> None:
        return


def test_answers_and_log_probabilities_that_differ_are_broken(tmp_path: Path) -> None:
    right = Completion("Happy to help.", prompt_logprobs=(-1.0, -2.0), logprobs={"A": -0.5, "B": -1.5})
    wrong = right._replace(text="Happy to.", prompt_logprobs=(-1.0, -2.5), logprobs={"A": -1.5, "B": -0.5})
    expected: dict[str, list[Answer]] = {"answers": [right] * 8, "scores": [right] * 4, "choices": [right] * 4}
    pair = engines._Pair(tmp_path, WrongEngine(right), expected)
    assert [part() for part in (pair.answers, pair.scores, pair.choices)]
    pair = replace(pair, engine=WrongEngine(wrong))
    with pytest.raises(AssertionError, match=r"'Happy to\.' instead of 'Happy to help\.'"):
        pair.answers()
    for part in (pair.scores, pair.choices):
        with pytest.raises(AssertionError, match=r"0\.\d+ nats from those of transformers, more than"):
            part()
    pair = replace(pair, engine=WrongEngine(wrong._replace(prompt_logprobs=(float("nan"), -2.0))))
    with pytest.raises(AssertionError, match="nan nats"):
        pair.scores()


@pytest.mark.parametrize(("losses", "good"), [((3.0, 2.0), True), ((2.0, 2.5), False), ((2.0, float("nan")), False)])
def test_a_training_whose_loss_doesn_t_go_down_is_broken(tmp_path: Path, losses: tuple[float, ...], good: bool) -> None:
    points: list[dict[str, Any]] = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    write_history(tmp_path, points)
    if good:
        assert "loss 3.000 to 2.000" in trainings._learnt(Job(tmp_path))
    else:
        with pytest.raises(AssertionError, match="the loss doesn't go down"):
            trainings._learnt(Job(tmp_path))


@pytest.mark.parametrize(
    ("seen", "said"),
    [([["a"], ["b"]], ""), ([["a", "b"], ["a"]], "a worker with one GPU sees 2"), ([["a"], ["a"]], "given the same GPU")],
)
def test_workers_must_see_one_gpu_each_and_none_twice(seen: list[list[str]], said: str) -> None:
    if not said:
        assert "see that one alone" in runs.judge_sight(seen)
    else:
        with pytest.raises(AssertionError, match=said):
            runs.judge_sight(seen)
