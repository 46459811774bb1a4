"""`converse`: whose turn it is and what each side sees, where talks end, and that no turn is paid for twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.errors import EngineError
from caiflow.engine.flow.outcomes import Asked as AskedModel
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import Expected, RowDropped, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from caiflow.operators.converse import Converse, ConverseParams
from caiflow.operators.judging.prompts import assistant, user
from support.flows import step
from support.loading import load
from support.real_data import REAL_DATA, needs
from support.row_llm import Asked, RuleLLM
from support.scripted import ScriptedEngine

TRAITS = [
    {"id": "kind", "rule": "I would rather be kind than clever"},
    {"id": "plain", "revision": "Rewrite it in plain words."},
]


def converse(**fields: Any) -> Converse:
    given = load_constitution({"name": "traits", "principles": fields.pop("principles", TRAITS)})
    params = ConverseParams.model_validate({"input": "rows", "model": "m", **fields})
    return Converse(params, StepContext(seed=3, constitution=given))


def talked(llm: RuleLLM, prompt: Any = "Why is the sky blue?", uid: str = "1", **fields: Any) -> Row:
    return asyncio.run(converse(**fields).row({"uid": uid, "prompt": prompt}, llm))


def numbered() -> RuleLLM:
    number = count()
    return RuleLLM(lambda asked: turn(next(number)))


def turn(number: int) -> str:
    return f"{number} apples and {number} pears make {number} more"


def said(row: Row) -> list[str]:
    return [turn["content"] for turn in row["messages"]]


def test_the_model_takes_both_sides_in_turn_each_as_the_assistant_of_the_other() -> None:
    llm = numbered()
    row = talked(llm, turns=2, system="Be yourself.", user={"system": "Ask on.", "sampling": {"temperature": 1}})
    assert row["messages"] == [
        user("Why is the sky blue?"),
        assistant(turn(0)),
        user(turn(1)),
        assistant(turn(2)),
    ]
    assert (row["written"], row["ended"], row["truncated"]) == (3, "", False)
    first, second, third = llm.asked
    assert first.prompt == [{"role": "system", "content": "Be yourself."}, user("Why is the sky blue?")]
    assert second.prompt == [
        {"role": "system", "content": "Ask on."},
        user("Begin the conversation."),
        assistant("Why is the sky blue?"),
        user(turn(0)),
    ]
    assert [turn["role"] for turn in third.prompt] == ["system", "user", "assistant", "user"]
    assert [asked.sampling.temperature for asked in llm.asked] == [0, 1, 0]
    assert [asked.sample for asked in llm.asked] == [0, 1, 2], "each turn has a seed of its own"


def test_where_the_assistant_spoke_last_or_nobody_has_the_user_begins() -> None:
    llm = numbered()
    row = talked(llm, [user("Hi."), assistant("What shall we talk about?")], turns=1)
    assert said(row)[2:] == [turn(0), turn(1)]
    assert llm.asked[0].prompt == [user("Begin the conversation."), assistant("Hi."), user("What shall we talk about?")]
    llm = numbered()
    assert [turn["role"] for turn in talked(llm, [], turns=1)["messages"]] == ["user", "assistant"]
    assert llm.asked[0].prompt == [user("Begin the conversation.")]
    assert (converse(turns=1).calls(), converse(turns=1, openings=["Hi."], accept=["empty"]).calls()) == (2, 3)
    assert converse().expects({"rows": Expected(7, exact=True)}) == Expected(7)


def test_a_model_without_chat_training_goes_on_with_a_transcript() -> None:
    llm = numbered()
    talked(llm, turns=2, format="transcript")
    assert llm.asked[1].prompt == f"\n\nHuman: Why is the sky blue?\n\nAssistant: {turn(0)}\n\nHuman:"
    assert llm.asked[1].sampling.stop[:2] == ("\n\nHuman:", "\n\nAssistant:")


@pytest.mark.parametrize(
    ("second", "ended"),
    [
        (" ", "empty"),
        ("round and round it goes, " * 6, "circles"),
        ("Tell me: why is the sky blue?", "copies_turn"),
        ("Blue is a colour of short waves.\nHuman: And red?", "human_turn"),
    ],
)
def test_a_talk_ends_before_a_turn_that_says_nothing_or_nothing_new(second: str, ended: str) -> None:
    def flawed_at_the_third(asked: Asked) -> str:
        return second if asked.sample == 2 else turn(asked.sample)

    row = talked(RuleLLM(flawed_at_the_third), turns=4, end_at=["empty", "circles", "copies_turn", "human_turn"])
    assert (said(row)[1:], row["written"], row["ended"]) == ([turn(0)], 1, ended)
    metrics = converse().metrics([row, {**row, "ended": "", "written": 5}], {})
    assert metrics == {"mean_turns": 3, "ended": {ended: 1}, "truncated": 0}


def test_one_that_ends_at_once_is_left_out_and_one_that_fills_the_context_is_kept() -> None:
    with pytest.raises(RowDropped, match="ended at once: empty"):
        talked(RuleLLM(lambda asked: ""))

    def overflows(asked: Asked) -> str:
        if asked.sample == 3:
            raise EngineError("too long", kind="overflow")
        return turn(asked.sample)

    row = talked(RuleLLM(overflows))
    assert (row["written"], row["ended"], row["messages"][-1]["role"]) == (3, "context", "assistant")
    with pytest.raises(EngineError):
        talked(RuleLLM(lambda asked: overflows(replace(asked, sample=3))))


def test_a_turn_is_drawn_again_before_it_ends_the_talk_or_leaves_it_out() -> None:
    def second_try(asked: Asked) -> str | Completion:
        return Completion("Blue" if asked.sample < 10 else "Blue is what", finish="length" if asked.sample < 10 else "stop")

    row = talked(RuleLLM(second_try), turns=1, accept=["truncated"], retry_temperature=1)
    assert (said(row)[-1], row["draws"], row["truncated"]) == ("Blue is what", 2, False)
    with pytest.raises(RowDropped, match="not accepted: truncated"):
        talked(RuleLLM(lambda asked: Completion("Blue", finish="length")), accept=["truncated"], tries=2, retry_temperature=1)
    asked = RuleLLM(lambda asked: "")
    with pytest.raises(RowDropped, match="at once"):
        talked(asked, accept=["empty"], tries=2, retry_temperature=1)
    assert len(asked.asked) == 2


def test_openings_are_drawn_by_the_row_and_speak_of_its_columns() -> None:
    operator = converse(openings=["Hello.", "What do you make of {{ topic }}?"], turns=1)
    assert operator.needs() == {"rows": ["topic"]}
    rows = [asyncio.run(operator.row({"uid": f"r{i}", "topic": "rain"}, numbered())) for i in range(40)]
    drawn = Counter(said(row)[0] for row in rows)
    assert drawn.keys() == {"Hello.", "What do you make of rain?"}
    assert min(drawn.values()) > 8
    assert rows[0]["prompt"] == rows[0]["messages"][:1]
    assert "prompt" in operator.writes()


def test_the_constitution_is_in_view_when_turns_are_written_and_not_in_what_is_learnt() -> None:
    llm = numbered()
    shown = "I am so:\n{{ principles }}"
    row = talked(llm, turns=2, system=shown, user={"system": shown}, system_kept="You talk to a copy.")
    seen = "I am so:\n1. I would rather be kind than clever\n2. Rewrite it in plain words."
    assert {asked.prompt[0]["content"] for asked in llm.asked} == {seen}
    assert row["messages"][0] == {"role": "system", "content": "You talk to a copy."}
    assert "kind" not in json.dumps(row)
    other = [{"id": "kind", "rule": "I would rather be clever than kind"}, TRAITS[1]]
    assert converse(system=shown).identity() != converse(system=shown, principles=other).identity()
    assert converse(system="You are kind.").identity() == converse(system="You are kind.", principles=other).identity()


def test_what_its_fields_get_wrong_is_found_before_a_run() -> None:
    found = [*converse(end_at=["circle"], accept=["empty"]).check()]
    assert [(finding.path, finding.message) for finding in found] == [
        (("tries",), "a greedy draw gives the same answer again"),
        (("end_at", 0), "there is no check `circle` of one turn"),
    ]
    assert "circles" in found[1].hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"turns": 0},
        {"turns": 10**9},
        {"openings": ["{{ topic"]},
        {"user": {"cue": ""}},
        {"user": {"tone": "kind"}},
        {"format": "xml"},
    ],
    ids=str,
)
def test_what_cant_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        converse(**wrong)


def test_an_opening_from_a_stranger_runs_no_code_and_a_principle_shows_no_other() -> None:
    with pytest.raises(ValueError, match=r"an opening: .*unsafe"):
        talked(numbered(), openings=["{{ uid.__class__.__mro__ }}"])
    llm = numbered()
    talked(llm, system="{{ principles }}", principles=[{"id": "loop", "rule": "I say {{ principles }}"}], turns=1)
    assert llm.asked[0].prompt[0]["content"] == "1. I say {{ principles }}"


def flow_of(folder: Path, engines: Mapping[str, ScriptedEngine], prompts: list[str]) -> list[Row]:
    """Stream prompts through a talk of two models on engines of their own; an empty list where a row failed."""
    operator = converse(turns=3, user={"model": "other"}, retries=0)
    given = replace(step("talk", operator, "rows"), others={"other": AskedModel("other", "other@1", False)})
    source = folder / "source"
    if not source.exists():
        with RowsWriter(source, {"uid": "text", "prompt": "messages"}) as writer:
            writer.write_rows([{"uid": f"u{i}", "prompt": [user(text)]} for i, text in enumerate(prompts)])

    async def go() -> list[Row]:
        hosts = {name: EngineHost(lambda engine=engine: engine) for name, engine in engines.items()}
        ledger, writer = Ledger(folder / "ledger", given.namespace), RowsWriter(folder / f"out{len(list(folder.glob('out*')))}")
        try:
            async with EngineClient([LocalLink(hosts["m"])]) as own, EngineClient([LocalLink(hosts["other"])]) as other:
                flow = Flow([given], {given.namespace: ledger}, {"m": own, "other": other}, {"talk": writer})
                tallies = await flow.run(Rows(source))
        finally:
            ledger.close()
            for host in hosts.values():
                host.close()
        if tallies["talk"].error:
            return []
        writer.close()
        rows = list(Rows(writer.dir).pylist())
        assert tallies["talk"].cached == len(rows) or tallies["talk"].prompt_tokens > 0
        return rows

    return asyncio.run(go())


def test_a_second_model_says_the_users_turns_and_no_turn_of_either_is_paid_for_twice(tmp_path: Path) -> None:
    def by(name: str, dies_after: int = 10**6) -> ScriptedEngine:
        seen = count(1)

        def script(request: Request) -> Answer:
            if next(seen) > dies_after:
                return EngineError("gone", kind="timeout")
            return Completion(f"{name} says {request.seed} to {request.prompt[-1]['content'][-9:]}", "stop", 5, 5)

        return ScriptedEngine(script)

    prompts = [f"question {i}" for i in range(4)]
    calm = {"m": by("m"), "other": by("other")}
    rows = flow_of(tmp_path / "calm", calm, prompts)
    assert [(turn["role"], turn["content"].split()[0]) for turn in rows[0]["messages"][1:]] == [
        ("assistant", "m"), ("user", "other"), ("assistant", "m"), ("user", "other"), ("assistant", "m"),
    ]  # fmt: skip
    assert (len(calm["m"].asked), len(calm["other"].asked)) == (12, 8)
    broken, mended = {"m": by("m"), "other": by("other", dies_after=3)}, {"m": by("m"), "other": by("other")}
    assert flow_of(tmp_path / "wild", broken, prompts) == []
    assert flow_of(tmp_path / "wild", mended, prompts) == rows
    answered = 3 + len(broken["m"].asked)
    assert answered + sum(len(engine.asked) for engine in mended.values()) == 20


@needs(REAL_DATA / "hh_harmless_200.jsonl")
def test_people_s_dialogues_are_gone_on_with_in_turn() -> None:
    """Templates such as Mistral's and Gemma's refuse two turns of one side, and a talk that the assistant begins."""
    rows, _ = load(REAL_DATA / "hh_harmless_200.jsonl", format="hh")
    llm = numbered()
    for row in rows:
        given = talked(llm, row["prompt"], row["uid"], turns=2)
        assert given["messages"][: len(row["prompt"])] == row["prompt"]
        assert given["written"] == 3
    assert max(len(row["prompt"]) for row in rows) > 4
    alternating = ["user", "assistant"] * 50
    assert all([turn["role"] for turn in asked.prompt] == alternating[: len(asked.prompt)] for asked in llm.asked)
    assert {len(asked.prompt) % 2 for asked in llm.asked} == {1}
