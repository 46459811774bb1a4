"""`filter`: what each rule leaves out, which rule is the reason, and that no row is lost."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from caiflow.engine.constitution.few_shot import example_id
from caiflow.engine.constitution.load import Constitution, CritiqueExample
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import load_tokenizer
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.filtering.filter import Filter
from caiflow.operators.filtering.params import FilterParams
from support.tables import ask, rows_of, run_table

COPIED = "write down what he owes and since when, then ask him in writing"
EXAMPLES = (
    CritiqueExample(tuple(ask("How do I get my money?")), "Steal it.", "c?", "That is theft.", "r?", f"No. {COPIED}, please."),
    CritiqueExample(
        tuple(ask("Weeds?")),
        "No.",
        "c?",
        "Needless.",
        "r?",
        "Pour boiling water over them on a dry day and wait until they wilt.",
    ),
)
TEXTS = ("I", "I won't help to take it.", "Plant it in the garden, then water it twice and wait.", "word " * 60)
LAW = Constitution("small", (), EXAMPLES)


def step(*drop: Any) -> Filter:
    return Filter(FilterParams(input="given", drop=drop), StepContext(constitution=LAW))


def kept(tmp_path: Path, rows: list[Row], *drop: Any) -> tuple[Rows, dict[str, Any]]:
    number = len(list(tmp_path.iterdir()))
    return run_table(step(*drop), tmp_path / f"out{number}", {"given": rows_of(tmp_path / f"in{number}", rows)})


def answers(*texts: str | None, response: str = "first answer", **columns: Any) -> list[Row]:
    return [
        {"uid": f"r{n}", "prompt": ask(f"q{n}"), "response": response, "revision": text, **columns}
        for n, text in enumerate(texts)
    ]


def left_out(tmp_path: Path, rows: list[Row], *drop: Any) -> dict[str, str]:
    out, _ = kept(tmp_path, rows, *drop)
    gone = {row["uid"]: row["reason"] for row in out.dropped().pylist()}
    assert [row["uid"] for row in out.pylist()] == [row["uid"] for row in rows if row["uid"] not in gone]
    return gone


def test_leak_is_n_words_of_an_example_in_any_spelling(tmp_path: Path) -> None:
    rows = answers(
        f"Sure: {COPIED}!",
        "WRITE down what he owes, and since WHEN -- then wait",
        "write down what he owes today and since when you know it",
        "Pour boiling water over them on a dry day.",
        None,
    )
    assert set(left_out(tmp_path, rows, "few_shot_leak")) == {"r0", "r1", "r3"}
    assert set(left_out(tmp_path, rows, {"few_shot_leak": {"n": 12}})) == {"r0"}


CRITIQUE = "The answer tells how to take what belongs to a friend, and that is theft."


def test_copies_are_held_against_the_critique_the_prompt_the_examples_or_the_response(tmp_path: Path) -> None:
    asked = "how do I take the bicycle of my neighbour"
    rows = answers(
        f"{CRITIQUE} So don't.",
        f"You ask {asked}",
        f"No. {COPIED}, please.",
        "Ask for it, politely, and bring it back by evening.",
        None,
        "",
        critique=CRITIQUE,
        response="ask for it politely and bring it back by the evening",
    )
    rows[1]["prompt"] = ask(asked)
    assert set(left_out(tmp_path, rows, "copies")) == {"r0"}
    assert set(left_out(tmp_path, rows, {"copies": {"of": "prompt"}})) == {"r1"}
    assert set(left_out(tmp_path, rows, {"copies": {"of": "examples"}})) == {"r2"}
    assert set(left_out(tmp_path, rows, {"copies": {"of": "response"}})) == {"r3"}
    assert not left_out(tmp_path, rows, {"copies": {"share": 0.95}})
    shown = [{**row, "few_shot": [example_id(EXAMPLES[1])]} for row in rows]
    assert not left_out(tmp_path, shown, {"copies": {"of": "examples"}})


def test_the_first_rows_that_a_rule_leaves_out_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = {"given": rows_of(tmp_path / "in", answers(*["first answer"] * 5, "another"))}
    rule, job = step("unchanged"), Job(out, given)
    with RowsWriter(out, dict(rule.columns({"given": Columns(given["given"].columns)}).types)) as writer:
        rule.table(job, writer)
    assert job.uids == {"dropped_unchanged": ["r0", "r1", "r2"]}


def test_copies_of_a_column_with_itself_are_refused() -> None:
    found = step({"copies": {"of": "response"}}).check_columns({"given": Columns({"prompt": "messages", "response": "text"})})
    assert "with itself" in next(iter(found)).message
    lawless = Filter(FilterParams(input="given", drop=({"copies": {"of": "examples"}},)), StepContext())
    assert "few-shot examples" in next(iter(lawless.check())).message
    assert step("copies").needs() == {"given": ["revision|response|chosen", "critique"]}


def test_leak_ignores_what_the_own_prompt_says(tmp_path: Path) -> None:
    rows = answers(f"You should {COPIED}, yes.")
    rows[0]["prompt"] = ask(f"My friend told me to {COPIED}.")
    assert not left_out(tmp_path, rows, {"few_shot_leak": {"n": 9}})


def test_leak_goes_by_the_examples_a_row_was_shown(tmp_path: Path) -> None:
    first, second = map(example_id, EXAMPLES)
    rows = answers(COPIED, COPIED, COPIED, COPIED)
    for row, shown in zip(rows, ([first], [second], [], None), strict=True):
        row["few_shot"] = shown
    assert set(left_out(tmp_path, rows, "few_shot_leak")) == {"r0", "r3"}


def test_unchanged_and_common_prefix(tmp_path: Path) -> None:
    rows = answers("first answer \n", "first answer, longer", "another", None)
    assert set(left_out(tmp_path, rows, "unchanged")) == {"r0"}
    assert set(left_out(tmp_path, rows, {"common_prefix": {"chars": 12}})) == {"r0", "r1"}
    assert set(left_out(tmp_path, rows, {"common_prefix": {"chars": 13}})) == {"r0"}


def test_length_counts_characters(tmp_path: Path) -> None:
    rows = answers("", "äöü", "🦊🦊🦊🦊", None)
    assert set(left_out(tmp_path, rows, {"length": {"column": "revision", "min": 1, "max": 3}})) == {"r0", "r2", "r3"}


def test_duplicates_keep_the_first_that_is_kept(tmp_path: Path) -> None:
    rows = [{"uid": str(n), "prompt": ask("q"), "response": text} for n, text in enumerate(["a", "b", "a", "bb", "b"])]
    assert left_out(tmp_path, rows, "duplicates") == {"2": "duplicates", "4": "duplicates"}
    by_prompt = {"duplicates": {"columns": ["prompt"]}}
    gone = left_out(tmp_path, rows, {"length": {"column": "response", "min": 2}}, by_prompt)
    assert gone == {"0": "length", "1": "length", "2": "length", "4": "length"}, "row 3 is the first of its prompt to be kept"


def test_duplicates_across_many_batches(tmp_path: Path) -> None:
    rows = [{"uid": str(n), "prompt": ask("q"), "response": f"answer {n % 30_000}"} for n in range(70_000)]
    out, metrics = kept(tmp_path, rows, "duplicates")
    assert [row["uid"] for row in out.pylist()] == [str(n) for n in range(30_000)]
    assert metrics == {"dropped": {"duplicates": 40_000}}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Assistant: hello", True),
        ("fine\n\n  **Human:** more", True),
        ("ok\nRevision Request : again", True),
        ("The assistant: a job description", False),
        ("Note: humans are kind", False),
    ],
)
def test_role_prefixes(tmp_path: Path, text: str, gone: bool) -> None:
    assert bool(left_out(tmp_path, answers(text), "role_prefixes")) is gone


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Sure! Here is a revised version of the answer: ...", True),
        ("Here's the improved response, without harm.", True),
        ("Revised response: no.", True),
        ("I have rewritten it as you asked.", True),
        ("Here is how to plant a tree.", False),
        ("Sure, plant it in spring.", False),
        ("I can't help, but here is a better version of events.", False),
    ],
)
def test_preamble(tmp_path: Path, text: str, gone: bool) -> None:
    assert bool(left_out(tmp_path, answers(text), "preamble")) is gone
    assert left_out(tmp_path, answers(text), {"preamble": {"phrases": [text[:4].upper()]}})


@pytest.mark.parametrize(
    ("shown", "other"),
    [
        ("先把他欠你的钱和日期都写下来,然后再去找他谈。", "请在干燥的日子里把开水倒在上面就可以了。"),
        ("まず貸したお金と日付を書いておいて、それから話しましょう。", "乾いた日に熱いお湯をかけてください。"),
        ("จดไว้ก่อนว่าเขาติดเงินคุณเท่าไร แล้วค่อยไปคุย", "เทน้ำเดือดลงไปในวันที่อากาศแห้ง"),
        ("पहले लिख लो कि वह कितना और कब से देता है फिर बात करो", "सूखे दिन में उन पर उबलता पानी डालो और देखो क्या होता है"),
        ("سجل أولا ما يدين لك به ومنذ متى ثم تحدث معه بهدوء", "اسكب الماء المغلي عليها في يوم جاف وانتظر قليلا حتى تموت"),
    ],
)
def test_a_leak_and_repetition_are_found_in_every_script(tmp_path: Path, shown: str, other: str) -> None:
    law = Constitution("small", (), (EXAMPLES[0]._replace(revision=shown),))
    rows = answers(f"{other[:3]} {shown}", other, other + other + other)
    made = Filter(FilterParams(input="given", drop=("few_shot_leak", "repetition")), StepContext(constitution=law))
    out, _ = run_table(made, tmp_path / "out", {"given": rows_of(tmp_path / "in", rows)})
    reasons = {row["uid"]: row["reason"] for row in out.dropped().pylist()}
    assert {uid: reason.split(":")[0] for uid, reason in reasons.items()} == {"r0": "few_shot_leak", "r2": "repetition"}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("😊" * 40, True),
        ("I am here for you. " * 8, True),
        ("You are valid, valued and cared for, and you can ask a friend, a doctor or a neighbour for help today.", False),
        ("", False),
        ("short", False),
        (None, False),
    ],
)
def test_repetition(tmp_path: Path, text: str | None, gone: bool) -> None:
    rows = answers("something else altogether", text, "and one more, to have neighbours")
    assert ("r1" in left_out(tmp_path, rows, "repetition")) is gone


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), min_size=1, max_size=8), st.integers(1, 4))
def test_repetition_is_the_share_of_repeated_ngrams(tmp_path: Path, texts: list[list[str]], n: int) -> None:
    def share(words: list[str]) -> float:
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    rows = answers(*(" ".join(words) for words in texts))
    expected = {f"r{place}" for place, words in enumerate(texts) if share(words) > 0.3}
    assert set(left_out(tmp_path, rows, {"repetition": {"n": n, "max": 0.3}})) == expected


def test_where_drops_rows_for_which_it_is_true(tmp_path: Path) -> None:
    rows = answers("one", "one two", "one two three", None)
    assert left_out(tmp_path, rows, {"where": "words(revision) < 2 or contains(revision, 'three')"}) == {
        "r0": "where",
        "r2": "where",
    }


def test_where_takes_the_marks_of_what_was_cut(tmp_path: Path) -> None:
    marks = [(True, False), (False, False), (None, False), (None, None), (False, True)]
    rows = [
        {**row, "critique_truncated": critique, "revision_truncated": revision}
        for row, (critique, revision) in zip(answers(*"abcde"), marks, strict=True)
    ]
    found = left_out(tmp_path, rows, {"where": "critique_truncated or revision_truncated"})
    assert found == {"r0": "where", "r4": "where"}


def test_where_that_does_not_fit_the_columns_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a rule doesn't fit the columns of given"):
        kept(tmp_path, answers("a"), {"where": "words(prompt) > 3"})


def test_the_first_rule_in_order_is_the_reason_and_every_rule_is_counted(tmp_path: Path) -> None:
    rows = answers("first answer", "Assistant: x", "fine enough", "no")
    out, metrics = kept(
        tmp_path,
        rows,
        "role_prefixes",
        "unchanged",
        {"length": {"column": "revision", "min": 3}},
        {"length": {"column": "response", "max": 0}},
    )
    assert metrics == {"dropped": {"role_prefixes": 1, "unchanged": 1, "length": 1, "length_2": 1}}
    assert out.num_rows == 0
    assert [row["reason"] for row in out.dropped().pylist()] == ["unchanged", "role_prefixes", "length_2", "length"]


def test_without_a_column_the_first_answer_there_is_is_looked_at(tmp_path: Path) -> None:
    rows = [{"uid": "a", "prompt": ask("q"), "response": "Human: x"}, {"uid": "b", "prompt": ask("q"), "response": "x"}]
    assert set(left_out(tmp_path, rows, "role_prefixes")) == {"a"}


def test_all_columns_pass_through(tmp_path: Path) -> None:
    rows = answers("a", "b", meta={"k": [1, 2]}, tags=["t"])
    out, _ = kept(tmp_path, rows, "unchanged")
    assert out.pylist() == rows
    assert out.dropped().num_rows == 0


def test_needs_and_columns() -> None:
    made = step("unchanged", "duplicates", {"length": {"column": "critique", "max": 9}}, {"where": "p_chosen < 0.5"})
    assert made.needs() == {"given": ["revision|response|chosen", "response", "prompt", "critique", "p_chosen"]}
    given_columns = Columns({"uid": "text"})
    assert made.columns({"given": given_columns}) == given_columns


@pytest.mark.parametrize(
    ("rule", "path", "message"),
    [
        ({"where": "nope("}, ("drop", 0, "where"), "not an expression"),
        ({"length": {"column": "a"}}, ("drop", 0, "length"), "keeps every row"),
        ({"length": {"column": "a", "min": 5, "max": 4}}, ("drop", 0, "length", "max"), "at least min"),
        ({"length": {"column": "a", "max": 4, "unit": "tokens"}}, ("drop", 0, "length", "unit"), "tokenizer"),
        ({"length": {"column": "a", "max": 4, "model": "m"}}, ("drop", 0, "length", "unit"), "tokenizer"),
    ],
)
def test_checks(rule: Any, path: tuple[Any, ...], message: str) -> None:
    (found,) = step(rule).check()
    assert found[0] == path
    assert message in found[1]


def test_leak_needs_a_constitution() -> None:
    made = Filter(FilterParams(input="given", drop=("few_shot_leak",)), StepContext())
    assert [path for path, *_ in made.check()] == [("drop", 0)]


@pytest.mark.parametrize("rule", [{}, {"unchanged": {}, "where": "a > 1"}, {"unchanged": None}, {"nope": {}}, "nope"])
def test_a_rule_is_one_known_name(rule: Any) -> None:
    with pytest.raises(ValidationError):
        step(rule)


def test_identity_has_the_examples_only_where_they_count() -> None:
    assert step("unchanged").identity() == {}
    assert COPIED in str(step("few_shot_leak").identity())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=30))
def test_no_row_is_lost_whatever_the_texts(tmp_path: Path, texts: list[str | None]) -> None:
    rows = answers(*texts) or answers("one")
    every = ("few_shot_leak", "unchanged", "common_prefix", "duplicates", "role_prefixes", "repetition", "preamble")
    out, metrics = kept(tmp_path, rows, *every, {"where": "length(revision) > 20"})
    assert sorted(row["uid"] for row in [*out.pylist(), *out.dropped().pylist()]) == sorted(row["uid"] for row in rows)
    assert sum(metrics["dropped"].values()) == out.dropped().num_rows


def test_length_counts_tokens_of_the_named_model(tmp_path: Path) -> None:
    model = ModelSource(str(resources.files("caiflow.examples.tiny") / "model"), "tiny")
    sizes = [len(load_tokenizer(model)(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    rows = [*answers(*TEXTS), *answers(None)]
    given_rows = {"given": rows_of(tmp_path / "in", [{**row, "uid": str(place)} for place, row in enumerate(rows)])}
    rule = {"length": {"column": "revision", "min": 2, "max": sizes[2], "unit": "tokens", "model": "base"}}
    out, _ = run_table(step(rule), tmp_path / "out", given_rows, {"base": model})
    kept_sizes = [sizes[int(row["uid"])] for row in out.pylist()]
    assert kept_sizes == [size for size in sizes if 2 <= size <= sizes[2]] != sizes


ROWS = Columns({"uid": "text", "prompt": "messages", "response": "text", "score": "number"})


@pytest.mark.parametrize(
    ("rule", "path", "message"),
    [
        ("unchanged", (), "compares `response` with itself"),
        ("common_prefix", (), "compares `response` with itself"),
        ({"unchanged": {"column": "score"}}, ("unchanged", "column"), "`score` holds number"),
        ({"unchanged": {"other": "prompt"}}, ("unchanged", "other"), "`prompt` holds messages"),
        ({"length": {"column": "prompt", "min": 1}}, ("length", "column"), "looks at texts, and `prompt` holds messages"),
        ({"repetition": {"column": "prompt"}}, ("repetition", "column"), "`prompt` holds messages"),
        ({"where": "words(prompt) > 3"}, ("where",), "`words` takes a text"),
    ],
)
def test_rules_that_do_not_suit_their_columns_are_refused(rule: Any, path: tuple[str, ...], message: str) -> None:
    (found,) = step("duplicates", rule).check_columns({"given": ROWS})
    assert found[0] == ("drop", 1, *path)
    assert message in found[1]


def test_rules_that_suit_their_columns_are_not_refused() -> None:
    revised = ROWS.plus({"revision": "text"})
    assert not list(
        step("unchanged", "repetition", {"length": {"column": "response", "min": 1}}).check_columns({"given": revised})
    )
    assert not list(step("unchanged").check_columns({"given": Columns(open=True)}))


def test_a_column_compared_with_itself_fails_the_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unchanged compares `response` with itself"):
        kept(tmp_path, [{"uid": "a", "response": "x"}], "unchanged")


def test_columns_of_any_name_are_kept(tmp_path: Path) -> None:
    out, _ = kept(
        tmp_path, [{"uid": "a", "response": "x", "flag0": 3, "_flag0": "y"}], {"length": {"column": "response", "min": 1}}
    )
    assert out.pylist() == [{"uid": "a", "response": "x", "flag0": 3, "_flag0": "y"}]


def test_a_value_with_a_semicolon_is_no_advice() -> None:
    (wrong,) = step({"where": 'response == "a; b" +'}).check()
    assert wrong.message.endswith("got 'response == \"a; b\" +'")
    assert wrong.hint.startswith("write an expression")


def test_where_passes_over_nan(tmp_path: Path) -> None:
    rows = [{"uid": str(n), "prompt": ask("q"), "score": score} for n, score in enumerate([float("nan"), 0.9, 0.1])]
    assert left_out(tmp_path, rows, {"where": "score > 0.5"}) == {"1": "where"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"name": "f"}], [{"name": "g"}]),
        ([{"role": "user", "content": "q", "name": "x"}], [{"role": "user", "content": "q", "name": "y"}]),
        ({"a": 1, "b": None}, {"a": 1, "b": [2]}),
        ([1, None], [1, 2]),
        ([[1], [2]], [[1, 2]]),
        (ask("q"), ask("r")),
        (["a", "b"], ["ab"]),
    ],
)
def test_duplicates_may_be_of_any_columns(tmp_path: Path, one: Any, other: Any) -> None:
    rows = [{"uid": str(n), "prompt": ask("q"), "about": about} for n, about in enumerate([one, other, one, None, None])]
    gone = {"2": "duplicates", "4": "duplicates"}
    assert left_out(tmp_path, rows, {"duplicates": {"columns": ["about"]}}) == gone


def test_a_column_without_a_name_keeps_what_it_has(tmp_path: Path) -> None:
    rows = [{"uid": str(n), "prompt": ask("q"), "response": "word " * n, "": n} for n in range(3)]
    out, _ = kept(tmp_path, rows, {"where": "words(response) > 1"})
    assert out.pylist() == rows[:2]
