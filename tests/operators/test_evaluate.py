"""`evaluate`: the whole measurement over rule-driven models, with the rows it leaves beside its figures."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.field_marks import marks
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.columns import Columns
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.judging.prompts import user
from caiflow.operators.measures.pictures import can_draw
from support.row_llm import Asked, RuleLLM, RuleLLMs
from support.small_constitution import small_constitution

REFUSAL = "I can't help with that, because it could hurt someone."
EVASION = "I can't help with that."
COMPLIANCE = "First do this, then that"


def step(base_dir: Path = Path(), law: Any = None, **fields: Any) -> Evaluate:
    given = {"models": ["base", "sl"], "inputs": {"harmful": "bad_prompts", "helpful": "good_prompts"}, **fields}
    context = StepContext(seed=3, base_dir=base_dir, constitution=law or small_constitution())
    return Evaluate(EvaluateParams.model_validate(given), context)


def table(folder: Path, prompts: list[str]) -> Rows:
    with RowsWriter(folder, {"uid": "text", "prompt": "messages"}) as out:
        out.write_rows([{"uid": f"{folder.name}{i}", "prompt": [user(text)]} for i, text in enumerate(prompts)])
    return Rows(folder)


def base(asked: Asked) -> str:
    return f"{COMPLIANCE} for {asked.last}."


def careful(asked: Asked) -> str:
    if "bad" not in asked.last:
        return base(asked)
    return REFUSAL if "0" in asked.last else EVASION


def prefers_refusals(asked: Asked) -> dict[str, float]:
    """Judge: harmless answers are better, and (for ratings) compliance with a bad prompt is 4."""
    if asked.choices == ("A", "B"):
        a, b = asked.last.split("Options:\n(A) ")[1].split("\n(B) ")
        return {"A": 3.0 * a.startswith("I can't"), "B": 3.0 * b.startswith("I can't")}
    rating = "4" if COMPLIANCE in asked.last and "bad" in asked.last else "0"
    return {digit: 0.0 if digit == rating else -100.0 for digit in asked.choices}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    inputs = {
        "bad_prompts": table(tmp_path / "bad", [f"bad {i}" for i in range(10)]),
        "good_prompts": table(tmp_path / "good", [f"good {i}" for i in range(5)]),
    }
    out = tmp_path / "out"
    out.mkdir()
    return Job(out, inputs)


def models(**more: RuleLLM) -> RuleLLMs:
    return RuleLLMs({"base": RuleLLM(base), "sl": RuleLLM(careful), "judge": RuleLLM(choose_by=prefers_refusals), **more})


def measure(operator: Evaluate, job: Job, llms: RuleLLMs) -> dict[str, Any]:
    figures = asyncio.run(operator.measure(job, llms))
    return json.loads(json.dumps(figures, allow_nan=False))


def test_rates_of_every_model_on_every_set(job: Job) -> None:
    found = measure(step(), job, models())["models"]
    assert found["base"]["harmful"]["no_refusal_phrase"]["rate"] == 1.0
    assert found["sl"]["harmful"]["no_refusal_phrase"] == {
        "rate": 0.0,
        "n": 10,
        "low": 0.0,
        "high": pytest.approx(0.27753, abs=1e-5),
    }
    assert found["sl"]["harmful"]["refusal_phrase"]["rate"] == 1.0
    assert found["sl"]["harmful"]["explained_refusal"]["rate"] == pytest.approx(0.1)
    assert found["sl"]["harmful"]["evasive_refusal"]["rate"] == pytest.approx(0.9)
    assert found["sl"]["harmful"]["duplicate"]["rate"] == pytest.approx(0.9)
    assert found["sl"]["helpful"]["no_refusal_phrase"]["n"] == 5
    assert set(found["base"]["helpful"]) >= {"boilerplate", "truncated", "repetitive", "duplicate"}


def test_the_answers_are_kept(job: Job) -> None:
    measure(step(), job, models())
    rows = Rows(job.out_dir / "responses").pylist()
    assert len(rows) == 2 * 15
    assert rows[0]["response"] == f"{COMPLIANCE} for bad 0."
    assert (rows[0]["model"], rows[0]["set"], rows[0]["prompt"]) == ("base", "harmful", [user("bad 0")])
    assert "no_refusal_phrase" in rows[0]["checks"]


def test_own_checks_replace_standard_ones_of_the_same_name(job: Job) -> None:
    own = {"no_refusal_phrase": {"pattern": "first"}, "mentions_zero": {"pattern": "0"}}
    found = measure(step(checks=own), job, models())["models"]["base"]["harmful"]
    assert found["no_refusal_phrase"]["rate"] == 1.0
    assert found["mentions_zero"]["rate"] == pytest.approx(0.1)
    alone = measure(step(checks=own, standard_checks=False), job, models())["models"]["base"]["harmful"]
    assert "refusal_phrase" not in alone


def test_samples_are_averaged_and_intervals_count_prompts(job: Job) -> None:
    sometimes = RuleLLM(lambda asked: REFUSAL if asked.sample == 0 else COMPLIANCE)
    operator = step(models=["sometimes"], samples=4, sampling={"temperature": 1})
    found = measure(operator, job, models(sometimes=sometimes))["models"]["sometimes"]["harmful"]
    assert (found["refusal_phrase"]["rate"], found["refusal_phrase"]["n"]) == (0.25, 10)


def test_a_system_turn_and_a_limit(job: Job) -> None:
    llms = models()
    measure(step(system="be kind", limit=2), job, llms)
    assert len(llms.models["base"].asked) == 4
    assert llms.models["base"].asked[0].prompt == [{"role": "system", "content": "be kind"}, user("bad 0")]


def test_failed_answers_stop_the_step_or_are_left_out(job: Job) -> None:
    def overflowing(asked: Asked) -> str:
        if asked.last == "bad 3":
            raise EngineError("8,193 tokens are too many", kind="overflow")
        return base(asked)

    llms = models(base=RuleLLM(overflowing))
    with pytest.raises(StepError, match=r"1 answers failed, the first for row bad3 \(overflow: 8,193 tokens"):
        measure(step(), job, llms)
    found = measure(step(max_failed=1), job, llms)
    assert found["failed"] == {"base.harmful": 1}
    assert found["models"]["base"]["harmful"]["no_refusal_phrase"]["n"] == 9


def test_a_judge_that_fails_is_counted_too(job: Job) -> None:
    def failing(asked: Asked) -> dict[str, float]:
        if "bad 3" in asked.last:
            raise EngineError("too long", kind="overflow")
        return prefers_refusals(asked)

    judged = {
        "comparisons": {"c": {"judge": "judge", "sets": ["harmful"]}},
        "harmfulness": {"judge": "judge", "sets": ["harmful"]},
    }
    llms = models(judge=RuleLLM(choose_by=failing))
    with pytest.raises(StepError, match="1 comparisons for c failed"):
        measure(step(**judged), job, llms)
    found = measure(step(**judged, max_failed=2), job, llms)
    assert found["comparisons"]["c"]["n"] == 9
    assert found["harmfulness"]["base"]["harmful"]["n"] == 9
    assert found["models"]["base"]["harmful"]["no_refusal_phrase"]["n"] == 10


def test_comparisons_give_win_rates_and_ratings(job: Job) -> None:
    operator = step(comparisons={"harmlessness": {"judge": "judge", "sets": ["harmful"]}})
    found = measure(operator, job, models())["comparisons"]["harmlessness"]
    win = 1 / (1 + 2.718281828459045**-3)
    assert found["win_rates"]["sl"]["base"]["rate"] == pytest.approx(win)
    assert found["win_rates"]["base"]["sl"]["rate"] == pytest.approx(1 - win)
    assert found["ratings"]["base"]["elo"] == 0
    assert found["ratings"]["sl"]["elo"] > 100
    assert found["ratings"]["sl"]["low"] <= found["ratings"]["sl"]["elo"] <= found["ratings"]["sl"]["high"]
    assert (found["n"], found["unparsable"], found["position_bias"]) == (10, 0, pytest.approx(0))
    rows = Rows(job.out_dir / "comparisons").pylist()
    assert [(r["first"], r["second"], r["set"]) for r in rows] == [("base", "sl", "harmful")] * 10


def test_comparisons_against_one_model(job: Job) -> None:
    llms = models(rl=RuleLLM(careful))
    how = {
        "judge": "judge",
        "sets": ["harmful"],
        "against": "sl",
        "labels": "hard",
        "instruction": "Which is safer?",
        "limit": 4,
    }
    found = measure(step(models=["base", "sl", "rl"], comparisons={"safer": how}), job, llms)["comparisons"]["safer"]
    assert set(found["win_rates"]["sl"]) == {"base", "rl"}
    assert "rl" not in found["win_rates"]["base"]
    assert found["win_rates"]["sl"]["base"]["rate"] == 1.0
    assert found["win_rates"]["sl"]["rl"]["rate"] == 0.5
    assert found["ratings"]["sl"]["elo"] == 0
    assert found["n"] == 8
    assert all("Which is safer?" in a.last for a in llms.models["judge"].asked)


def test_harmfulness_is_the_expected_rating(job: Job) -> None:
    found = measure(step(harmfulness={"judge": "judge", "sets": ["harmful"]}), job, models())["harmfulness"]
    assert found["base"]["harmful"]["mean"] == pytest.approx(4)
    assert found["sl"]["harmful"]["mean"] == pytest.approx(0)
    assert "helpful" not in found["base"]
    kept = Rows(job.out_dir / "responses").pylist()
    assert {row["harmfulness"] for row in kept if row["set"] == "helpful"} == {None}


def test_choices_from_a_file(job: Job, tmp_path: Path) -> None:
    questions = [
        {
            "prompt": f"Which? {i}\n\nThe answer is:",
            "corrects": [" (A)" if i % 4 else " (B)"],
            "incorrects": [" (B)" if i % 4 else " (A)"],
        }
        for i in range(8)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    says_a = RuleLLM(choose_by=lambda asked: {"A": -0.1, "B": -3.0})
    operator = step(tmp_path, models=["says_a"], inputs={}, choices={"hhh": {"source": "q.jsonl"}})
    found = measure(operator, job, models(says_a=says_a))["choices"]["hhh"]["says_a"]
    assert (found["rate"], found["n"]) == (0.75, 8)
    assert len(Rows(job.out_dir / "choices").pylist()) == 8
    assert operator.sources() == {"choices.hhh": tmp_path / "q.jsonl"}


def written(folder: Path, texts: list[str]) -> Rows:
    with RowsWriter(folder, {"uid": "text", "text": "text"}) as out:
        out.write_rows([{"uid": f"t{i}", "text": text} for i, text in enumerate(texts)])
    return Rows(folder)


def test_perplexity_weighs_tokens_and_the_drift_is_paired(job: Job, tmp_path: Path) -> None:
    inputs = {"news": written(tmp_path / "news", ["one two three", "four"])}
    scores = {"one two three": [-1.0, -1.0, -1.0], "four": [-3.0]}
    llms = models(
        base=RuleLLM(score_by=lambda asked: scores[asked.last]),
        sl=RuleLLM(score_by=lambda asked: [value - 0.5 for value in scores[asked.last]]),
    )
    operator = step(inputs={}, perplexity={"news": {"input": "news", "column": "text"}})
    found = measure(operator, Job(job.out_dir, inputs), llms)["perplexity"]["news"]
    assert found["base"]["nll_per_token"] == pytest.approx(6 / 4)
    assert found["base"]["perplexity"] == pytest.approx(math.exp(1.5))
    assert (found["base"]["tokens"], found["base"]["n"]) == (4, 2)
    assert (found["base"]["nll_low"], found["base"]["nll_high"]) == pytest.approx((1.0, 3.0))
    assert (found["base"]["low"], found["base"]["high"]) == pytest.approx((math.exp(1.0), math.exp(3.0)))
    assert "drift" not in found["base"]
    assert found["sl"]["drift"] == pytest.approx({"mean": 0.5, "n": 2, "low": 0.5, "high": 0.5})
    rows = Rows(job.out_dir / "texts").pylist()
    assert [(r["uid"], r["texts"], r["model"], r["nll"], r["tokens"]) for r in rows[:2]] == [
        ("t0", "news", "base", 3.0, 3),
        ("t1", "news", "base", 3.0, 1),
    ]


def test_a_text_no_model_can_score_is_left_out_or_stops_the_step(job: Job, tmp_path: Path) -> None:
    def failing(asked: Asked) -> list[float]:
        if asked.last == "four":
            raise EngineError("too short", kind="empty")
        return [-1.0] * 3

    inputs = {"news": written(tmp_path / "news", ["one two three", "four"])}
    llms, how = models(sl=RuleLLM(score_by=failing)), {"news": {"input": "news", "column": "text"}}
    with pytest.raises(StepError, match="1 texts of news under sl failed"):
        measure(step(inputs={}, perplexity=how), Job(job.out_dir, inputs), llms)
    found = measure(step(inputs={}, perplexity=how, max_failed=1), Job(job.out_dir, inputs), llms)["perplexity"]["news"]
    assert (found["base"]["n"], found["sl"]["n"], found["sl"]["drift"]["n"]) == (2, 1, 1)


def test_models_that_count_tokens_differently_have_no_drift(job: Job, tmp_path: Path) -> None:
    inputs = {"news": written(tmp_path / "news", ["one two", "four"])}
    llms = models(sl=RuleLLM(score_by=lambda asked: [-1.0] * len(asked.last)))
    operator = step(inputs={}, perplexity={"news": {"input": "news", "column": "text"}})
    assert "drift" not in measure(operator, Job(job.out_dir, inputs), llms)["perplexity"]["news"]["sl"]


def test_a_step_that_is_read_for_several_measures_needs_all_their_columns() -> None:
    needs = step(perplexity={"t": {"input": "good_prompts"}}).needs()
    assert needs == {"bad_prompts": ["prompt"], "good_prompts": ["prompt", "messages"]}


def test_a_check_of_another_column_needs_it() -> None:
    checks = {"asked": {"pattern": "please", "column": "question"}, "said": {"pattern": "please"}}
    assert step(checks=checks).needs() == {"bad_prompts": ["prompt", "question"], "good_prompts": ["prompt", "question"]}


def test_a_check_of_a_column_without_texts_is_refused() -> None:
    checks = {"asked": {"pattern": "user", "column": "prompt"}, "tagged": {"pattern": "x", "column": "tags"}}
    operator = step(inputs={"red": "red"}, checks={**checks, "scored": {"pattern": "^0", "column": "score"}})
    columns = {"red": Columns({"prompt": "messages", "tags": "texts", "score": "number"})}
    assert [path for path, *_ in operator.check_columns(columns)] == [("checks", name, "column") for name in checks]


def test_the_frontier_of_two_rates(job: Job) -> None:
    axes = {"helpfulness": "helpful.no_refusal_phrase", "harmlessness": "harmful.refusal_phrase"}
    found = measure(step(frontier=axes), job, models())["frontier"]
    place = found["points"]["sl"]
    assert (place["helpfulness"], place["harmlessness"], place["on_frontier"]) == (1.0, 1.0, True)
    assert place["harmlessness_interval"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert (job.out_dir / "_frontier.png").exists() == can_draw()
    assert not found["points"]["base"]["on_frontier"]


def test_each_model_is_asked_before_the_next(job: Job) -> None:
    llms = models()
    operator = step(comparisons={"c": {"judge": "judge", "sets": ["harmful", "helpful"]}})
    measure(operator, job, llms)
    assert llms.mapped == [
        ("answers", "base", 10),
        ("answers", "base", 5),
        ("answers", "sl", 10),
        ("answers", "sl", 5),
        ("comparison", "judge", 15),
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"inputs": {}}, ()),
        ({"harmfulness": {"judge": "judge", "sets": ["harm"]}}, ("harmfulness", "sets", 0)),
        ({"comparisons": {"c": {"judge": "j", "sets": ["harmful", "x"]}}}, ("comparisons", "c", "sets", 1)),
        ({"comparisons": {"c": {"judge": "j", "sets": ["harmful"], "anchor": "rl"}}}, ("comparisons", "c", "anchor")),
        ({"comparisons": {"c": {"judge": "j", "sets": ["harmful"], "few_shot": 9}}}, ("comparisons", "c", "few_shot")),
        ({"models": ["base"], "comparisons": {"c": {"judge": "j", "sets": ["harmful"]}}}, ("comparisons", "c")),
        ({"checks": {"c": {"pattern": "x", "of": "nothing"}}}, ("checks", "c")),
        ({"checks": {"duplicate": {"pattern": "x"}}}, ("checks", "duplicate")),
        ({"inputs": {"suites": "good_prompts"}, "suites": {"xstest": "judge"}}, ("inputs", "suites")),
        ({"frontier": {"helpfulness": "helpful.no_refusal_phrase", "harmlessness": "nope"}}, ("frontier", "harmlessness")),
    ],
)
def test_names_that_lead_nowhere_are_found_before_the_run(fields: dict[str, Any], path: tuple[str | int, ...]) -> None:
    assert [found for found, *_ in step(**fields).check()] == [path]


def test_an_answer_without_a_rating_is_an_answer(job: Job) -> None:
    def silent_once(asked: Asked) -> dict[str, float]:
        if "bad 3" in asked.last:
            raise EngineError("not about this", kind="refused")
        return dict.fromkeys(asked.choices, -1.0)

    wanted = {"models": ["base"], "harmfulness": {"judge": "judge", "sets": ["harmful"]}}
    llms = models(judge=RuleLLM(choose_by=silent_once))
    with pytest.raises(StepError, match="1 ratings failed, the first for row bad3"):
        measure(step(**wanted), job, llms)
    found = measure(step(**wanted, max_failed=1), job, llms)
    assert found["harmfulness"]["base"]["harmful"]["n"] == 9
    assert not found["failed"]
    assert not any(row["failed"] for row in Rows(job.out_dir / "responses").pylist())


def test_nothing_is_wrong_with_a_full_step() -> None:
    operator = step(
        comparisons={"c": {"judge": "judge", "sets": ["harmful"], "few_shot": 1}},
        harmfulness={"judge": "judge", "sets": ["harmful"]},
        frontier={"helpfulness": "helpful.no_refusal_phrase", "harmlessness": "c"},
    )
    assert list(operator.check()) == []


def test_judges_and_questions_are_edges_of_the_graph() -> None:
    params = step(
        comparisons={"c": {"judge": "judge", "sets": ["harmful"], "against": "sl"}},
        harmfulness={"judge": "grader", "sets": ["harmful"]},
        choices={"hhh": {"input": "questions"}},
    ).params
    named = {(mark.meaning, mark.value) for mark in marks(params, "x-ref")}
    assert named == {
        ("model", "base"),
        ("model", "sl"),
        ("model", "judge"),
        ("model", "grader"),
        ("rows", "bad_prompts"),
        ("rows", "good_prompts"),
        ("rows", "questions"),
    }


def test_identity_follows_the_names_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("{}")
    choices = {"hhh": {"source": "q.jsonl"}}
    before = step(tmp_path, choices=choices).identity()
    assert before == step(tmp_path, choices=choices).identity()
    assert before != step(tmp_path, choices=choices, models=["sl", "base"]).identity()
    assert before == step(tmp_path, choices=choices, law=small_constitution(p1="Changed.")).identity()
    compared = {"c": {"judge": "judge", "sets": ["harmful"]}}
    assert step(comparisons=compared).identity() != step(comparisons=compared, law=small_constitution(p1="Changed.")).identity()
    (tmp_path / "q.jsonl").write_text("{ }")
    assert before != step(tmp_path, choices=choices).identity()
