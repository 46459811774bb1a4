"""A chain's flow cut into shards: joined, they are the whole to the byte, whatever became of their rows."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.errors import EngineError
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.operator import RowLLM, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.run.flows import FlowUnit, Joining, Made, Shard, give_up
from caiflow.engine.run.units import StepResult, staged_anew
from caiflow.operators.critique import Critique
from caiflow.operators.generate import Generate
from caiflow.operators.revise import Revise
from support.flows import Ask, params, step, write_source
from support.runs_without_ray import AskedLink

ROWS = 200


def says(request: Request) -> Answer:
    """Answer by what is asked: now and then with the same, with nothing, or with a refusal to answer at all."""
    number = request.seed or 0
    if number % 61 == 0:
        return EngineError("too long for the model", kind="overflow")
    return Completion("" if number % 17 == 0 else f"This is answer {number % 5}, and so on. " * (1 + number % 3), "stop", 20, 8)


def chain(max_failed: int = ROWS) -> list[FlowStep]:
    context = StepContext(seed=5, constitution=load_constitution("harmless", Path()))
    shared = {"model": "m", "max_failed": max_failed}
    first = Generate(Generate.params_type(input="source", **shared), context)
    second = Critique(Critique.params_type(input="answer", **shared), context)
    third = Revise(Revise.params_type(input="critique", **shared), context)
    made = [("answer", first, "source"), ("critique", second, "answer"), ("revision", third, "critique")]
    return [FlowStep(name, op, source, name, f"{name}-m", "m", "m", 5, op.params) for name, op, source in made]


def flow(folder: Path, steps: Sequence[FlowStep], link: AskedLink, source: Path) -> FlowUnit:
    staged = {one.name: folder / "staging" / one.name for one in steps}
    for path in staged.values():
        path.mkdir(parents=True)
    return FlowUnit(steps, source, {"m": [link]}, staged, folder / "ledger")


def shards(unit: FlowUnit, ends: Sequence[int]) -> list[Shard]:
    """Return shards with these ends."""
    starts = [0, *ends[:-1]]
    return [Shard(unit, i, len(ends), range(*rows), "group") for i, rows in enumerate(zip(starts, ends, strict=True))]


def sent(made: Mapping[str, Made]) -> Mapping[str, Made]:
    """Return it as it comes from a worker's process."""
    found: Mapping[str, Made] = pickle.loads(pickle.dumps(made))
    return found


def joined(unit: FlowUnit, ends: Sequence[int]) -> dict[str, StepResult]:
    parts = [sent(shard.run(lambda _: None)) for shard in shards(unit, ends)]
    return one_of(replace(unit, links={}), parts)


def one_of(unit: FlowUnit, parts: Sequence[Mapping[str, Made]]) -> dict[str, StepResult]:
    """Return the steps' results, joined."""
    made: dict[str, StepResult] = {}
    for one in unit.steps:
        made |= Joining(unit, one, [part[one.name] for part in parts]).run(lambda _: None)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: StepResult, other: StepResult) -> None:
    """Hold that two results differ in nothing but where they lie and how long they took."""
    elsewhere = {"staged": None, "seconds": None}
    assert replace(one, **elsewhere) == replace(other, **elsewhere)
    assert one.staged is not None
    assert other.staged is not None
    assert files(one.staged) == files(other.staged)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    with RowsWriter(folder, {"uid": "text", "prompt": "messages", "about": None}) as out:
        for i in range(ROWS):
            prompt = [{"role": "user", "content": f"Question {i}: how is it done?"}]
            out.write_rows([{"uid": f"u{i}", "prompt": prompt, "about": {"n": i, "kinds": ["a"] * (i % 3)}}])
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StepResult]:
    return flow(tmp_path_factory.mktemp("whole"), chain(), AskedLink(says=says), source).run(lambda _: None)


@pytest.mark.parametrize("ends", [[ROWS], [1, ROWS], [66, 133, ROWS], [50, 100, 150, ROWS]], ids=lambda ends: f"{len(ends)}")
def test_shards_joined_are_the_whole(ends: list[int], source: Path, whole: dict[str, StepResult], tmp_path: Path) -> None:
    link = AskedLink(says=says)
    made = joined(flow(tmp_path, chain(), link, source), ends)
    assert list(made) == ["answer", "critique", "revision"]
    for name, result in made.items():
        same(result, whole[name])
    revision = whole["revision"]
    assert revision.counts["failed"] > 0, "what fails is part of what is compared"
    assert revision.metrics["by_principle"]
    assert any(len(reading.uids) == 3 for reading in revision.readings.values())
    assert len(link.answered) == len(set(map(repr, link.answered))), "no call is made by two"


def test_shards_without_rows_and_rows_that_are_left_out(tmp_path: Path) -> None:
    questions = [*["leave me out"] * 10, *(f"question {i}" for i in range(10))]
    source = write_source(tmp_path / "source", questions).dir
    steps = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    whole = flow(tmp_path / "a", steps, AskedLink(), source).run(lambda _: None)
    made = joined(flow(tmp_path / "b", steps, AskedLink(), source), [5, 5, 10, 20])
    for name, result in made.items():
        same(result, whole[name])
    assert (whole["one"].rows_out, whole["one"].counts["dropped"], whole["one"].metrics) == (
        10,
        10,
        {"dropped_by": {"asked to": 10}},
    )


def test_no_more_rows_may_fail_in_all_shards_than_in_one(source: Path, whole: dict[str, StepResult], tmp_path: Path) -> None:
    failed = whole["answer"].counts["failed"]
    assert failed > 1
    made = joined(flow(tmp_path, chain(failed - 1), AskedLink(says=says), source), [100, ROWS])
    assert made["answer"].staged is None
    assert "too long for the model" in made["answer"].error
    assert made["answer"].counts["failed"] == failed
    fine = joined(flow(tmp_path / "again", chain(failed), AskedLink(says=says), source), [100, ROWS])
    assert not fine["answer"].error


def test_what_one_shard_gives_up_the_others_do_too(source: Path, tmp_path: Path) -> None:
    link = AskedLink(says=says)
    unit = flow(tmp_path, chain(), link, source)
    give_up(unit, {"critique": "row u7: refused"})
    first, _ = shards(unit, [100, ROWS])
    made = first.run(lambda _: None)
    assert made["answer"].staged is not None
    assert (made["critique"].staged, made["critique"].tally.calls) == (None, 0)
    strict = flow(tmp_path / "strict", chain(max_failed=0), link, source)
    first, second = shards(strict, [100, ROWS])
    told: list[dict[str, object]] = []
    parts = [first.run(told.append), second.run(told.append)]
    assert {event["shard"] for event in told} == {0, 1}
    assert parts[0]["answer"].tally.error
    assert parts[1]["answer"].tally.calls == 0, "the first has failed for both"
    assert one_of(strict, parts)["answer"].error == parts[0]["answer"].tally.error
    lost = first.anew(2).run(told.append)  # its process died behind that, and what is given up isn't tried again
    assert (lost["answer"].staged, lost["answer"].tally.error) == (None, "")
    assert one_of(strict, [lost, parts[1]])["answer"].error == parts[0]["answer"].tally.error


class Scored(Ask):
    """Scores its column, and then what it wrote."""

    async def row(self, row: Row, llm: RowLLM) -> Row:
        scores = [await llm.score(text) for text in (row[self.column], row[self.column].upper())]
        return {self.target: str([score.prompt_logprobs for score in scores])}


def test_equal_calls_without_a_seed_are_made_once_by_all_shards_together(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [f"question {i % 5}" for i in range(40)]).dir
    links = [AskedLink(says=lambda request: Completion("", "stop", 5, 0, prompt_logprobs=(-0.5,))) for _ in range(4)]
    unit = flow(tmp_path, [step("one", Scored(params(), times=2), "source")], links[0], source)
    first, *others = shards(unit, [10, 20, 30, 40])
    parts = [first.run(lambda _: None)]
    with ThreadPoolExecutor(3) as pool:
        own = [replace(one, flow=replace(unit, links={"m": [link]})) for one, link in zip(others, links[1:], strict=True)]
        parts += pool.map(lambda one: one.run(lambda _: None), own)
    assert one_of(unit, parts)["one"].rows_out == 40
    assert [len(link.answered) for link in links] == [10, 0, 0, 0]
    again = replace(unit, staged={"one": tmp_path / "again"}, ledger_dir=tmp_path / "another")
    with ThreadPoolExecutor(2) as pool:
        halves = shards(again, [20, 40])
        own = [replace(one, flow=replace(again, links={"m": [link]})) for one, link in zip(halves, links[1:], strict=False)]
        list(pool.map(lambda one: one.run(lambda _: None), own))
    assert sum(len(link.answered) for link in links[1:]) == 10, "one waits for what the other asks"


def test_of_a_shard_begun_again_nothing_is_there_twice(source: Path, whole: dict[str, StepResult], tmp_path: Path) -> None:
    link = AskedLink(says=says)
    first, second = shards(flow(tmp_path, chain(), link, source), [50, ROWS])
    first.run(lambda _: None)
    parts = [staged_anew(first, 2).run(lambda _: None), second.run(lambda _: None)]
    assert len(link.answered) == len(set(map(repr, link.answered)))
    made = one_of(first.flow, parts)  # type: ignore[arg-type]
    assert made["revision"].staged is not None
    assert whole["revision"].staged is not None
    assert files(made["revision"].staged) == files(whole["revision"].staged)
    assert not list((tmp_path / "staging").glob("*.shard-0.1"))
    for shard in (first, second):
        shard.clean()
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["answer", "critique", "revision"]
