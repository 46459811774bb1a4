"""Graders as rewards: what they are asked about a reply, what a grade counts for, and trainings in which they score.

The model that grades is a function of what it is asked, behind the link that a run has to an engine.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.operator import Expected, StepContext
from caiflow.engine.run.units import StepResult
from caiflow.engine.store.ledger import Ledger
from caiflow.operators.grading.params import ModelGrading
from caiflow.operators.rl import Rl
from caiflow.operators.training.grades import Grades
from caiflow.operators.training.params import RlParams
from support import asked_trainings
from support.asked_trainings import cut_and_resumed
from support.commands import run_here
from support.events import read_events
from support.row_llm import RuleLLM, RuleLLMs
from support.runs_without_ray import AskedLink
from support.small_models import small_model
from support.tiers import few_at_once

PROMPTS = [[{"role": "user", "content": text}] for text in ("How?", "Why?", "When?")]
REPLIES = {1: "So.", 2: "Therefore.", 3: "Now."}


def scores(llm: RuleLLM, told: dict[str, float] | None = None, more: Any = None, **how: Any) -> list[float]:
    grading = ModelGrading.model_validate({"model": "m", **how})
    score = Grades("kind", grading, RuleLLMs({"m": llm}), lambda _, ids: REPLIES[ids[0]])
    log = {} if told is None else told
    return asyncio.run(score(prompts=PROMPTS, completion_ids=[[1], [2], [3]], log_metric=log.__setitem__, more=more))


def test_each_reply_is_asked_about_with_its_prompt_and_its_row_s_columns() -> None:
    llm = RuleLLM(choose_by=lambda asked: {"Yes": 0.0 if "So." in asked.last else -99.0, "No": -1.0})
    question = "{{ topic }}: {{ request }} {{ response }}"
    found = scores(llm, more=[{"topic": topic} for topic in "abc"], question=question)
    assert found == pytest.approx([1 / (1 + math.exp(-1)), 0, 0], abs=1e-5)
    assert [asked.last for asked in llm.asked] == ["a: How? So.", "b: Why? Therefore.", "c: When? Now."]


def test_a_grade_that_can_t_be_read_counts_as_the_others_do_on_the_mean() -> None:
    llm = RuleLLM(say=lambda asked: {"So.": "5", "Therefore.": "I'd say 1.", "Now.": "hm"}[asked.last])
    told: dict[str, float] = {}
    how: dict[str, Any] = {"question": "{{ response }}", "method": "text", "replies": {"1": 1, "5": 5}}
    assert scores(llm, told, **how) == [5, 1, 3]
    assert told == {"early/kind": 0, "unread/kind": pytest.approx(1 / 3)}
    with pytest.raises(StepError, match=r"rewards\.kind: none of 3 grades can be read, the model answered 'hm'"):
        scores(RuleLLM(say=lambda asked: "hm"), **how)


def test_one_that_can_t_be_read_is_as_the_other_replies_to_its_prompt() -> None:
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]]
    said = {"a": "5", "b": "3", "c": "hm", "d": "1"}
    how = ModelGrading.model_validate(
        {"model": "m", "question": "{{ response }}", "method": "text", "replies": {str(n): n for n in (1, 3, 5)}}
    )
    llms = RuleLLMs({"m": RuleLLM(say=lambda asked: said[asked.last])})
    score = Grades("kind", how, llms, lambda _, ids: "abcd"[ids[0]])
    log: dict[str, float] = {}
    found = asyncio.run(score(prompts=prompts, completion_ids=[[n] for n in range(4)], log_metric=log.__setitem__))
    assert found == [5, 3, 4, 1]


def refusing(kind: str) -> RuleLLM:
    def say(asked: Any) -> str:
        if asked.last == "So.":
            raise EngineError("no", kind=kind)
        return "Yes"

    return RuleLLM(say=say)


def test_a_reply_that_is_too_long_for_the_grader_is_unread_and_what_else_fails_fails() -> None:
    told: dict[str, float] = {}
    assert scores(refusing("overflow"), told, question="{{ response }}", method="text") == [1, 1, 1]
    assert told == {"early/kind": 0, "unread/kind": pytest.approx(1 / 3)}
    with pytest.raises(EngineError):
        scores(refusing("refused"), question="{{ response }}", method="text")


# ------------------------------------------------------------------------------------- trainings


def likes_letters(request: Request) -> Answer:
    """Answer Yes the likelier the more of what is between the question's brackets is plain letters."""
    assert not isinstance(request.prompt, str)
    reply = request.prompt[-1]["content"].partition("[")[2][:-1]
    letters = sum(char.isascii() and char.isalpha() for char in reply)
    share = min(0.99, max(0.01, letters / max(1, len(reply))))
    return Completion("", logprobs={"Yes": math.log(share), "No": math.log1p(-share)})


FIELDS: Mapping[str, Any] = {
    **asked_trainings.FIELDS,
    "rewards": {"plain": {"grader": {"model": "m", "question": "Is this plain? [{{ response }}]"}, "weight": 2}},
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"algorithm": "grpo", "num_generations": 4, "max_steps": 9},
    "ppo": {"algorithm": "ppo", "max_steps": 60},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


def carried_out(folder: Path, model: ModelSource, link: AskedLink, **fields: Any) -> StepResult:
    return asked_trainings.carried_out(folder, model, link, **{"rewards": FIELDS["rewards"], **fields})


@pytest.mark.slow
@pytest.mark.parametrize("way", few_at_once(WAYS, "grpo"))
def test_replies_come_to_be_what_the_grader_likes_and_no_verdict_is_paid_twice(
    tmp_path: Path, model: ModelSource, way: str
) -> None:
    whole, cut = AskedLink(says=likes_letters), AskedLink(says=likes_letters)
    undisturbed = carried_out(tmp_path / "whole", model, whole, **WAYS[way])
    metrics = undisturbed.metrics
    curve = [json.loads(line) for line in (tmp_path / "whole/staged/_history.jsonl").read_text().splitlines()]
    rewards = [point["reward"] for point in curve if "reward" in point]
    third = len(rewards) // 3
    assert sum(rewards[-third:]) > sum(rewards[:third])
    assert metrics["rewards_plain_mean"] == pytest.approx(metrics["reward"] / 2, rel=1e-4), "its weight is 2"
    assert metrics["unparsable"] == 0
    asked = {(repr(request.prompt), request.seed) for request in whole.answered}
    assert len(asked) == len(whole.answered) == undisturbed.counts["calls"]

    resumed = cut_and_resumed(tmp_path / "cut", model, cut, rewards=FIELDS["rewards"], save_steps=4, **WAYS[way])
    assert len(cut.answered) == len(whole.answered)
    assert resumed.counts["reused_calls"] > 0
    curves = [(tmp_path / run / "staged/_history.jsonl").read_text() for run in ("whole", "cut")]
    assert curves[0] == curves[1]


def test_replies_are_graded_while_longer_ones_are_drawn(tmp_path: Path) -> None:
    source = small_model(tmp_path / "model")
    settings = tmp_path / "model/generation_config.json"
    ends = list(range(100, 200))  # of 400 tokens: a reply ends after four, on the mean
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": ends}))
    link = AskedLink(says=likes_letters)
    found = carried_out(tmp_path, source, link, **WAYS["grpo"] | {"max_steps": 2})
    assert found.metrics["asked_early"] > 0.6, "all but those that are cut off at eight tokens, 9 in 10"
    asked = {(repr(request.prompt), request.seed) for request in link.answered}
    assert len(asked) == len(link.answered)


def test_a_grader_that_can_t_be_asked_ends_the_training_with_its_words(tmp_path: Path, model: ModelSource) -> None:
    link = AskedLink(says=lambda _: EngineError("the key is wrong", kind="auth"))
    with pytest.raises(EngineError, match="the key is wrong"):
        carried_out(tmp_path, model, link, **WAYS["grpo"])


def test_what_it_is_depends_on_the_question_and_not_on_the_model_s_name() -> None:
    from caiflow.engine.field_marks import identity_params, marks

    def made(model: str, question: str) -> RlParams:
        rewards = {"pm": 1, "kind": {"grader": {"model": model, "question": question}}}
        return RlParams.model_validate({**FIELDS, "rewards": rewards})

    one, renamed, other = made("m", "Is it kind?"), made("n", "Is it kind?"), made("m", "Is it cruel?")
    assert identity_params(one) == identity_params(renamed)
    assert identity_params(one) != identity_params(other)
    named = [(mark.value, mark.path) for mark in marks(one, "x-ref") if mark.path[0] == "rewards"]
    assert named == [("pm", ("rewards", "pm")), ("m", ("rewards", "kind", "grader", "model"))]
    assert json.dumps(identity_params(one)).count("Is it kind?") == 1


def test_the_calls_of_all_processes_are_foreseen() -> None:
    def calls(workers: int) -> Any:
        params = RlParams.model_validate({**FIELDS, **WAYS["grpo"], "resources": {"workers": workers}})
        step = Rl(params, StepContext())
        assert not list(step.check())
        assert list(step.asks()) == ["m"]
        return step.calls_expected({"rows": Expected(36)})

    assert calls(1).number == 9 * 16
    assert calls(2).number == 2 * 9 * 16


def test_a_figure_is_the_mean_of_what_all_processes_noted_of_it() -> None:
    from caiflow.engine.training.private import means_of

    assert means_of([{"unread/a": [0.0], "x": [3.0]}, {"unread/a": [0.5, 1.0]}]) == {"unread/a": 0.5, "x": 3.0}


RUN = """\
caiflow: 1
models: {tiny: {source: tiny}}
steps:
  rows: {op: load, source: rows.jsonl}
  rl:
    {op: rl, input: rows, model: tiny, algorithm: grpo, num_generations: 2, per_device_train_batch_size: 4, max_steps: 2,
     max_completion_length: 12, max_length: 96, learning_rate: 1e-4, temperature: 2, resources: {workers: 2},
     rewards: {kind: {grader: GRADER}}}
"""
GRADER = '{model: tiny, question: "About {{ topic }}: {{ response }} Kind?\\n\\nThe answer is (", replies: {A: 1, B: 0}}'


def trained(address: str, place: Path, run: str) -> dict[str, Any]:
    """Run the spec by two processes; return how its training settled."""
    run_here(address, place / "spec.yaml", place / run, place / "home")
    return next(event for event in read_events(place / run) if event["event"] == "step_done" and event["step"] == "rl")


def verdicts(place: Path) -> set[bytes]:
    """Return the keys of the verdicts that are kept, whichever process wrote them."""
    (folder,) = (place / "home/ledger").glob("rl-*")
    with Ledger(folder.parent, folder.name) as ledger:
        return set(ledger)


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_has_the_graders_engine_beside_the_training_of_several_processes(tmp_path: Path, ray_address: str) -> None:
    lines = [json.dumps({"prompt": f"What of {topic}?", "topic": topic}) for topic in ("tea", "rain", "wool", "salt")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "spec.yaml").write_text(RUN.replace("GRADER", GRADER))
    first = trained(ray_address, tmp_path, "one")
    assert 8 < first["calls"] <= 16, "two draw four replies each, twice"
    assert len(verdicts(tmp_path)) == first["calls"]
    assert 0 < first["metrics"]["rewards_kind_mean"] < 1
    (tmp_path / "spec.yaml").write_text(RUN.replace("GRADER", GRADER).replace("1e-4", "0.00011"))
    again = trained(ray_address, tmp_path, "two")
    assert again["status"] == "done", "another rate is another training"
    assert again["reused_calls"] > 4, "whose first replies are the same, whoever drew them"
    assert len(verdicts(tmp_path)) == first["calls"] + again["calls"]
