"""Formats as they are published elsewhere, above all those of which several records make one row, or one makes several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.operator import StepContext
from caiflow.operators.formats.parse import FORMATS
from caiflow.operators.load import Load, LoadParams
from support.loading import KINDS, load, loaded, said, texts, write

Record = dict[str, Any]


def marked(form: str, asked: str, answer: str, good: bool) -> Record:
    """Return a marked answer in one of the forms that such data have."""
    chat = [*said(asked), *said(answer, "assistant")]
    forms: dict[str, Record] = {
        "completion": {"prompt": asked, "completion": answer, "label": good},
        "messages": {"messages": chat, "label": good},
        "apart": {"messages": said(asked), "completion": answer, "label": good},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}], "kto_tag": good},
        "alpaca": {"instruction": asked, "input": "", "output": answer, "kto_tag": good},
        "as a table": {"prompt": asked, "completion": answer, "label": str(good)},
    }
    return forms[form]


FORMS = ("completion", "messages", "apart", "sharegpt", "alpaca", "as a table")
answers = st.lists(
    st.tuples(st.sampled_from("pqr"), texts, st.booleans()), min_size=2, max_size=8, unique_by=lambda one: one[1]
)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(answers)
def test_each_marked_answer_is_in_one_row_and_no_bad_one_is_learnt(form: str, given: list[tuple[str, str, bool]]) -> None:
    rows = loaded([marked(form, *one) for one in given])
    good = [(row["prompt"][0]["content"], row["response"]) for row in rows if row["response"] is not None]
    bad = [(row["prompt"][0]["content"], row["rejected"]) for row in rows if row.get("rejected") is not None]
    assert Counter(good) == Counter((asked, text) for asked, text, mark in given if mark)
    assert Counter(bad) == Counter((asked, text) for asked, text, mark in given if not mark)
    pairs = Counter(row["prompt"][0]["content"] for row in rows if row.get("chosen") is not None)
    marks = Counter((asked, mark) for asked, _, mark in given)
    assert pairs == Counter({asked: min(marks[asked, True], marks[asked, False]) for asked in "pqr"})
    assert all(row["chosen"] == row["response"] and row["rejected"] for row in rows if row.get("chosen") is not None)
    assert len({row["uid"] for row in rows}) == len(rows)
    assert all((row.get("messages") or [{}])[-1].get("content") in (None, row["response"]) for row in rows)


def test_a_marked_conversation_is_cut_to_its_first_turn_with_its_bad_partner() -> None:
    long = [*said("q"), *said("a", "assistant"), *said("r"), *said("b", "assistant")]
    rows = loaded([{"messages": long, "label": True}, {"messages": [*long[:3], *said("c", "assistant")], "label": False}])
    assert [(len(row["prompt"]), row["chosen"], row["rejected"]) for row in rows] == [(3, "b", "c")]
    first = loaded([{"messages": long, "label": True}, {"messages": long[:2], "label": False}], turns="first")
    assert [(row["response"], row.get("chosen")) for row in first] == [("a", None), (None, None)]


@pytest.mark.parametrize("lacking", ["prompt", "completion"])
def test_a_mark_without_its_answer_or_question_is_told(lacking: str) -> None:
    record = {**marked("completion", "q", "a", True), lacking: None}
    with pytest.raises(ValueError, match=f"`{lacking}` is null"):
        loaded([record], format="kto")


def test_a_template_makes_the_prompt_by_which_answers_are_pairs() -> None:
    records = [{"q": text, "completion": text + mark, "label": mark == "+"} for mark in "+-" for text in ("one", "two")]
    rows = loaded(records, prompt="<{{ q }}>")
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        (said(f"<{text}>"), f"{text}+", f"{text}-") for text in ("one", "two")
    ]


def lists(asked: str, ranked: list[str]) -> list[Record]:
    """Return the best-first answers in the forms that ranked lists have, in another order."""
    mixed = sorted(enumerate(ranked), key=lambda one: (one[0] % 2, one[0]))
    return [
        {"prompt": asked, "answers": [{"answer": text, "rank": float(place + 1), "model": "m"} for place, text in mixed]},
        {"instruction": asked, "completions": [{"response": text, "overall_score": -place} for place, text in mixed]},
        {"question": asked, "responses": [text for _, text in mixed], "scores": [10 - place for place, _ in mixed]},
        {"query": asked, "outputs": [text for _, text in mixed], "ranks": [str(place) for place, _ in mixed]},
        {"prompt": asked, "ranked": ranked},
        {
            "prompt": asked,
            "sampled_answers": [{"sampled_string": text, "pm_scores": [{"pm_score": -place}]} for place, text in mixed],
        },
    ]


@settings(max_examples=25)
@given(texts, st.lists(texts, min_size=2, max_size=4, unique=True))
def test_a_ranked_list_is_its_best_and_worst_or_every_pair(asked: str, ranked: list[str]) -> None:
    for record in lists(asked, ranked):
        plain = {**record, **({"prompt": "Why?"} if "prompt" in record else {})}
        best, all_of_it = loaded([plain, record])[1:], loaded([plain, record], take="all")
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in best] == [(said(asked), ranked[0], ranked[-1])]
        pairs = [(better, worse) for place, better in enumerate(ranked) for worse in ranked[place + 1 :]]
        assert [(row["chosen"], row["rejected"]) for row in all_of_it[len(pairs) :]] == pairs
        assert len({row["uid"] for row in all_of_it}) == 2 * len(pairs)


def test_answers_alike_in_rank_are_no_pair(tmp_path: Path) -> None:
    record = {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 1, 1]}
    (row,) = loaded([record])
    assert (row["chosen"], row["rejected"], row["answers"]) == (None, None, ["a", "b", "c"])
    pairs = loaded([{**record, "scores": [1, 2, 1]}], take="all")
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("b", "a"), ("b", "c")]
    assert [row["uid"] for row in loaded([{**record, "id": 7}], take="all", uid="id")] == ["7"]
    assert [row["uid"] for row in loaded([{**record, "id": 7, "scores": [3, 2, 1]}], take="all", uid="id")] == [
        "7",
        "7.1",
        "7.2",
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1, "N/A"]}, "`scores` must be a number for each answer, got 'N/A'"),
        ({"prompt": "q", "answers": [{"text": "a", "rank": 1}, {"text": "b"}]}, "`rank` must be a number for each answer"),
        ({"prompt": "q", "answers": ["a", "b"]}, "nothing says which of `answers` is better"),
        ({"prompt": "q", "answers": ["a"]}, "no list of two answers or more"),
    ],
)
def test_a_list_without_its_order_is_told(record: Record, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded([record], format="ranked")


def test_a_list_of_answers_that_nothing_ranks_is_a_column() -> None:
    (row,) = loaded([{"prompt": "q", "answers": ["a", "b"]}])
    assert (row["answers"], "chosen" in row) == (["a", "b"], False)


def test_a_record_of_a_ranked_list_keeps_its_uid() -> None:
    record = lists("q", ["a", "b"])[0]
    assert loaded([record])[0]["uid"] == loaded([record], format="prompt")[0]["uid"]


@settings(max_examples=25)
@given(texts, texts, texts, texts)
def test_a_question_with_a_system_text_is_a_prompt(system: str, asked: str, answer: str, other: str) -> None:
    for name in ("system", "system_prompt"):
        (row,) = loaded([{"id": 1, name: system, "question": asked, "response": answer}])
        assert (row["prompt"], row["response"]) == ([*said(system, "system"), *said(asked)], answer)
        (row,) = loaded([{name: system, "question": asked, "chosen": answer, "rejected": other + "!"}])
        assert row["prompt"] == [*said(system, "system"), *said(asked)]
        assert answer == other + "!" or (row["chosen"], row["rejected"]) == (answer, other + "!")


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=3))
def test_turns_of_the_user_alone_ask_the_first(turns: list[str]) -> None:
    (row,) = loaded([{"question_id": 81, "category": "writing", "turns": turns}])
    assert (row["prompt"], row["turns"], row.get("later_turns")) == (said(turns[0]), turns, turns[1:] or None)


def test_later_turns_are_noted(tmp_path: Path) -> None:
    _, metrics = load(write(tmp_path / "a.jsonl", [{"turns": ["q", "r"]}]))
    assert metrics["notes"] == ["`later_turns` is kept as a column, and no part of `prompt` or of a reply"]


@settings(max_examples=25)
@given(texts, texts, texts)
def test_one_message_beside_a_conversation_is_an_answer(asked: str, better: str, worse: str) -> None:
    worse += "!"
    yes, no = said(better, "assistant"), said(worse, "assistant")
    gpt = [{"from": "human", "value": asked}]
    forms: list[Record] = [
        {"input": {"messages": said(asked), "tools": []}, "preferred_output": yes, "non_preferred_output": no},
        {"messages": said(asked), "chosen": yes[0], "rejected": no[0]},
        {"conversations": gpt, "chosen": {"from": "gpt", "value": better}, "rejected": {"from": "gpt", "value": worse}},
        {"conversation": said(asked), "chosen": yes, "rejected": no},
        {"instruction": asked, "input": "", "chosen": better, "rejected": worse},
        {"question": asked, "chosen": yes[0], "rejected": no[0]},
    ]
    for record in forms:
        (row,) = loaded([record])
        told = (better, worse) if better != worse else (None, None)
        assert (row["prompt"], row["chosen"], row["rejected"]) == (said(asked), *told), record


def test_conversations_with_a_question_beside_them_are_read_as_before() -> None:
    chosen, rejected = ([*said("q"), *said(text, "assistant")] for text in ("a", "b"))
    (row,) = loaded([{"question": "else", "chosen": chosen, "rejected": rejected}])
    assert (row["prompt"], row["chosen"], row["question"]) == (said("q"), "a", "else")


@pytest.mark.parametrize("role", ["content", "value"])
def test_parts_of_a_message_are_its_text_and_others_are_told(role: str) -> None:
    parts = [{"type": "text", role: "one "}, {"type": "text", role: "two"}, "!"]
    assert loaded([{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}])[0]["prompt"] == said("a")
    if role == "value":
        (row,) = loaded([{"messages": [{"role": "user", "content": parts}]}])
        assert row["prompt"] == said("one two!")
    with pytest.raises(ValueError, match="a part that isn't text, of type 'image_url'"):
        loaded([{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}])


@settings(max_examples=25)
@given(texts, texts, texts)
def test_a_conversation_that_the_assistant_opens_keeps_its_greeting(hello: str, asked: str, answer: str) -> None:
    turns = [*said(hello, "assistant"), *said(asked), *said(answer, "assistant")]
    for record in (
        {"messages": turns},
        {"conversations": turns},
        {"chosen": turns, "rejected": [*turns[:2], *said("no!", "assistant")]},
    ):
        (row,) = loaded([record])
        assert (row["prompt"], row["response"]) == (turns[:2], answer)


def test_transcripts_that_the_assistant_opens_are_told_from_texts() -> None:
    start = "\n\nAssistant: Welcome!\n\nHuman: Bye\n\nAssistant: "
    (row,) = loaded([{"chosen": start + "See you", "rejected": start + "Finally"}])
    assert ([turn["role"] for turn in row["prompt"]], row["chosen"]) == (["assistant", "user"], "See you")


def message(text: str, role: str, rank: int | None, *replies: Record, **more: Any) -> Record:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def tree(reply: Callable[[str], str] = str) -> Record:
    """Return a tree of two replies; the better one, which stands second, has two further questions."""
    questions = [message("r", "prompter", None, message(reply("c"), "assistant", 0)), message("s", "prompter", None)]
    root = message("q", "prompter", None, message("b", "assistant", 1), message("a", "assistant", 0, *questions))
    return {"message_tree_id": "t", "prompt": root, "lang": "en"}


def flat(node: Record, parent: str | None = None, name: str = "m") -> list[Record]:
    """Return the messages of a tree, one a record."""
    own = {"message_id": name, "parent_id": parent, "message_tree_id": "t"}
    own |= {key: value for key, value in node.items() if key != "replies"}
    return [own, *(one for place, reply in enumerate(node["replies"]) for one in flat(reply, name, f"{name}{place}"))]


@settings(max_examples=25)
@given(texts)
def test_a_tree_is_its_best_path_or_each(text: str) -> None:
    whole = tree(lambda _: text)
    paths = [["q", "a", "r", text], ["q", "a"], ["q", "b"]]
    for records in ([whole], flat(whole["prompt"])):
        best, each = loaded(records), loaded(records, take="all")
        assert [[turn["content"] for turn in row["messages"]] for row in best] == [paths[0]]
        assert [[turn["content"] for turn in row["messages"]] for row in each] == paths
        assert (best[0]["response"], {row["response"] for row in each}) == (text, {text, "a", "b"})
        assert len({row["uid"] for row in each}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_messages_has_empty_cells_for_what_is_null(kind: str) -> None:
    gone = {"message_id": "x", "parent_id": "m", "message_tree_id": "t", "text": "gone", "role": "assistant", "rank": None}
    records = [{**one, "deleted": False} for one in flat(tree()["prompt"])] + [{**gone, "deleted": True}]
    (row,) = loaded(records, kind)
    assert [turn["content"] for turn in row["messages"]] == ["q", "a", "r", "c"]


def test_messages_of_trees_are_gathered_wherever_they_stand() -> None:
    other = [{**one, "message_tree_id": "u"} for one in flat(tree()["prompt"], name="u")]
    mixed = [record for both in zip(flat(tree()["prompt"]), other, strict=True) for record in reversed(both)]
    assert [len(row["messages"]) for row in loaded(mixed)] == [4, 4]
    deleted = tree()
    deleted["prompt"]["replies"][1]["deleted"] = True
    assert loaded([deleted])[0]["response"] == "b"


def test_what_is_no_tree_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one without `parent_id`, got 0"):
        loaded(flat(tree()["prompt"])[1:])
    root = flat(tree()["prompt"])[0]
    for name in ("message_id", "parent_id"):
        with pytest.raises(ValueError, match=f"`{name}` must be a text or a number, got list"):
            loaded([{**root, name: ["m"]}])
    chain = [{**flat(tree()["prompt"])[0], "message_id": str(place), "parent_id": str(place - 1)} for place in range(1, 600)]
    path = write(tmp_path / "deep.jsonl", [{**chain[0], "message_id": "0", "parent_id": None}, *chain])
    with pytest.raises(ValueError, match="more than 500 deep"):
        load(path)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.lists(texts, min_size=1, max_size=4))
def test_marked_answers_of_every_kind_of_file(kind: str, given: list[str]) -> None:
    rows = loaded([marked("completion", f"q{place}", text, False) for place, text in enumerate(given)], kind)
    assert [(row["response"], row["rejected"]) for row in rows] == [(None, text) for text in given]


def columns(folder: Path, records: list[Record], **fields: Any) -> dict[str, Any]:
    step = Load(LoadParams(source=write(folder / "some.jsonl", records).name, **fields), StepContext(base_dir=folder))
    assert not list(step.check())
    return dict(step.columns({}).types)


def test_columns_are_known_before_the_run(tmp_path: Path) -> None:
    pair = {"chosen": "text", "rejected": "text", "p_chosen": "number"}
    assert (
        columns(tmp_path, [marked("completion", "q", "a", True), marked("completion", "q", "b", False)]).items() >= pair.items()
    )
    assert columns(tmp_path, lists("q", ["a", "b"])[:1], take="all").items() >= pair.items()
    assert columns(tmp_path, [tree()]).items() >= {"messages": "messages", "response": "text"}.items()
    assert columns(tmp_path, flat(tree()["prompt"])).items() >= {"messages": "messages", "response": "text"}.items()


def test_a_blank_answer_is_in_no_pair() -> None:
    answers = [{"response": text, "overall_score": score} for text, score in ((" ", 1), ("good", 5), ("", 9), ("fair", 3))]
    layout = FORMATS["ranked"]
    assert layout.fits({"instruction": "q", "completions": answers})
    (pair,) = layout.shape([{"instruction": "q", "completions": answers}], "best")
    assert (pair["chosen"], pair["rejected"]) == ("good", "fair")
    with pytest.raises(ValueError, match="of `completions` fewer than two say anything"):
        layout.shape([{"instruction": "q", "completions": answers[:2]}], "best")
