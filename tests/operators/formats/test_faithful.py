"""Nothing is silently wrong: any text comes through `load` unchanged, one odd row decides nothing, and no field is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caiflow.engine.operator import StepContext
from caiflow.operators.formats.parse import FORMATS, overlooked
from caiflow.operators.load import Load, LoadParams
from support.loading import KINDS, load, loaded, said, texts, write
from support.tables import ask


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(st.lists(texts, min_size=2, max_size=5))
def test_any_text_is_a_prompt_as_it_stands(kind: str, prompts: list[str]) -> None:
    records = [{"prompt": text, "n": 1} for text in ["What is it?"] * len(prompts) + prompts]
    assert [row["prompt"][0]["content"] for row in loaded(records, kind)] == [record["prompt"] for record in records]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_any_text_is_an_answer_as_it_stands(kind: str, triples: list[tuple[str, str, str]]) -> None:
    plain = ("What is it?", "A pot.", "No.")
    triples = [plain] * (len(triples) + 1) + [(one, yes, no) for one, yes, no in triples if yes != no]
    pairs = [{"prompt": prompt, "chosen": yes, "rejected": no} for prompt, yes, no in triples]
    found = loaded(pairs, kind)
    assert [(row["prompt"][0]["content"], row["chosen"], row["rejected"]) for row in found] == triples
    answers = loaded([{"prompt": prompt, "completion": yes} for prompt, yes, _ in triples], kind)
    assert [row["response"] for row in answers] == [yes for _, yes, _ in triples]


@settings(deadline=None, max_examples=60)
@given(texts, texts, texts)
def test_any_text_is_a_turn_as_it_stands(asked: str, answer: str, other: str) -> None:
    assume(not asked.startswith("\n\nHuman:"))  # of a single row, this is a transcript
    chat = [*said(asked), *said(answer, "assistant")]
    forms: list[dict[str, Any]] = [
        {"messages": chat},
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]},
        {"messages": json.dumps(chat)},
        {"messages": said(asked), "completion": answer},
        {"instruction": asked, "input": "", "output": answer},
        {"messages": said(asked), "chosen": said(answer, "assistant")[0], "rejected": said(other + "!", "assistant")[0]},
        {"prompt": asked, "chosen": chat, "rejected": [*said(asked), *said(other + "!", "assistant")]},
        {"init_prompt": asked, "init_response": answer, "critic_response": other, "revision_response": other + "!"},
    ]
    for record in forms:
        (row,) = loaded([record])
        found = row.get("response") or row.get("chosen")
        if answer != other + "!":
            assert (row["prompt"][0]["content"], found) == (asked, answer), record


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(("x", "System: Windows 11", "Memory: 8 GB", "Human: Who am I?", "Robot: You")), min_size=1, max_size=5
    )
)
def test_a_reply_keeps_lines_that_look_like_turns(paragraphs: list[str]) -> None:
    reply = "Here:\n\n" + "\n\n".join(paragraphs)
    start = "\n\nHuman: What is it?\n\nAssistant: "
    records = [{"chosen": start + "Yes.", "rejected": start + "No."}, {"chosen": start + reply, "rejected": start + "No."}]
    assert [(row["prompt"], row["chosen"]) for row in loaded(records)] == [
        (ask("What is it?"), "Yes."),
        (ask("What is it?"), reply),
    ]


def test_a_file_of_transcripts_is_read_as_turns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", [{"prompt": f"\n\nHuman: a{n}\n\nAssistant: b\n\nHuman: c\n\nAssistant:"} for n in range(3)]
    )
    assert [[turn["content"] for turn in row["prompt"]] for row in load(path)[0]] == [[f"a{n}", "b", "c"] for n in range(3)]


ODD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cai_conversation": (
        {
            "init_prompt": "q",
            "init_response": "a",
            "critic_response": "c",
            "revision_response": "r",
            "chosen": "r",
            "rejected": "a",
        },
        {"revision_response": None},
    ),
    "hh": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, {"rejected": "nothing"}),
    "preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"rejected": None}),
    "ultrachat": (
        {"prompt": "q", "prompt_id": "x", "messages": said("q")},
        {"messages": [{"role": "narrator", "content": "x"}]},
    ),
    "messages": ({"messages": said("q"), "prompt": "q"}, {"messages": [*said("q"), {"role": "narrator", "content": "x"}]}),
    "alpaca": ({"instruction": "q", "output": "a", "prompt": "q"}, {"output": None}),
}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(ODD)), st.integers(1, 30), st.data())
def test_one_odd_row_is_the_bad_one_wherever_it_is(name: str, good: int, data: st.DataObject) -> None:
    fine, odd = ODD[name]
    place = data.draw(st.integers(0, good))
    records = [{**fine, "n": n, **(odd if n == place else {})} for n in range(good + 1)]
    with TemporaryDirectory() as folder:
        rows, metrics = load(write(Path(folder) / "a.jsonl", records), on_bad_row="quarantine")
    assert (metrics["format"], metrics["rows"], metrics["bad_rows"]) == (name, good, 1)
    assert {row["n"] for row in rows} == set(range(good + 1)) - {place}


def test_the_format_and_its_reason_are_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3)
    assert load(path)[1]["format_because"] == "3 of the first 3 records have prompt, chosen, rejected as text or messages"
    assert load(path, format="table")[1]["format_because"] == "the step says so"


REPLIES: list[dict[str, Any]] = [
    {"messages": [*said("q"), *said("a", "assistant")]},
    {"conversations": [*said("q"), *said("a", "assistant")]},
    {"prompt": "q", "completion": "a"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"chosen": [*said("q"), *said("a", "assistant")], "rejected": [*said("q"), *said("b", "assistant")]},
    {"instruction": "q", "output": "a"},
]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("record", REPLIES, ids=lambda record: " ".join(record))
def test_a_system_text_beside_is_the_first_turn(record: dict[str, Any], name: str) -> None:
    (row,) = loaded([{**record, name: "Be brief."}])
    assert row["prompt"] == [*said("Be brief.", "system"), *said("q")]
    assert loaded([{**record, name: " "}])[0]["prompt"] == said("q")
    if "messages" in record:
        assert row["messages"][0] == said("Be brief.", "system")[0]
        twice = {**record, "messages": [*said("Be rude.", "system"), *record["messages"]], name: "Be brief."}
        with pytest.raises(ValueError, match=f"`{name}` and the first message are system turns, and differ"):
            loaded([twice])


PARTS = ("Be brief.", [{"type": "text", "text": "Be "}, {"text": "brief."}], {"role": "system", "content": "Be brief."},
         {"role": "system", "parts": [{"text": "Be brief."}]})  # fmt: skip


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("given", PARTS, ids=str)
@pytest.mark.parametrize("record", REPLIES, ids=lambda record: " ".join(record))
def test_a_system_text_is_read_however_it_is_given(record: dict[str, Any], given: Any, name: str) -> None:
    other = {"system", "system_prompt"} - {name}
    (row,) = loaded([{**record, name: given, **dict.fromkeys(other, "")}])
    assert row["prompt"] == [*said("Be brief.", "system"), *said("q")]
    (row,) = loaded([{**record, name: given, **dict.fromkeys(other, "Be brief.")}])
    assert row["prompt"] == [*said("Be brief.", "system"), *said("q")]
    with pytest.raises(ValueError, match="`system` and `system_prompt` are system turns, and differ"):
        loaded([{**record, name: given, **dict.fromkeys(other, "Be rude.")}])
    with pytest.raises(ValueError, match=f"`{name}`: a message has a part that isn't text, of type 'image'"):
        loaded([{**record, name: [{"type": "image", "data": ""}]}])


@pytest.mark.parametrize("name", ["system_message", "systemPrompt", "sys_prompt", "SystemInstruction", "instructions"])
def test_a_system_text_of_another_name_is_noted_with_the_line_to_write(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", name: "Be brief."}])
    (note,) = load(path)[1]["notes"]
    line = note.split("to begin with it: `")[1].rstrip("`")
    (row,), metrics = load(path, **yaml.safe_load(line))
    assert (row["prompt"], metrics.get("notes")) == ([*said("Be brief.", "system"), *said("q")], None)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}])
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_turn_that_is_not_to_be_learnt_is_refused_by_its_mark(name: str, mark: dict[str, Any]) -> None:
    field = next(iter(mark))
    answer = {"role": "assistant", "content": "a", **mark}
    with pytest.raises(ValueError, match=f"a message has `{field}: (0|false)`"):
        loaded([{name: [*said("q"), answer, *said("r"), *said("b", "assistant")]}])
    learnt = [{"role": "user", "content": "q", **mark}, {**answer, field: True}]
    assert loaded([{name: learnt}])[0]["response"] == "a"


@settings(max_examples=25, deadline=None)
@given(texts, texts, texts, texts)
def test_what_was_said_before_an_instruction_is_before_it(asked: str, answer: str, again: str, last: str) -> None:
    record = {"instruction": again, "input": "", "output": last, "system": "Be brief.", "history": [[asked, answer]]}
    (row,) = loaded([record])
    earlier = [*said("Be brief.", "system"), *said(asked), *said(answer, "assistant")]
    assert (row["prompt"], row["response"]) == ([*earlier, *said(again)], last)
    (first,) = loaded([record], turns="first")
    assert (first["prompt"], first["response"]) == (earlier[:2], answer)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_questions_with_their_answers_are_turns(pairs: list[tuple[str, str]]) -> None:
    turns = [turn for asked, answer in pairs for turn in (*said(asked), *said(answer, "assistant"))]
    (row,) = loaded([{"conversation": [{"input": asked, "output": answer} for asked, answer in pairs]}])
    assert (row["prompt"], row["response"], row["messages"]) == (turns[:-1], pairs[-1][1], turns)
    given = [{"input": asked, "output": answer, "system": "Be brief."} for asked, answer in pairs]
    (row,) = loaded([{"conversation": given}])
    assert row["messages"] == [*said("Be brief.", "system"), *turns]


def as_numpy(turns: list[dict[str, str]]) -> str:
    return "[" + "\n ".join(map(repr, turns)) + "]"


@pytest.mark.parametrize("printed", [repr, as_numpy, json.dumps], ids=["python", "numpy", "json"])
@settings(max_examples=10, deadline=None)
@given(texts, texts, texts)
def test_turns_that_a_table_has_as_text_are_turns(printed: Callable[[Any], str], asked: str, better: str, worse: str) -> None:
    chosen, rejected = ([*said(asked), *said(text, "assistant")] for text in (better, worse + "!"))
    for name in ("messages", "conversations"):
        (row,) = loaded([{name: printed(chosen)}], "csv")
        assert (row["prompt"], row["response"]) == (said(asked), better)
    (row,) = loaded([{"chosen": printed(chosen), "rejected": printed(rejected)}], "csv")
    assert (row["chosen"], row["rejected"]) == ((better, worse + "!") if better != worse + "!" else (None, None))


def test_an_input_that_is_used_is_not_noted(tmp_path: Path) -> None:
    for asked in ({"prompt": "q", "completion": "a"}, {"instruction": "q", "chosen": "a", "rejected": "b"}):
        path = write(tmp_path / "a.jsonl", [{**asked, "input": ""}] * 100 + [{**asked, "input": "x"}])
        assert "notes" not in load(path)[1]
    path = write(tmp_path / "b.jsonl", [{"prompt": said("q"), "input": "x"}])
    assert load(path)[1]["notes"] == ["`input` is kept as a column, and no part of `prompt` or of a reply"]


def test_an_input_is_what_two_answers_are_to_where_nothing_else_is() -> None:
    (row,) = loaded([{"input": "q", "chosen": "a", "rejected": "b"}])
    assert (row["prompt"], row["chosen"]) == (said("q"), "a")
    assert loaded([{"prompt": "q", "input": " q", "completion": "a"}])[0]["prompt"] == said("q")


def test_an_input_is_part_of_the_prompt() -> None:
    assert loaded([{"instruction": "Sort.", "input": "3 1", "output": "1 3"}])[0]["prompt"] == said("Sort.\n\n3 1")
    renamed = loaded([{"instruction": "Sort.", "input": "3 1", "output": "1 3"}], rename={"instruction": "prompt"})
    assert renamed[0]["prompt"] == said("Sort.\n\n3 1")


@pytest.mark.parametrize(("label", "bad"), [(True, False), (False, True), ("False", True), (None, False)])
def test_what_is_labelled_bad_is_no_response(label: Any, bad: bool) -> None:
    (row,) = loaded([{"prompt": "q", "completion": "a", "label": label}])
    assert (row["response"], row.get("rejected")) == ((None, "a") if bad else ("a", None))


def test_turns_between_the_prompt_and_the_answers_are_kept() -> None:
    shared = [*said("q"), *said("a", "assistant"), *said("r")]
    pair = {"chosen": [*shared, *said("x", "assistant")], "rejected": [*shared, *said("y", "assistant")]}
    (row,) = loaded([{"prompt": " q\n", **pair}])
    assert ([turn["content"] for turn in row["prompt"]], row["chosen"], row["rejected"]) == ([" q\n", "a", "r"], "x", "y")
    with pytest.raises(ValueError, match="conversations that don't begin with `prompt`"):
        loaded([{"prompt": "else", **pair}])


@pytest.mark.parametrize("record", REPLIES[3:5], ids=["text", "messages"])
def test_the_same_answer_twice_is_no_pair_in_any_format(record: dict[str, Any]) -> None:
    (row,) = loaded([{**record, "rejected": record["chosen"]}])
    assert (row["chosen"], row["rejected"], row["p_chosen"]) == (None, None, None)
    assert loaded([{**record, "p_chosen": 0.7}])[0]["p_chosen"] == 0.7


@pytest.mark.parametrize("name", ["context", "ContextString", "history", "images", "tools", "documents", "retrieved_contexts"])
def test_a_column_that_no_format_understands_is_noted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", name: "something", "topic": "t"}])
    (note,) = load(path)[1]["notes"]
    assert note.startswith(f"`{name}` is kept as a column, and no part of `prompt` or of a reply")
    if name in ("context", "ContextString"):
        line = f'prompt: "{{{{ {name} }}}}\\n\\n{{{{ prompt }}}}"'
        assert note.endswith(f"to ask with it: `{line}`")
        (row,), metrics = load(path, **yaml.safe_load(line))
        assert (row["prompt"], row[name], "notes" in metrics) == (said("something\n\nq"), "something", False)
    assert "notes" not in load(path, format="table")[1]
    assert not overlooked(FORMATS)


def test_half_a_bad_file_does_not_validate(tmp_path: Path) -> None:
    good = [{"messages": said(f"q{n}")} for n in range(300)]
    path = write(tmp_path / "a.jsonl", [*good, {"messages": [*said("q"), {"role": "narrator", "content": "12"}]}])
    (found,) = Load(LoadParams(source=path.name), StepContext(base_dir=tmp_path)).check()
    assert "a.jsonl:301 (1 of the 301 records can't be read): unknown role 'narrator'" in found.message
    assert not list(Load(LoadParams(source=path.name, on_bad_row="quarantine"), StepContext(base_dir=tmp_path)).check())


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(st.tuples(texts, texts))
def test_a_template_joins_columns_as_they_stand(kind: str, pair: tuple[str, str]) -> None:
    context, question = pair
    found = loaded([{"context": context, "question": question}] * 2, kind, prompt="{{ context }}\n\n{{ question }}")
    assert [row["prompt"] for row in found] == [said(f"{context}\n\n{question}")] * 2
    assert (found[0]["context"], found[0]["question"]) == pair


def test_a_template_takes_the_place_of_what_the_format_would_ask() -> None:
    (row,) = loaded([{"instruction": "Sort.", "input": "2 1", "output": "1 2"}], prompt="{{ instruction }} <{{ input }}>")
    assert (row["prompt"], row["response"]) == (said("Sort. <2 1>"), "1 2")
    (row,) = loaded([{"system": "Be kind.", "q": "Hi", "prompt": "old"}], prompt="{{ prompt }}: {{ q }}")
    assert row["prompt"] == [{"role": "system", "content": "Be kind."}, *said("old: Hi")]


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        ({"q": "Hi"}, "{{ context }}", "'context' is undefined; the record has q"),
        ({"q": "Hi"}, "{{ q.__class__.__mro__ }}", "unsafe"),
        ({"q": " "}, "{{ q }}", "comes out blank"),
        ({"q": "x", "messages": said("Hi")}, "{{ q }}", "the record has a conversation"),
    ],
)
def test_a_template_that_cant_be_rendered_is_told(record: dict[str, Any], template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded([record], prompt=template)


def test_what_is_no_template_is_refused() -> None:
    with pytest.raises(ValueError, match="not a Jinja template"):
        LoadParams(source="a.jsonl", prompt="{{ a")


@pytest.mark.parametrize(
    ("names", "choice", "better", "worse"),
    [
        (("response_0", "response_1"), {"better_response_id": 1}, "Two", "One"),
        (("response_0", "response_1"), {"better_response_id": 0}, "One", "Two"),
        (("text_a", "text_b"), {"preferred_text": "text_a"}, "One", "Two"),
        (("response_a", "response_b"), {"winner": "model_b"}, "Two", "One"),
        (("response_a", "response_b"), {"winner": "A"}, "One", "Two"),
        (("output_1", "output_2"), {"preference": 2}, "Two", "One"),
        (("response_a", "response_b"), {"winner": "tie"}, None, None),
        (("response_0", "response_1"), {"better_response_id": 1.0}, "Two", "One"),
        (("response_0", "response_1"), {"better_response_id": "0.0"}, "One", "Two"),
        (("output_1", "output_2"), {"preference": 1.5}, None, None),
        (("response_a", "response_b"), {"preference": "[[B]]"}, "Two", "One"),
        (("response_1", "response_2"), {"preferred": "Response 2"}, "Two", "One"),
        (("response_a", "response_b"), {"winner": "both_bad"}, None, None),
        (("response_a", "response_b"), {"winner": "tie (bothbad)"}, None, None),
        (("response_a", "response_b"), {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, "Two", "One"),
        (("response_a", "response_b"), {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, None, None),
        (("response_1", "response_2"), {"preference_strength": -2}, "One", "Two"),
        (("response1", "response2"), {"overall_preference": 3}, "Two", "One"),
        (("response1", "response2"), {"overall_preference": 0}, None, None),
        (("answer_0", "answer_1"), {"score_0": -0.5, "score_1": 0.5}, "Two", "One"),
        (("human_ref_A", "human_ref_B"), {"score_A": 9, "score_B": 2}, "One", "Two"),
    ],
)
def test_a_column_that_says_which_is_preferred_makes_pairs(
    names: tuple[str, str], choice: dict[str, Any], better: str | None, worse: str | None
) -> None:
    record = {"prompt": "Which?", names[0]: "One", names[1]: "Two", **choice}
    (row,) = loaded([record], format="compared")
    assert (row["prompt"], row["chosen"], row["rejected"]) == (said("Which?"), better, worse)


@settings(max_examples=15, deadline=None)
@given(texts, texts, texts)
def test_turns_as_lists_of_texts_are_compared(asked: str, better: str, worse: str) -> None:
    def record(*turns: tuple[str, str, str]) -> dict[str, Any]:
        columns = zip(("prompt", "response_a", "response_b"), zip(*turns, strict=True), strict=True)
        return {name: json.dumps(list(values)) for name, values in columns} | {"winner_model_a": 0, "winner_model_b": 1}

    (row,) = loaded([record((asked, worse + "!", better))], "csv", format="compared")
    told = (better, worse + "!") if better != worse + "!" else (None, None)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (said(asked), *told)
    (row,) = loaded([record((asked, "a", "a"), ("And?", worse + "!", better))], "csv", format="compared")
    assert [turn["content"] for turn in row["prompt"]] == [asked, "a", "And?"]
    assert (row["chosen"], row["rejected"]) == told
    (row,) = loaded([record((asked, "a", "b"), ("And?", worse + "!", better))], "csv", format="compared")
    assert (row["response"], row["chosen"]) == (better, None)


def test_two_answers_and_a_choice_are_noted_with_the_line_to_write(tmp_path: Path) -> None:
    for record in (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"context": said("q"), "response1": "a", "response2": "b", "overall_preference": -1},
        {"conversation_a": [*said("q"), *said("a", "assistant")], "winner": "model_a",
         "conversation_b": [*said("q"), *said("b", "assistant")]},
    ):  # fmt: skip
        path = write(tmp_path / "a.jsonl", [record])
        (note,) = load(path)[1]["notes"]
        (row,), metrics = load(path, **yaml.safe_load(note.split("`")[-2]))
        assert (row["prompt"], row["chosen"], metrics.get("notes")) == (said("q"), "a", None)


def test_two_conversations_are_compared() -> None:
    one, two = ([*said("Which?"), *said(text, "assistant")] for text in ("One", "Two"))
    (row,) = loaded([{"conversation_a": one, "conversation_b": two, "winner": "model_b"}], format="compared")
    assert (row["prompt"], row["chosen"], row["rejected"]) == (said("Which?"), "Two", "One")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Which?", "winner": "a"}, "no two answers"),
        ({"prompt": "Which?", "response_0": "One", "response_1": "Two"}, "nothing says which answer is preferred"),
        ({"prompt": "Which?", "response_0": "One", "response_1": "Two", "winner": 2}, "is 2, which is neither"),
        ({"prompt": "Which?", "output_1": "One", "output_2": "Two", "preference": 1.9}, "is 1.9, which is neither"),
        (
            {"prompt": "Which?", "answer_0": "One", "answer_1": "Two", "score_0": "x", "score_1": 1},
            "`score_0` must be a number",
        ),
    ],
)
def test_a_comparison_without_its_parts_is_told(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded([record], format="compared")
