"""Rows become the ids that serving sees, and loss falls on the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.llm.base import ModelSource, Request
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.models import load_tokenizer
from caiflow.engine.training.tokens import (
    IGNORED,
    Blank,
    conversation_of,
    conversations,
    labelled,
    preference_of,
    preferences,
    prompts,
    reply_ids,
)
from support.small_models import saved
from support.tables import rows_of

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How do I bake?"},
    {"role": "assistant", "content": "Find the cake."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Bake it."},
]
MULTI_LINE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(scope="module")
def renderer(model: ModelSource) -> Renderer:
    return Renderer(load_tokenizer(model))


def learnt(renderer: Renderer, ids: list[int], labels: list[int]) -> str:
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return str(renderer.tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != IGNORED]))


@pytest.mark.parametrize("template", ["", MULTI_LINE])
@pytest.mark.parametrize("loss_on", ["assistant", "completion", "all"])
def test_the_prompt_has_the_ids_that_serving_gives_it(model: ModelSource, template: str, loss_on: Any) -> None:
    renderer = Renderer(load_tokenizer(model), template)
    served = renderer.ids(Request(tuple(TALK[:-1])))  # type: ignore[arg-type]
    ids, _ = labelled(renderer, TALK, loss_on)  # type: ignore[arg-type]
    assert ids[: len(served)] == served
    assert ids[-1] == renderer.tokenizer.eos_token_id, "the end of the turn is learnt, and nothing after it"


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("assistant", "Find the cake.<|end|>Bake it.<|end|>"),
        ("completion", "Bake it.<|end|>"),
        ("all", "".join(["<|begin|>", *[f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in TALK]])),
    ],
)
def test_loss_falls_on_the_turns_asked_for(renderer: Renderer, loss_on: Any, expected: str) -> None:
    assert learnt(renderer, *labelled(renderer, TALK, loss_on)) == expected  # type: ignore[arg-type]


def test_a_conversation_must_end_with_the_assistant(renderer: Renderer) -> None:
    with pytest.raises(StepError, match="must end with the assistant"):
        labelled(renderer, TALK[:-1], "assistant")  # type: ignore[arg-type]


def test_a_revision_is_learnt_before_what_it_revises() -> None:
    row = {"uid": "1", "prompt": TALK[1:2], "response": "first", "messages": TALK, "revision": "second"}
    assert conversation_of(row)[-1] == {"role": "assistant", "content": "second"}
    assert conversation_of({**row, "revision": None}) == TALK
    assert conversation_of({**row, "revision": None, "messages": None})[-1]["content"] == "first"  # type: ignore[index]
    assert conversation_of(row, "response")[-1]["content"] == "first"  # type: ignore[index]
    assert conversation_of({"text": "plain"}) == "plain"
    with pytest.raises(StepError, match="nothing to train on"):
        conversation_of({"uid": "1", "prompt": "p"})


@pytest.mark.parametrize("revision", ["", " \n", [], [*TALK[:-1], {"role": "assistant", "content": ""}]])
def test_an_empty_reply_is_never_learnt_nor_what_it_revises(revision: Any, renderer: Renderer, tmp_path: Path) -> None:
    row = {"uid": "7", "prompt": TALK[1:2], "response": "harmful", "revision": revision}
    with pytest.raises(Blank, match="`revision` is empty"):
        conversation_of(row)
    good = {"uid": "8", "prompt": TALK[1:2], "response": "harmful", "revision": "kind"}
    found = conversations(saved(tmp_path, [{**row, "revision": " "}, good]), renderer, max_length=99, loss_on="completion")
    assert [renderer.tokenizer.decode(ids)[-11:] for ids in found.data["input_ids"]] == ["kind<|end|>"]
    assert (found.counts.rows, found.counts.blank, found.counts.left_out) == (2, 1, 1)


BLANK = {"chosen": "", "rejected": "No."}, {"chosen": " \n", "rejected": "No."}, {"chosen": "Yes.", "rejected": ""}


@pytest.mark.parametrize("blank", BLANK)
def test_a_pair_with_an_empty_reply_is_left_out_and_counted(renderer: Renderer, tmp_path: Path, blank: Any) -> None:
    good = {"uid": "1", "prompt": "How?", "chosen": "Yes.", "rejected": "No."}
    found = preferences(saved(tmp_path, [good, {**good, **blank}]), renderer, max_length=99)
    assert len(found.data) == 1
    assert found.counts.metrics("eval_") | {"eval_tokens": 0} == {
        "eval_rows": 2, "eval_rows_cut": 0, "eval_rows_left_out": 1, "eval_rows_blank": 1, "eval_tokens": 0
    }  # fmt: skip


def test_an_empty_prompt_is_left_out_and_counted(renderer: Renderer, tmp_path: Path) -> None:
    found = prompts(saved(tmp_path, [{"uid": "1", "prompt": "How?"}, {"uid": "2", "prompt": " "}]), renderer, max_length=99)
    assert (len(found.data), found.counts.blank, found.counts.left_out) == (1, 1, 1)


def test_pairs_that_are_equal_or_become_so_are_left_out_and_counted_apart(renderer: Renderer, tmp_path: Path) -> None:
    good = {"uid": "1", "prompt": "How?", "chosen": "Yes.", "rejected": "No."}
    same = {**good, "uid": "2", "rejected": "Yes."}
    late = {**good, "uid": "3", "chosen": "a b c d e f g", "rejected": "a b c d e f h"}
    room = len(renderer.ids(Request(({"role": "user", "content": "How?"},)))) + 4
    found = preferences(saved(tmp_path, [good, same, late]), renderer, max_length=room)
    assert len(found.data) == 1
    assert (found.counts.equal, found.counts.blank, found.counts.left_out) == (2, 0, 2)


def test_several_texts_are_no_reply() -> None:
    with pytest.raises(StepError, match="`responses` holds several texts"):
        conversation_of({"uid": "1", "prompt": "p", "responses": ["a", "b"]}, "responses")


def test_long_rows_are_cut_and_counted_and_rows_without_loss_left_out(renderer: Renderer, tmp_path: Path) -> None:
    rows = saved(tmp_path, [{"uid": "a", "messages": TALK[1:3]}, {"uid": "b", "messages": TALK}])
    length = len(renderer.ids(Request(tuple(TALK[:-1]))))  # type: ignore[arg-type]
    found = conversations(rows, renderer, max_length=length + 1, loss_on="completion")
    assert found.counts.metrics() == {"rows": 2, "rows_cut": 1, "rows_left_out": 0, "tokens": found.counts.tokens}
    assert [len(ids) for ids in found.data["input_ids"]][1] == length + 1
    found = conversations(rows, renderer, max_length=length, loss_on="completion")
    assert (found.counts.left_out, len(found.data)) == (1, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "How?", "chosen": "yes", "rejected": "no"},
        {"prompt": [{"role": "user", "content": "How?"}], "chosen": "yes", "rejected": "no", "p_chosen": None},
        {
            "chosen": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "no"}],
        },
        {
            "prompt": [{"role": "user", "content": "How?"}],
            "chosen": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
    ],
)
def test_preferences_come_in_several_shapes(row: dict[str, Any]) -> None:
    prompt, chosen, rejected, p = preference_of(row)
    assert prompt == [{"role": "user", "content": "How?"}]
    assert (chosen["content"], rejected["content"], p) == ("yes", "no", 1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uid": "7", "prompt": "p", "chosen": "yes"}, "a preference needs"),
        ({"uid": "7", "prompt": "p", "chosen": "yes", "rejected": "no", "p_chosen": 1.5}, "got 1.5"),
        ({"uid": "7", "chosen": TALK, "rejected": TALK[:3]}, "one turn of the assistant, got 3 turns"),
    ],
)
def test_a_wrong_preference_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        preference_of(row)


def test_a_row_that_can_t_be_read_is_named(renderer: Renderer, tmp_path: Path) -> None:
    rows = saved(tmp_path / "talk", [{"uid": "7", "messages": TALK[:2]}])
    with pytest.raises(StepError, match="row 7: a conversation to train on must end with the assistant"):
        conversations(rows, renderer, max_length=99, loss_on="all")
    rows = saved(tmp_path / "pair", [{"uid": "8", "prompt": "p", "chosen": "yes", "rejected": None}])
    with pytest.raises(StepError, match="row 8: a preference needs"):
        preferences(rows, renderer, max_length=99)


def test_both_replies_follow_the_served_prompt(renderer: Renderer, tmp_path: Path) -> None:
    rows = saved(tmp_path, [{"uid": "1", "prompt": TALK[1:2], "chosen": "Bake it.", "rejected": "No.", "p_chosen": 0.75}])
    (row,) = preferences(rows, renderer, max_length=100).data
    assert row["prompt_ids"] == renderer.ids(Request(tuple(TALK[1:2])))  # type: ignore[arg-type]
    decode = renderer.tokenizer.decode
    assert (decode(row["chosen_ids"]), decode(row["rejected_ids"])) == ("Bake it.<|end|>", "No.<|end|>")
    assert row["p_chosen"] == 0.75


OWN_END = (  # as Qwen2.5's base models: turns end with another token than the tokenizer's EOS, and a new line
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|system|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
THOUGHTS = (  # as Qwen3's: what was thought is kept in the last turn only, and one without thoughts gets empty ones
    "{% for m in messages %}<|user|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}(thoughts)\n{{ m['content'] }}"
    "{% else %}{{ m['content'].split(')')[-1] }}{% endif %}<|system|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
COUNTED = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|system|>{% endfor %}"
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TWO_ENDS = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|system|><|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)


def over(model: ModelSource, template: str) -> Renderer:
    return Renderer(load_tokenizer(model._replace(chat_template=template)))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        *((template, "<|system|>") for template in (OWN_END, THOUGHTS, COUNTED, TWO_ENDS)),
        *((template, "<|end|>") for template in (NO_END, MULTI_LINE, "")),
    ],
)
def test_the_turn_s_own_end_is_learnt_and_nothing_after_it(model: ModelSource, template: str, end: str) -> None:
    renderer = over(model, template)
    assert renderer.tokenizer.eos_token == end, "so that generation stops there"
    assert renderer.tokenizer.pad_token == "<|pad|>"
    ids, labels = labelled(renderer, TALK, "completion")  # type: ignore[arg-type]
    said = learnt(renderer, ids, labels)
    assert said.endswith(f"Bake it.{end}") or (template == NO_END and said == f"Bake it.\n{end}")
    prompt, reply = reply_ids(renderer, TALK[:-1], TALK[-1])  # type: ignore[arg-type,type-var]
    assert prompt == renderer.ids(Request(tuple(TALK[:-1])))  # type: ignore[arg-type]
    assert prompt + reply == ids


def test_earlier_turns_teach_to_stop_too(model: ModelSource) -> None:
    said = learnt(over(model, OWN_END), *labelled(over(model, OWN_END), TALK, "assistant"))  # type: ignore[arg-type]
    assert said == "Find the cake.<|system|>Bake it.<|system|>"


@pytest.mark.parametrize("template", [THOUGHTS, COUNTED])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_where_earlier_turns_are_learnt_they_may_not_be_rewritten(model: ModelSource, template: str, loss_on: Any) -> None:
    with pytest.raises(EngineError, match=r"rewrites earlier turns.*loss_on: completion"):
        labelled(over(model, template), TALK, loss_on)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("marks", [(True, False), ("True", "False")])
def test_a_mark_decides_where_a_reply_is_learnt(name: str, marks: tuple[Any, Any], renderer: Renderer, tmp_path: Path) -> None:
    good, bad = marks
    marked = [
        {"uid": "1", "prompt": TALK[1:2], "response": "So.", "chosen": "So.", "rejected": "No.", name: good},
        {"uid": "2", "prompt": TALK[1:2], "response": "Yes.", "chosen": None, "rejected": None, name: good},
        {"uid": "3", "prompt": TALK[1:2], "response": None, "chosen": None, "rejected": "Go.", name: bad},
    ]
    rows = rows_of(tmp_path / "rows", marked)
    learnt = conversations(rows, renderer, max_length=512, loss_on="assistant").counts.metrics("")
    assert (learnt["rows"], learnt["rows_aside"], learnt["rows_left_out"]) == (2, 1, 0)
    pairs = preferences(rows, renderer, max_length=512).counts.metrics("")
    assert (pairs["rows"], pairs["rows_aside"], pairs["rows_left_out"]) == (1, 2, 0)
    with pytest.raises(StepError, match="no rows are left"):
        preferences(rows_of(tmp_path / "alone", marked[1:]), renderer, max_length=512)
    with pytest.raises(StepError, match="nothing to train on"):
        conversations(rows_of(tmp_path / "plain", [{**marked[2], name: "spam"}]), renderer, max_length=9, loss_on="all")
