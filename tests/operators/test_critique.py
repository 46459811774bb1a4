"""`critique`: the principle a row draws, the examples it is shown, and what an edited constitution changes."""

from __future__ import annotations

import asyncio
from typing import Any

from caiflow.engine.constitution.few_shot import example_id
from caiflow.engine.constitution.load import Constitution, load_constitution
from caiflow.engine.llm.base import Completion
from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.operators.critique import Critique, CritiqueParams
from caiflow.operators.judging.prompts import TRANSCRIPT_STOPS, critique_messages, critique_text, user
from support.row_llm import RuleLLM
from support.small_constitution import small_constitution

LAW = small_constitution()
UIDS = [f"row{i}" for i in range(60)]


def step(law: Constitution | None = LAW, seed: int = 3, **fields: Any) -> Critique:
    params = CritiqueParams.model_validate({"input": "answers", "model": "base", **fields})
    return Critique(params, StepContext(seed=seed, constitution=law))


def row(uid: str = "r", **columns: Any) -> Row:
    empty = dict.fromkeys(("revision", "revisions"))
    return {"uid": uid, "prompt": [user("why?")], "response": "so", **empty, **columns}


def run(operator: Critique, given: Row, say: Any = lambda asked: " too curt ") -> tuple[Row, RuleLLM]:
    llm = RuleLLM(say)
    result = asyncio.run(operator.row(given, llm))
    assert isinstance(result, dict)
    return result, llm


def test_the_critique_is_asked_under_the_drawn_principle() -> None:
    written, llm = run(step(few_shot=2), row())
    (principle,) = LAW.draw(3, "r", 0)
    assert llm.asked[0].prompt == critique_messages("why?", "so", principle, LAW.few_shot_critique[:2])
    assert written == {
        "principle": principle.id,
        "critique": "too curt",
        "critique_truncated": False,
        "few_shot": [example_id(e) for e in LAW.few_shot_critique[:2]],
        "round": 1,
    }


def test_a_transcript_is_continued_up_to_the_next_heading() -> None:
    written, llm = run(step(few_shot=1, format="transcript"), row())
    (principle,) = LAW.draw(3, "r", 0)
    (asked,) = llm.asked
    assert (asked.kind, asked.prompt) == ("complete", critique_text("why?", "so", principle, LAW.few_shot_critique[:1]))
    assert asked.sampling.stop == TRANSCRIPT_STOPS
    assert written["critique"] == "too curt"
    _, own = run(step(format="transcript", sampling={"stop": ["END"]}), row())
    assert own.asked[0].sampling.stop == ("END",)


def test_rows_draw_independently_and_repeatably() -> None:
    drawn = [run(step(), row(uid))[0]["principle"] for uid in UIDS]
    assert set(drawn) == {"p1", "p2", "p3", "p4"}
    assert drawn == [run(step(), row(uid))[0]["principle"] for uid in UIDS]
    assert drawn != [run(step(seed=4), row(uid))[0]["principle"] for uid in UIDS]


def test_a_revised_row_is_criticised_for_its_revision_under_a_new_draw() -> None:
    given = row(revision="gently so", revisions=["gently so"])
    written, llm = run(step(), given)
    assert llm.asked[0].prompt[1]["content"] == "gently so"
    assert written["principle"] == LAW.draw(3, "r", 1)[0].id
    assert written["round"] == 2


def test_an_edited_principle_concerns_only_the_rows_that_drew_it() -> None:
    before, after = step(), step(small_constitution(p2="Mind the tone."))
    changed = {uid for uid in UIDS if before.row_identity(row(uid)) != after.row_identity(row(uid))}
    assert changed == {uid for uid in UIDS if LAW.draw(3, uid, 0)[0].id == "p2"}
    assert before.identity() == after.identity()


def test_drawn_examples_differ_between_rows_and_first_ones_dont() -> None:
    drawn = {tuple(run(step(few_shot=2, examples="drawn"), row(uid))[0]["few_shot"]) for uid in UIDS}
    first = {tuple(run(step(few_shot=2), row(uid))[0]["few_shot"]) for uid in UIDS}
    assert len(drawn) == 6
    assert len(first) == 1
    assert all(len(set(ids)) == 2 for ids in drawn)


def test_another_example_is_another_identity() -> None:
    assert step(few_shot=1).row_identity(row()) != step(few_shot=2).row_identity(row())


def test_a_constitution_without_critiques_is_found_before_the_run() -> None:
    judging_only = load_constitution({"name": "j", "principles": [{"id": "a", "judge": "Which?"}]})
    assert [path for path, *_ in step(judging_only).check()] == [()]
    (problem,) = step(few_shot=9).check()
    assert problem[0] == ("few_shot",)
    assert "3 examples, got 9" in problem[1]
    assert list(step(few_shot=3).check()) == []


def test_columns_and_figures() -> None:
    operator = step()
    assert set(run(operator, row())[0]) == set(operator.writes())
    assert operator.columns({"answers": Columns({"uid": "text"})}).types["principle"] == "text"
    assert operator.metrics([{"principle": "p2"}, {"principle": "p1"}, {"principle": "p2"}], {}) == {
        "principles": {"p1": 1, "p2": 2}
    }


def test_a_critique_cut_at_max_tokens_is_marked() -> None:
    written, _ = run(step(), row(), lambda asked: Completion("too cu", "length"))
    assert (written["critique"], written["critique_truncated"]) == ("too cu", True)
