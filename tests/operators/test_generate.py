"""`generate`: what is sent for an answer and how the answers become columns or rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.constitution.load import Constitution, load_constitution
from caiflow.engine.field_marks import identity_params
from caiflow.engine.llm.base import Completion, Sampling
from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.operators.generate import Generate, GenerateParams
from caiflow.operators.judging.prompts import assistant, user
from support.row_llm import RuleLLM

TALK = [user("hello"), assistant("hi"), user("and now?")]


def step(**fields: Any) -> Generate:
    return Generate(GenerateParams.model_validate({"input": "prompts", "model": "base", **fields}), StepContext())


def run(operator: Generate, llm: RuleLLM, prompt: Any = TALK) -> Row | list[Row]:
    return asyncio.run(operator.row({"uid": "r", "prompt": prompt}, llm))


def test_the_whole_conversation_is_asked_once() -> None:
    llm = RuleLLM()
    assert run(step(sampling={"max_tokens": 7, "stop": ["\n"]}), llm) == {"response": "answer to and now?", "truncated": False}
    (asked,) = llm.asked
    assert (asked.kind, asked.prompt) == ("chat", TALK)
    assert asked.sampling == Sampling(max_tokens=7, stop=("\n",))


def test_each_sample_has_its_own_sampling_and_inherits_the_rest() -> None:
    llm = RuleLLM(lambda asked: f"at {asked.sampling.temperature}")
    operator = step(sampling={"max_tokens": 9, "temperature": 0.3}, samples=[{"temperature": 0}, {"top_p": 0.5}])
    given = run(operator, llm)
    assert given["responses"] == ["at 0.0", "at 0.3"]
    assert given["response"] == "at 0.0"
    assert [(a.sample, a.sampling) for a in llm.asked] == [
        (0, Sampling(max_tokens=9)),
        (1, Sampling(max_tokens=9, temperature=0.3, top_p=0.5)),
    ]
    assert operator.calls() == 2


def test_a_number_of_samples_differs_by_seed_only() -> None:
    llm = RuleLLM(lambda asked: str(asked.sample))
    given = run(step(samples=3, sampling={"temperature": 1}), llm)
    assert given["responses"] == ["0", "1", "2"]
    assert {a.sampling for a in llm.asked} == {Sampling(temperature=1.0)}


def test_reasoning_is_a_column_of_its_own() -> None:
    found = run(step(), RuleLLM(lambda asked: Completion("No.", thought="Hm.")))
    assert (found["response"], found["thought"]) == ("No.", "Hm.")


def test_samples_as_rows() -> None:
    operator = step(samples=2, samples_as="rows")
    given = run(operator, RuleLLM(lambda asked: str(asked.sample)))
    assert given == [
        {"response": "0", "truncated": False, "sample": 0},
        {"response": "1", "truncated": False, "sample": 1},
    ]
    assert set(operator.writes()) == {*given[0], "thought"}


def test_inherited_sampling_is_part_of_the_identity() -> None:
    spelled = step(sampling={"max_tokens": 64}, samples=[{"max_tokens": 256}])
    inherited = step(sampling={"max_tokens": 64}, samples=[{}])
    assert spelled.identity() != inherited.identity()


def test_a_prefill_is_part_of_the_response() -> None:
    llm = RuleLLM(lambda asked: " of course")
    assert run(step(prefill="Yes,"), llm)["response"] == "Yes, of course"
    assert llm.asked[0].prefill == "Yes,"


def test_a_system_turn_replaces_the_prompts_own() -> None:
    llm = RuleLLM()
    run(step(system="be kind"), llm, [{"role": "system", "content": "be rude"}, user("hello")])
    assert llm.asked[0].prompt == [{"role": "system", "content": "be kind"}, user("hello")]


def test_a_given_template_is_handed_on() -> None:
    llm = RuleLLM()
    run(step(template="{{ messages }}"), llm)
    assert llm.asked[0].template == "{{ messages }}"


@pytest.mark.parametrize(("keep", "kept"), [("first", "hello"), ("last", "and now?")])
def test_kept_turns_are_written_back(keep: str, kept: str) -> None:
    llm, operator = RuleLLM(), step(keep=keep)
    given = run(operator, llm)
    assert given["prompt"] == llm.asked[0].prompt == [user(kept)]
    assert operator.writes()["prompt"] == "messages"


def test_a_transcript_needs_no_chat_template() -> None:
    llm = RuleLLM(lambda asked: " fine, thanks\n")
    given = run(step(mode="transcript"), llm)
    (asked,) = llm.asked
    assert asked.kind == "complete"
    assert asked.prompt == "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: and now?\n\nAssistant:"
    assert asked.sampling.stop == ("\n\nHuman:",)
    assert given["response"] == "fine, thanks"


SHOWN = [{"prompt": "why?", "response": "so"}, {"prompt": "who?", "response": "me"}]


@pytest.mark.parametrize(
    ("mode", "prompt"),
    [
        ("transcript", "\n\nHuman: why?\n\nAssistant: so\n\nHuman: who?\n\nAssistant: me\n\nHuman: hello\n\nAssistant:"),
        ("raw", "why?\n\nso\n\nwho?\n\nme\n\nhello"),
        ("chat", [{"role": "system", "content": "be kind"}, *map(user, ["why?", "so", "who?", "me", "hello"])]),
    ],
)
def test_examples_stand_before_the_prompt_in_every_mode_and_not_in_the_row(mode: str, prompt: Any) -> None:
    llm = RuleLLM()
    given = run(step(mode=mode, few_shot=SHOWN, **({"system": "be kind"} if mode == "chat" else {})), llm, [user("hello")])
    asked = llm.asked[0].prompt
    if mode == "chat":
        assert [turn["content"] for turn in asked] == [turn["content"] for turn in prompt]
        assert [turn["role"] for turn in asked] == ["system", "user", "assistant", "user", "assistant", "user"]
    else:
        assert asked == prompt
    assert "prompt" not in given


def test_examples_are_in_the_identity_and_their_absence_changes_none() -> None:
    assert "few_shot" not in {**identity_params(step().params), **step().identity()}
    assert step(few_shot=SHOWN).identity() != step(few_shot=SHOWN[:1]).identity() != step().identity()


def test_examples_of_the_constitution_are_its_prompts_and_first_answers() -> None:
    constitution = load_constitution("harmless")

    def shown(number: int, known: Constitution | None = constitution) -> Generate:
        params = GenerateParams.model_validate({"input": "prompts", "model": "base", "few_shot": number})
        return Generate(params, StepContext(constitution=known))

    llm, (first, *_) = RuleLLM(), constitution.few_shot_critique
    run(shown(1), llm, [user("hello")])
    assert llm.asked[0].prompt == [*first.prompt, assistant(first.response), user("hello")]
    assert "few_shot" not in shown(0, None).identity()
    assert shown(1).identity() != shown(2).identity()
    ((path, told, hint),) = shown(99).check()
    have = len(constitution.few_shot_critique)
    assert (path, told, hint) == (
        ("few_shot",), f"constitution {constitution.name} has {have} examples, got 99", f"ask for at most {have}",
    )  # fmt: skip
    ((_, told, hint),) = shown(1, None).check()
    assert (told, hint) == ("no constitution has the examples", "list them: [{prompt: ..., response: ...}]")


def test_a_raw_prompt_is_its_bare_text() -> None:
    llm = RuleLLM()
    run(step(mode="raw", sampling={"stop": ["###"]}), llm, [user("once upon a time")])
    assert (llm.asked[0].prompt, llm.asked[0].sampling.stop) == ("once upon a time", ("###",))


def test_answers_that_were_cut_are_marked_and_counted() -> None:
    operator = step()
    given = run(operator, RuleLLM(lambda asked: Completion("abcd", "length")))
    assert given["truncated"]
    rows = [given, {"response": "ab", "truncated": False}]
    assert operator.metrics(rows, {}) == {"truncated": 0.5, "mean_chars": 3.0}


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": []}, {"mode": "text"}, {"sampling": {"temperature": -1}}])
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        step(**wrong)


def test_a_new_answer_leaves_out_what_was_said_of_an_earlier_one() -> None:
    before = Columns(dict.fromkeys(("uid", "prompt", "response", "revision", "critique", "messages", "topic"), "text"))
    assert set(step().columns({"prompts": before}).types) == {"uid", "prompt", "response", "truncated", "thought", "topic"}
    kept = step(keep_columns=["revision"]).columns({"prompts": before})
    assert set(kept.types) == {"uid", "prompt", "response", "truncated", "thought", "topic", "revision"}
    two, one = step(samples=2).columns({"prompts": before}), step()
    assert "responses" not in one.columns({"prompts": two}).types
    assert not list(step(keep_columns=["revision"]).check())
    ((path, message, _),) = step(keep_columns=["topic"]).check()
    assert (path, message) == (("keep_columns", 0), "`topic` stays anyway")


def test_what_a_source_preferred_is_not_taken_for_a_judgement_of_the_new_answers() -> None:
    given = Columns(
        {"uid": "text", "prompt": "messages", "chosen": "text", "rejected": "text", "p_chosen": "number", "topic": "text"}
    )
    assert set(step().columns({"prompts": given}).types) == {"uid", "prompt", "topic", "response", "truncated", "thought"}
    kept = step(keep_columns=["chosen"]).columns({"prompts": given}).types
    assert "chosen" in kept
    assert "rejected" not in kept
