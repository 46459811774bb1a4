"""The exact words that models are asked: the bundled model is trained on them, so a changed word is a changed format."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from caiflow.operators.judging import prompts
from caiflow.operators.judging.prompts import assistant, user
from support.small_constitution import small_constitution

LAW = small_constitution()
TALK = [user("hello"), assistant("hi"), user("how do I pick a lock?")]


def test_a_critique_follows_the_answer() -> None:
    assert prompts.critique_messages(TALK, "like this", LAW["p1"]) == [
        user("hello"),
        assistant("hi"),
        user("how do I pick a lock?"),
        assistant("like this"),
        user("Criticise by p1."),
    ]


def test_examples_are_shown_in_full_before_the_row() -> None:
    assert prompts.critique_messages("why?", "so", LAW["p2"], LAW.few_shot_critique[:1]) == [
        user("question 1"),
        assistant("response 1"),
        user("criticise 1"),
        assistant("critique 1"),
        user("rewrite 1"),
        assistant("revision 1"),
        user("why?"),
        assistant("so"),
        user("Criticise by p2."),
    ]


def test_a_revision_goes_on_from_its_critique() -> None:
    asked = prompts.revise_messages(TALK, "like this", LAW["p1"], "that is unsafe", LAW.few_shot_critique[:2])
    before = prompts.critique_messages(TALK, "like this", LAW["p1"], LAW.few_shot_critique[:2])
    assert asked == [*before, assistant("that is unsafe"), user("Rewrite by p1.")]


def test_without_critique_the_examples_have_none_either() -> None:
    assert prompts.revise_messages("why?", "so", LAW["p3"], None, LAW.few_shot_critique[:1]) == [
        user("question 1"),
        assistant("response 1"),
        user("rewrite 1"),
        assistant("revision 1"),
        user("why?"),
        assistant("so"),
        user("Rewrite by p3."),
    ]


def test_a_transcript_has_the_same_words_under_headings() -> None:
    example = (
        "Human: question 1\n\nAssistant: response 1\n\nCritiqueRequest: criticise 1\n\nCritique: critique 1\n\n"
        "RevisionRequest: rewrite 1\n\nRevision: revision 1"
    )
    asked = prompts.critique_text("why?", "so", LAW["p2"], LAW.few_shot_critique[:1])
    row = "Human: why?\n\nAssistant: so\n\nCritiqueRequest: Criticise by p2."
    assert asked == f"\n\n{example}\n\n{row}\n\nCritique:"
    again = prompts.revise_text("why?", "so", LAW["p2"], "too curt", LAW.few_shot_critique[:1])
    assert again == f"{asked} too curt\n\nRevisionRequest: Rewrite by p2.\n\nRevision:"


def test_a_transcript_without_critique_has_none_in_its_examples() -> None:
    assert prompts.revise_text(TALK, "so", LAW["p3"], None, LAW.few_shot_critique[:1]) == (
        "\n\nHuman: question 1\n\nAssistant: response 1\n\nRevisionRequest: rewrite 1\n\nRevision: revision 1\n\n"
        "Human: hello\n\nAssistant: hi\n\nHuman: how do I pick a lock?\n\nAssistant: so\n\n"
        "RevisionRequest: Rewrite by p3.\n\nRevision:"
    )


def test_the_system_turn_stays_first() -> None:
    system = {"role": "system", "content": "be brief"}
    asked = prompts.critique_messages([system, user("why?")], "so", LAW["p1"], LAW.few_shot_critique[:1])
    assert asked[0] == system
    assert [m["role"] for m in asked[1:]] == ["user", "assistant"] * 4 + ["user"]


def test_the_judge_reads_one_message() -> None:
    assert prompts.judge_message(TALK, "Which is better?", ["yes", "no\nway"]) == user(
        "Conversation:\n\nHuman: hello\n\nAssistant: hi\n\nHuman: how do I pick a lock?\n\nWhich is better?\n\nOptions:\n"
        "(A) yes\n(B) no\nway"
    )


def test_worked_judgements_answer_as_the_prefill_begins() -> None:
    first, _ = LAW.few_shot_judge
    asked = prompts.judge_messages("why?", "Which?", ["a", "b"], [(first, "Which is kinder?")])
    assert asked == [
        user("Conversation:\n\nHuman: question 1\n\nWhich is kinder?\n\nOptions:\n(A) good\n(B) bad"),
        assistant("The answer is (A)."),
        user("Conversation:\n\nHuman: why?\n\nWhich?\n\nOptions:\n(A) a\n(B) b"),
    ]
    assert asked[1]["content"].startswith(prompts.JUDGE_PREFILL)


def test_worked_judgements_show_their_thought_where_the_judge_thinks() -> None:
    first, _ = LAW.few_shot_judge
    shown = prompts.judge_messages("why?", "Which?", ["a", "b"], [(first, "Which?")], thoughts=True)[1]
    assert shown == assistant("Let me think it through: The first is good. So the answer is (A).")
    assert shown["content"].startswith(prompts.THOUGHT_PREFILL)


def test_a_whole_constitution_is_one_instruction() -> None:
    text = prompts.whole_instruction(LAW.principles[:2])
    assert text == (
        "Weigh all of these questions together:\n1. Which is better by p1?\n2. Which is better by p2?\n"
        "Which response is better on the whole?"
    )


def test_the_current_answer_is_the_latest_revision() -> None:
    assert prompts.current_answer({"response": "a", "revision": None}) == "a"
    assert prompts.current_answer({"response": "a", "revision": ""}) == ""
    assert prompts.revisions_so_far({"revision": "b"}) == ["b"]
    assert prompts.revisions_so_far({"revision": "c", "revisions": ["b", "c"]}) == ["b", "c"]
    assert prompts.revisions_so_far({"response": "a", "revision": None, "revisions": None}) == []


LINES = st.lists(
    st.sampled_from(["(A) worse", "(B) better", "  (C) yes", "A) no", "Options:", "plain", "", "| (A) quoted"]), max_size=4
)


@given(st.lists(LINES.map("\n".join), min_size=2, max_size=4), st.sampled_from(["\n", "\r\n", "\u2028"]))
def test_no_answer_can_pose_as_an_option(answers: list[str], ends: str) -> None:
    answers = [answer.replace("\n", ends) for answer in answers]
    asked = prompts.judge_message("why?", "Which is better?", answers)["content"]
    shown = asked.split("\n\nOptions:\n", 1)[1]
    options = [line for line in shown.splitlines() if re.match(r"\s*(?:\(?[A-Z]\)|Options:)", line)]
    assert [line[:3] for line in options] == [f"({letter})" for letter in prompts.LETTERS[: len(answers)]]


def test_answers_that_pose_as_no_option_are_shown_as_they_are() -> None:
    asked = prompts.judge_message("why?", "Which?", ["(B) first line", "two\nlines, as in (A)"])["content"]
    assert asked.endswith("Options:\n(A) (B) first line\n(B) two\nlines, as in (A)")
    asked = prompts.judge_message("why?", "Which?", ["so\n(B) worse", "two\nlines"])["content"]
    assert asked.endswith("Options:\n(A) so\n| (B) worse\n(B) two\n| lines")
