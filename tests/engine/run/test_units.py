"""What travels to a worker."""

from __future__ import annotations

import asyncio
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.operator import RowLLM, RowOperator, RowParams, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.run.flows import FlowUnit, Joining, Shard
from caiflow.engine.run.llms import LedgeredLLMs
from caiflow.engine.run.units import MeasureUnit, TableUnit, TrainUnit, staged_anew
from caiflow.engine.store.checkpoints import CHECKPOINTS, COMPLETE, have_rest, is_to_rest
from caiflow.engine.store.claims import Claims
from caiflow.operators.sft import Sft, SftParams
from support.runs_without_ray import AskedLink


class Worked(RowOperator[RowParams]):
    """Works something out that can't travel."""

    name = "worked"
    params_type = RowParams

    @cached_property
    def worked_out(self) -> object:
        return lambda: self.context.seed

    def writes(self) -> dict[str, ColumnType]:
        return {"answer": "text"}

    async def row(self, row: Row, llm: RowLLM) -> Row:
        return {"answer": str(self.worked_out)}


def test_an_operator_is_made_again_where_it_arrives() -> None:
    operator = Worked(RowParams(input="rows"), StepContext(seed=7))
    assert operator.worked_out
    sent = FlowStep("step", operator, "rows", identity="id", namespace="worked-none")
    arrived = pickle.loads(pickle.dumps(sent)).operator
    assert (type(arrived), arrived.params, arrived.context) == (Worked, operator.params, operator.context)
    assert "worked_out" not in vars(arrived)


def test_another_attempt_has_folders_of_its_own(tmp_path: Path) -> None:
    flow = FlowUnit([], tmp_path, {}, {"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "part").write_text("of a process that is lost, or only seems to be")
    second, third = staged_anew(flow, 2), staged_anew(flow, 3)
    assert isinstance(second, FlowUnit)
    assert isinstance(third, FlowUnit)
    assert not second.staged.items() & third.staged.items()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sorted(tmp_path.iterdir()) == sorted(third.staged.values())


def test_a_step_that_is_joined_again_leaves_the_other_steps_alone(tmp_path: Path) -> None:
    flow = FlowUnit([], tmp_path, {}, {name: tmp_path / name for name in ("one", "other")}, tmp_path / "ledger")
    for folder in flow.staged.values():
        folder.mkdir()
        (folder / "part").touch()
    step = FlowStep("one", Worked(RowParams(input="rows"), StepContext()), "rows", "id", "worked-none")
    again = staged_anew(Joining(flow, step, []), 2)
    assert isinstance(again, Joining)
    assert again.flow.staged["other"] == tmp_path / "other"
    assert list(tmp_path.rglob("part")) == [tmp_path / "other" / "part"]
    assert again.flow.staged["one"].is_dir()


def test_what_a_lost_process_claimed_is_free_for_the_one_begun_in_its_place(tmp_path: Path) -> None:
    flow, key = FlowUnit([], tmp_path, {}, {}, tmp_path / "ledger"), bytes(16)
    operator = Worked(RowParams(input="rows"), StepContext(seed=7))
    step: Any = "a", operator, {}, {}, tmp_path / "out"
    measure, train = MeasureUnit(*step, {}, flow.ledger_dir), TrainUnit(*step, tmp_path, {}, flow.ledger_dir)
    for tries, unit in enumerate((flow, Shard(flow, 0, 1, range(0), "group"), measure, train), start=2):
        lost, begun = (Claims(flow.ledger_dir / "worked-m") for _ in range(2))
        assert lost.take(key)
        assert not begun.take(key)
        staged_anew(unit, tries)
        assert begun.take(key)
        begun.close()


def test_a_training_that_is_to_move_rests_behind_a_new_checkpoint(tmp_path: Path) -> None:
    params = SftParams.model_validate({"input": "rows", "model": "base"})
    step: Any = "taught", Sft(params, StepContext()), {}, {}, tmp_path / "out"
    train = TrainUnit(*step, tmp_path, {}, tmp_path / "ledger")
    checkpoints = [tmp_path / CHECKPOINTS / f"checkpoint-{number}" for number in (9, 10)]
    for checkpoint in checkpoints:
        checkpoint.mkdir(parents=True)
    (checkpoints[0] / COMPLETE).touch()
    kept = train.lay_down()
    assert (is_to_rest(tmp_path), kept()) == (True, False)
    have_rest(tmp_path, False)  # as at the end of a pause of the run
    assert (kept(), is_to_rest(tmp_path)) == (False, True)
    (checkpoints[1] / COMPLETE).touch()
    assert kept()
    train.take_up(rests=False)
    assert not is_to_rest(tmp_path)


def test_only_what_is_kept_as_it_goes_moves_to_other_processes(tmp_path: Path) -> None:
    params = SftParams.model_validate({"input": "rows", "model": "base"})
    step: Any = "one", Sft(params, StepContext()), {}, {}, tmp_path
    flow = FlowUnit([], tmp_path, {}, {}, tmp_path)
    joining = Joining(flow, FlowStep("one", Worked(RowParams(input="rows"), StepContext()), "rows", "id", "worked-none"), [])
    moves = [
        flow,
        Shard(flow, 0, 2, range(0), "group"),
        MeasureUnit(*step, {}, tmp_path),
        TrainUnit(*step, tmp_path, {}, tmp_path),
    ]
    stay = [joining, TableUnit(*step), TrainUnit(*step, tmp_path, {}, tmp_path, learnt=tmp_path)]
    assert [unit.moves for unit in (*moves, *stay)] == [True] * 4 + [False] * 3
    assert [unit.told for unit in (moves[1], moves[2])] == [" (shard 1 of 2)", "one"]


def test_who_asks_a_table_tells_how_fast_it_is_answered(tmp_path: Path) -> None:
    async def ask(row: Row, llm: RowLLM) -> Row:
        return {"answer": (await llm.complete(f"{row['uid']} is")).text}

    async def told() -> list[dict[str, Any]]:
        async with EngineClient([AskedLink()]) as client:
            operator = Worked(RowParams(input="rows"), StepContext(seed=7))
            llms = LedgeredLLMs(operator, {"m": ModelSource("m", "m")}, {"m": client}, tmp_path)
            before = llms.progress()
            llms.expect(7)
            await llms.map("asked", "m", [{"uid": str(number)} for number in range(5)], ask)
            half = llms.progress()
            await llms.map("asked", "m", [{"uid": str(number)} for number in range(5, 8)], ask)
            llms.close()
            return [before, half, llms.progress()]

    before, half, after = asyncio.run(told())
    assert before == {}
    assert (half["done"], half["total"], half["completion_tokens"]) == (5, 7, 10)
    assert (after["done"], after["total"]) == (8, 8)
    assert after["tokens_per_second"] > 0
