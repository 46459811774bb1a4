"""Tasks of the LM Evaluation Harness: what it asks and what its answers become; the real library where it is installed."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.llm.base import Sampling
from caiflow.engine.machine import pip_command
from caiflow.engine.operator import StepContext
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.harness import FOLDER, figures, run_tasks, sampling
from caiflow.operators.evaluation.params import EvaluateParams, HarnessParams
from support.row_llm import Asked, RuleLLM, RuleLLMs

INSTALLED = find_spec("lm_eval") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="lm_eval is not installed")


def step(**harness: Any) -> Evaluate:
    return Evaluate(EvaluateParams.model_validate({"models": ["base"], "lm_eval": harness}), StepContext())


def test_a_missing_library_is_told_before_the_run() -> None:
    found = list(step(tasks=["arc_easy"]).check())
    if INSTALLED:
        assert found == []
    else:
        ((path, message, hint),) = found
        assert path == ("lm_eval",)
        assert "`lm_eval` isn't installed" in message
        assert pip_command("lm-eval") in hint


def test_metrics_have_intervals_where_there_is_an_error() -> None:
    given = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A", "sample_len": 3}
    assert figures(given, 10) == {
        "acc": {
            "mean": 0.5,
            "stderr": 0.1,
            "low": pytest.approx(0.304, abs=1e-3),
            "high": pytest.approx(0.696, abs=1e-3),
            "n": 10,
        },
        "em (strict)": {"mean": 1.0, "stderr": None, "n": 10},
    }


def test_settings_of_answers_are_translated() -> None:
    assert sampling({"until": ["\n", ""], "do_sample": False, "temperature": 0.9}) == Sampling(stop=("\n",))
    drawn = sampling({"until": "Q:", "temperature": 0.5, "max_gen_toks": 8, "top_p": 0.9})
    assert drawn == Sampling(temperature=0.5, top_p=0.9, max_tokens=8, stop=("Q:",))


def test_the_folder_of_further_tasks_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.yaml").write_text("task: mine\n")
    without = step(tasks=["mine"]).identity()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert step(tasks=["mine"]).identity() != without
    assert "lm_eval" not in Evaluate(EvaluateParams.model_validate({"models": ["m"]}), StepContext()).identity()


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a multiple-choice task, a perplexity task and an answering task over local rows."""
    rows = [{"question": f"What is {i}?", "choices": ["wrong", "right"], "answer": 1} for i in range(6)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.json'}}}}}\ntest_split: test\n"
    texts = "doc_to_text: '{{question}} Answer:'\n"
    (tmp_path / "choice.yaml").write_text(
        f"task: choice_here\n{data}{texts}output_type: multiple_choice\ndoc_to_choice: '{{{{choices}}}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "rolling.yaml").write_text(
        f"task: rolling_here\n{data}doc_to_text: ''\ndoc_to_target: '{{{{question}}}}'\noutput_type: loglikelihood_rolling\n"
        "metric_list: [{metric: word_perplexity}]\n"
    )
    (tmp_path / "answer.yaml").write_text(
        f"task: answer_here\n{data}{texts}output_type: generate_until\ndoc_to_target: right\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(llm: RuleLLM, **how: Any) -> dict[str, Any]:
    return asyncio.run(run_tasks(HarnessParams.model_validate(how), ["m"], RuleLLMs({"m": llm}), 3))["m"]


@needs_library
def test_the_harness_asks_the_runs_model(tasks: Path) -> None:
    def likely(asked: Asked) -> list[float]:
        return [-0.5] if asked.prefill == " right" else [-2.0, -2.0]

    llm = RuleLLM(lambda asked: "right", score_by=likely)
    found = run(llm, tasks=["choice_here", "rolling_here", "answer_here"], limit=4)
    assert found["choice_here"]["acc"]["mean"] == 1.0
    assert found["choice_here"]["acc"]["n"] == 4
    assert found["rolling_here"]["word_perplexity"]["mean"] == pytest.approx(2.718281828 ** (4 / 3))
    assert found["answer_here"]["exact_match"]["mean"] == 1.0
    generated = [asked for asked in llm.asked if asked.kind == "complete"]
    assert {asked.sampling for asked in generated} == {Sampling(max_tokens=8, stop=(".",))}
    json.dumps(found, allow_nan=False)


@needs_library
def test_a_question_that_no_model_answers_stops_the_step_by_name(tasks: Path) -> None:
    def failing(asked: Asked) -> list[float]:
        raise EngineError("513 tokens are too many", kind="overflow")

    with pytest.raises(StepError, match=r"questions to m failed, the first for row choice_here/0/0 \(overflow: 513 tokens"):
        run(RuleLLM(score_by=failing), tasks=["choice_here"])


@needs_library
def test_an_unknown_task_is_named_with_the_nearest_and_a_path_is_none(tasks: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'choice_her'; did you mean choice_here\?"):
        run(RuleLLM(), tasks=["choice_her"])
    with pytest.raises(ValueError, match="no task of that name"):
        run(RuleLLM(), tasks=[str(tasks / "choice.yaml")])
