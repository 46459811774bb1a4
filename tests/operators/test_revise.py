"""`revise`: rounds and their history, whose critique is used, and what an edited constitution changes."""

from __future__ import annotations

import asyncio
import pickle
from itertools import pairwise
from typing import Any

import pytest

from caiflow.engine.constitution.load import Constitution, load_constitution
from caiflow.engine.llm.base import Completion
from caiflow.engine.operator import RowDropped, StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.gathering import seen
from caiflow.operators.critique import Critique, CritiqueParams
from caiflow.operators.judging.prompts import critique_messages, critique_text, revise_messages, revise_text, user
from caiflow.operators.revise import Revise, ReviseParams, without_preamble
from support.row_llm import Asked, RuleLLM
from support.small_constitution import small_constitution

LAW = small_constitution()
UIDS = [f"row{i}" for i in range(60)]


def step(law: Constitution = LAW, **fields: Any) -> Revise:
    params = ReviseParams.model_validate({"input": "critiques", "model": "base", **fields})
    return Revise(params, StepContext(seed=3, constitution=law))


def row(uid: str = "r", **columns: Any) -> Row:
    return {**dict.fromkeys(step().reads()), "uid": uid, "prompt": [user("why?")], "response": "so", **columns}


def criticised(uid: str = "r", few_shot: int = 0, **columns: Any) -> Row:
    """Return a row as a `critique` step leaves it."""
    params = CritiqueParams(input="answers", model="base", few_shot=few_shot)
    operator = Critique(params, StepContext(seed=3, constitution=LAW))
    given = row(uid, **columns)
    written = asyncio.run(operator.row(given, RuleLLM(lambda asked: "given critique")))
    return {**given, **written}


def counting(asked: Asked) -> str:
    """Answer with what was asked for and the answer that it is about."""
    kind, name = asked.last.split()[0], asked.last.split()[-1].rstrip(".")
    return f"{kind.lower()[:2]} {name}"


def run(operator: Revise, given: Row) -> tuple[Any, list[Asked]]:
    llm = RuleLLM(counting)
    return asyncio.run(operator.row(given, llm)), llm.asked


def test_the_rows_own_critique_leads_to_the_revision() -> None:
    given = criticised(few_shot=2)
    written, asked = run(step(), given)
    principle = LAW[given["principle"]]
    assert [a.prompt for a in asked] == [revise_messages("why?", "so", principle, "given critique", LAW.few_shot_critique[:2])]
    assert written == {
        "principle": principle.id,
        "critique": "given critique",
        "critique_truncated": False,
        "revision": f"re {principle.id}",
        "revision_truncated": False,
        "round": 1,
        "principles": [principle.id],
        "critiques": ["given critique"],
        "revisions": [f"re {principle.id}"],
    }
    assert set(written) == set(step().writes())


def test_transcripts_hold_both_requests_and_each_rounds_own_critique() -> None:
    written, asked = run(step(rounds=2, format="transcript"), criticised())
    assert [a.kind for a in asked] == ["complete"] * 3
    first, second = (LAW[name] for name in written["principles"])
    before = written["revisions"][0]
    assert asked[0].prompt == revise_text("why?", "so", first, "given critique")
    assert asked[1].prompt == critique_text("why?", before, second)
    assert asked[2].prompt == revise_text("why?", before, second, written["critiques"][1])
    _, straight = run(step(critique=False, format="transcript"), row())
    assert "Critique" not in straight[0].prompt


def test_four_rounds_draw_four_principles_and_go_on_from_each_revision() -> None:
    written, asked = run(step(rounds=4), criticised())
    drawn = [LAW.draw(3, "r", i)[0] for i in range(4)]
    assert written["principles"] == [p.id for p in drawn]
    assert written["revisions"] == [f"re {p.id}" for p in drawn]
    assert written["critiques"] == ["given critique", *(f"cr {p.id}" for p in drawn[1:])]
    assert (written["round"], written["revision"]) == (4, written["revisions"][-1])
    assert len(asked) == 7
    assert asked[1].prompt == critique_messages("why?", f"re {drawn[0].id}", drawn[1])
    assert asked[2].prompt == revise_messages("why?", f"re {drawn[0].id}", drawn[1], f"cr {drawn[1].id}")
    assert step(rounds=4).calls() == 8
    assert step(rounds=4).calls_for(criticised()) == step(rounds=4).calls_for(row(), {"critique"}) == 7
    assert step(rounds=4).calls_for(row()) == 8


def test_without_a_critique_step_every_round_asks_for_its_own() -> None:
    written, asked = run(step(rounds=2), row())
    fresh, _ = run(step(rounds=2), criticised())
    assert len(asked) == 4
    assert written["principles"] == fresh["principles"]


def test_answers_of_all_rounds_have_seeds_of_their_own() -> None:
    _, asked = run(step(rounds=3), row())
    assert len({a.sample for a in asked}) == len(asked) == 6


def test_a_chain_of_steps_equals_rounds_in_one() -> None:
    first = criticised()
    once = {**first, **run(step(), first)[0]}
    second_critique = Critique(CritiqueParams(input="r", model="base"), StepContext(seed=3, constitution=LAW))
    again = {**once, **asyncio.run(second_critique.row(once, RuleLLM(counting)))}
    assert run(step(), again)[0] == run(step(rounds=2), first)[0]


def test_a_critique_of_an_earlier_answer_isnt_used_again() -> None:
    once = {**criticised(), **run(step(), criticised())[0]}
    written, asked = run(step(), once)
    assert len(asked) == 2
    assert written["critiques"] == ["given critique", written["critique"]]
    assert written["principle"] == LAW.draw(3, "r", 1)[0].id


def test_without_critique() -> None:
    written, asked = run(step(critique=False, rounds=2, few_shot=1), row())
    drawn = [LAW.draw(3, "r", i)[0] for i in range(2)]
    assert [a.prompt for a in asked] == [
        revise_messages("why?", "so", drawn[0], None, LAW.few_shot_critique[:1]),
        revise_messages("why?", f"re {drawn[0].id}", drawn[1], None, LAW.few_shot_critique[:1]),
    ]
    assert written["critique"] is None
    assert written["critiques"] == ["", ""]
    assert step(critique=False, rounds=2).calls() == 2


def test_each_round_as_a_row() -> None:
    whole, _ = run(step(rounds=3), criticised())
    rows, _ = run(step(rounds=3, rows="each"), criticised())
    assert [r["revision"] for r in rows] == whole["revisions"]
    assert [r["round"] for r in rows] == [1, 2, 3]
    assert [r["principle"] for r in rows] == whole["principles"]
    assert rows[-1] == whole


def test_an_edited_principle_concerns_only_the_rows_that_drew_it_in_some_round() -> None:
    before, after = step(rounds=2), step(small_constitution(p2="Mind the tone."), rounds=2)
    changed = {uid for uid in UIDS if before.row_identity(row(uid)) != after.row_identity(row(uid))}
    assert changed == {uid for uid in UIDS if "p2" in {LAW.draw(3, uid, i)[0].id for i in range(2)}}
    assert 0 < len(changed) < len(UIDS)


def test_a_row_criticised_under_a_foreign_principle_says_so() -> None:
    with pytest.raises(ValueError, match="'elsewhere', which constitution small doesn't have"):
        run(step(), row(principle="elsewhere", critique="hm"))


def test_a_constitution_without_revisions_is_found_before_the_run() -> None:
    half = load_constitution({"name": "half", "principles": [{"id": "a", "critique": "Criticise."}]})
    assert [message for _, message, _ in step(half).check()] == [
        "constitution half has no principle with `critique` and `revision`"
    ]
    assert [path for path, *_ in step(few_shot=7).check()] == [("few_shot",)]


def test_a_principle_that_only_criticises_is_found_where_critiques_come_from_before() -> None:
    texts = [{"id": "a", "critique": "Criticise."}, {"id": "b", "critique": "Criticise.", "revision": "Revise."}]
    operator = step(load_constitution({"name": "half", "principles": texts}))
    came = Columns({"prompt": "messages", "response": "text", "critique": "text", "principle": "text"})
    ((_, message, hint),) = operator.check_columns({operator.params.input: came})
    assert message == "the critiques may be drawn under a, which has no `revision` text"
    assert hint
    assert not list(operator.check_columns({operator.params.input: Columns({"prompt": "messages", "response": "text"})}))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Here is a revised response:\n\nNo, that would hurt.", "No, that would hurt."),
        ("Sure! Here's the rewritten answer: No.", "No."),
        ("Revision: No.", "No."),
        ("**Revised response:** No.", "No."),
        ("Assistant: No.", "No."),
        ("Here are two ways to be kind", "Here are two ways to be kind"),
        ("Sure, bees are useful.", "Sure, bees are useful."),
        ("Revision:", "Revision:"),
    ],
)
def test_preambles(text: str, kept: str) -> None:
    assert without_preamble(text) == kept


def test_preambles_stay_unless_asked() -> None:
    given = criticised()
    plain = asyncio.run(step().row(given, RuleLLM(lambda asked: "Revision: No.")))
    cut = asyncio.run(step(strip_preamble=True).row(given, RuleLLM(lambda asked: "Revision: No.")))
    assert (plain["revision"], cut["revision"]) == ("Revision: No.", "No.")


def test_figures() -> None:
    rows = [{"response": "a", "revisions": ["a"]}, {"response": "a", "revisions": ["b", "ccc"]}]
    assert step().metrics(rows, {}) == {"unchanged": 0.5, "mean_chars": 2.0}


def test_what_was_gathered_of_parts_tells_of_the_whole_to_the_last_digit() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rows: list[Row] = [
        {
            "response": " ".join(words[: 1 + n % 6]),
            "revisions": [" ".join(words[n % 4 :])],
            "principle": f"p{n % 3}",
            "draws": n,
        }
        for n in range(40)
    ]
    whole = step().metrics(rows, {})
    assert whole["by_principle"]["p0"]["words_changed"]["n"] == 14
    assert whole["draws"] == sum(range(40))
    for ends in ([0, 40, 40], [1, 17, 40]):
        joined = step().gathering()
        for start, end in pairwise([0, *ends]):
            joined.join(pickle.loads(pickle.dumps(seen(step().gathering(), rows[start:end]))))
        assert joined.figures() == whole


def test_what_is_cut_at_max_tokens_is_marked_critique_and_revision_apart() -> None:
    def cut(kind: str) -> RuleLLM:
        return RuleLLM(lambda asked: Completion(counting(asked), "length" if counting(asked).startswith(kind) else "stop"))

    def marks(llm: RuleLLM, given: Row, **fields: Any) -> list[tuple[bool | None, bool]]:
        made = asyncio.run(step(**fields).row(given, llm))
        return [(r["critique_truncated"], r["revision_truncated"]) for r in (made if isinstance(made, list) else [made])]

    assert marks(cut("re"), criticised()) == [(False, True)]
    assert marks(cut("cr"), row()) == [(True, False)]
    assert marks(cut("re"), {**criticised(), "critique_truncated": True}) == [(True, True)]
    assert marks(cut("cr"), criticised(), rounds=2, rows="each") == [(False, False), (True, False)]
    assert marks(cut("cr"), row(), critique=False) == [(None, False)]


def test_a_cut_revision_is_drawn_again_and_a_cut_critique_does_not_count_as_one() -> None:
    again = {"accept": ["truncated"], "retry_temperature": 1.0, "tries": 2}
    cut = RuleLLM(lambda asked: Completion(counting(asked), "length" if counting(asked).startswith("re") else "stop"))
    with pytest.raises(RowDropped, match="not accepted: truncated"):
        asyncio.run(step(**again).row(criticised(), cut))
    critiques = RuleLLM(lambda asked: Completion(counting(asked), "stop" if counting(asked).startswith("re") else "length"))
    assert asyncio.run(step(**again).row(row(), critiques))["draws"] == 1
    once = RuleLLM(lambda asked: Completion(counting(asked), "stop" if asked.sampling.temperature else "length"))
    made = asyncio.run(step(**again).row(criticised(), once))
    assert (made["draws"], made["revision_truncated"]) == (2, False)
