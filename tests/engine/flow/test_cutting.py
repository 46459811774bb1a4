"""Chains that go on until enough rows passed: exact counts, the same rows whatever finishes first, and the surplus kept."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.flow.cutting import Tried
from caiflow.engine.llm.base import Answer, Request
from caiflow.engine.operator import Until
from caiflow.engine.plan.changes import changes, describe
from caiflow.engine.plan.components import Components, Resolver
from caiflow.engine.plan.forecast import foresee
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import Rows
from caiflow.engine.spec.load import check_spec, load_spec
from caiflow.engine.store.artifacts import Store
from support.forked_runs import IN_FLIGHT, ForkedRun
from support.kills import ledger_records, rows_by_step, start
from support.runs_without_ray import AskedLink, carried_out, says, write_spec

SPEC = """\
caiflow: 1
name: targets
constitution: rules.yaml
models: {{m: {{source: served, base_url: "http://127.0.0.1:9/v1"}}}}
steps:
  rows:     {{op: load, source: rows.jsonl}}
  answer:   {{op: generate, input: rows, model: m, retries: 0}}
  critique: {{op: critique, input: answer, model: m, retries: 0}}
  kept:     {{op: filter, input: critique, drop: [{{where: "{where}"}}], until: {until}}}
"""


def targets(folder: Path, until: str, rows: int = 300) -> Path:
    """Write a spec whose last step keeps about a sixth of its rows; return its path."""
    path = write_spec(folder, [f"question {n}" for n in range(rows)], ["Is it kind?"])
    path.write_text(SPEC.format(until=until, where="contains(critique, '7') or contains(critique, '3')"))
    return path


class Shuffled(AskedLink):
    """Answers in an order that chance decides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Return some of what was answered."""
        await asyncio.sleep(0)
        self._chance.shuffle(self._ready)
        some = self._chance.randint(0, 3)
        ready, self._ready = self._ready[:some], self._ready[some:]
        return ready


def made(store: Path, spec: Path, link: AskedLink) -> dict[str, list[str]]:
    """Carry a spec out; return the rows' uids by step."""
    resolver, _ = carried_out(spec, Store(store), link)
    return {name: [row["uid"] for row in Rows(found.path).pylist()] for name, found in resolver.artifacts.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what every row comes to, where all are wanted."""
    folder = tmp_path_factory.mktemp("whole")
    return made(folder / "store", targets(folder, "{accepted: 300}"), AskedLink())


def test_the_first_rows_that_pass_are_kept_whatever_finishes_first(whole: dict[str, list[str]], tmp_path: Path) -> None:
    assert 20 < len(whole["kept"]) < 100
    cut = whole["answer"].index(whole["kept"][11]) + 1
    for number in range(3):
        link = Shuffled(number)
        found = made(tmp_path / f"store{number}", targets(tmp_path, "{accepted: 12, at_most: 200}"), link)
        assert found["kept"] == whole["kept"][:12]
        assert found["answer"] == found["critique"] == whole["answer"][:cut]
        assert 2 * cut <= len(link.answered) < 2 * (cut + 30)


def test_more_wanted_later_asks_only_what_is_not_there(whole: dict[str, list[str]], tmp_path: Path) -> None:
    first, second, third = AskedLink(), AskedLink(), AskedLink()
    made(tmp_path / "store", targets(tmp_path, "{accepted: 12}"), first)
    found = made(tmp_path / "store", targets(tmp_path, "{accepted: 20}"), second)
    assert found["kept"] == whole["kept"][:20]
    assert not {asked.seed for asked in first.answered} & {asked.seed for asked in second.answered}
    planned = make_plan(load_spec(targets(tmp_path, "{accepted: 12}")), Store(tmp_path / "store"))
    assert {step.state for step in planned.steps} == {"cached"}
    less, more = (make_plan(load_spec(targets(tmp_path, f"{{accepted: {n}}}")), Store(tmp_path / "store")) for n in (15, 30))
    assert [(step.to_run, step.at_most) for step in less.steps[1:3]] == [(0, False)] * 2
    assert less.steps[1].reason == "all rows are in the ledger"
    assert [(step.rows, step.at_most) for step in more.steps[1:3]] == [(300, True)] * 2
    assert sum(step.cached for step in more.steps[1:3]) == len(first.answered + second.answered)
    assert re.search(r"; 2\d of 30 accepted; about \d\d rows more as they pass so far$", more.steps[1].reason)
    assert made(tmp_path / "store", targets(tmp_path, "{accepted: 15}"), third)["kept"] == whole["kept"][:15]
    assert third.answered == []
    twelve, fifteen = (components(tmp_path / "store", targets(tmp_path, f"{{accepted: {n}}}")) for n in (12, 15))
    assert [describe(change) for change in changes(twelve, fifteen)] == ["until.accepted 12 -> 15"]
    other = {**twelve, "until.steps": fifteen["until.steps"]}
    assert [describe(change) for change in changes(twelve, other)] == ["until.steps changed"]


def test_what_it_will_take_is_foretold_by_what_passed(tmp_path: Path) -> None:
    def foretold(number: int) -> list[tuple[int, bool]]:
        found = foresee(load_spec(targets(tmp_path, f"{{accepted: {number}, at_most: 290}}")), Store(tmp_path / "store"))
        return [(step.calls, step.at_most) for step in found.steps]

    assert foretold(24) == [(290, True)] * 2, "nothing is known yet"
    first, second = AskedLink(), AskedLink()
    made(tmp_path / "store", targets(tmp_path, "{accepted: 24, at_most: 290}"), first)
    assert foretold(24) == []
    told = foretold(40)
    made(tmp_path / "store", targets(tmp_path, "{accepted: 40, at_most: 290}"), second)
    assert [at_most for _, at_most in told] == [False] * 2
    assert all(calls == pytest.approx(len(second.answered) / 2, rel=0.5) for calls, _ in told), (told, len(second.answered))


def components(store: Path, spec: Path) -> Components:
    """Return what decides the answers of a spec that is carried out."""
    resolver, _ = carried_out(spec, Store(store), AskedLink())
    found = resolver.components(resolver.spec.steps["answer"])
    assert found is not None
    return found


def test_what_is_lacking_is_said_where_the_input_ends_first(whole: dict[str, list[str]], tmp_path: Path) -> None:
    link = AskedLink()
    spec = targets(tmp_path, "{accepted: 40, at_most: 60}")
    resolver, said = carried_out(spec, Store(tmp_path / "store"), link)
    kept = [uid for uid in whole["kept"] if uid in whole["answer"][:60]]
    assert [row["uid"] for row in Rows(resolver.artifacts["kept"].path).pylist()] == kept
    assert said == [f"{len(kept)} of 40 accepted in the first 60 rows"]
    assert len(link.answered) == 120


def test_a_kill_in_the_middle_leaves_the_same_rows_and_pays_for_none_twice(whole: dict[str, list[str]], tmp_path: Path) -> None:
    spec, home = targets(tmp_path, "{accepted: 25, at_most: 290}"), tmp_path / "home"
    answered = 0
    for kill_after in (20, 45):
        run = ForkedRun(spec, home)
        run.kill(kill_after, 0.0)
        assert run.end() is None
        answered += run.answered
    run = ForkedRun(spec, home)
    rows = run.end()
    assert rows is not None
    assert [row["uid"] for row in rows] == whole["kept"][:25]
    records = list(ledger_records(home))
    assert len(records) == len({*records})
    begun = 2 * (whole["answer"].index(whole["kept"][24]) + 1)
    assert begun <= answered + run.answered <= begun + 2 * 40 + 2 * IN_FLIGHT


def test_a_row_that_fails_behind_the_end_fails_nothing(whole: dict[str, list[str]], tmp_path: Path) -> None:
    cut = whole["answer"].index(whole["kept"][11]) + 1

    def says_no(request: Request) -> Answer:
        asked = json.dumps(request.prompt)
        return EngineError("no", kind="context") if f'question {cut}"' in asked else says(request)

    found = made(tmp_path / "store", targets(tmp_path, "{accepted: 12}"), AskedLink(says=says_no))
    assert found["kept"] == whole["kept"][:12]
    with pytest.raises(StepError, match="context: no"):
        made(tmp_path / "store", targets(tmp_path, "{accepted: 13}"), AskedLink(says=says_no))


WRONG = {
    "kept: {op: filter, input: rows, until: {accepted: 5}}": "no step makes rows one by one for it",
    "kept: {op: filter, input: answer, until: {accepted: 5, at_most: 4}}": "at_most must be at least accepted (5), got 4",
    "kept: {op: filter, input: answer}": "no rule: every row would pass",
    "kept: {op: filter, input: answer, until: {accepted: 5}}\n  more: {op: filter, input: answer, until: {accepted: 6}}": (
        "`answer` leads up to `kept` as well, which ends it elsewhere"
    ),
}


@pytest.mark.parametrize("step", WRONG)
def test_what_can_not_end_so_is_said_where_it_stands(tmp_path: Path, step: str) -> None:
    path = targets(tmp_path, "{accepted: 5}", rows=3)
    path.write_text(path.read_text().split("  critique:")[0] + f"  {step}\n")
    (problem,) = check_spec(path)
    assert WRONG[step] in problem.message
    assert (problem.line, problem.path.split(".")[0]) == (8 + step.count("\n"), "steps")


def test_steps_that_wait_for_another_in_other_ways_begin_behind_it(tmp_path: Path) -> None:
    path = write_spec(tmp_path, ["Why?"], ["Is it kind?"])
    path.write_text(LATE)
    spec = load_spec(path)
    assert spec.led_up_to == {"kept": ("again", "verdict")}
    resolver = Resolver(spec, Store(tmp_path / "store"))
    assert set(resolver.edges(spec.steps["again"])) == {"answer", "judge_model"}  # what `verdict` waits for as well


LATE = """\
caiflow: 1
constitution: rules.yaml
models: {base: {source: tiny}}
steps:
  rows:        {op: load, source: rows.jsonl}
  answer:      {op: generate, input: rows, model: base}
  judge_model: {op: sft, input: answer, model: base}
  again:       {op: critique, input: answer, model: base}
  verdict:     {op: revise, input: again, model: judge_model}
  kept:        {op: filter, input: verdict, until: {accepted: 5}}
"""


TINY = """\
caiflow: 1
name: tiny-targets
constitution: harmless
models: {base: {source: tiny, engine: transformers}}
steps:
  red_team: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 200}
  response: {op: generate, input: red_team, model: base, sampling: {temperature: 1, max_tokens: 24}}
  critique: {op: critique, input: response, model: base, sampling: {max_tokens: 24}}
  clean:    {op: filter, input: critique, drop: [{where: "length(response) % 3 != 0"}], until: {accepted: 30, at_most: 180}}
"""


@pytest.mark.kill
@pytest.mark.soak
def test_a_real_run_killed_in_the_middle_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(TINY)
    assert start(spec, tmp_path / "calm", tmp_path / "calm-home").wait(timeout=120) == 0
    home, wild = tmp_path / "home", tmp_path / "wild"
    run = start(spec, wild, home)
    while len(list(ledger_records(home))) < 30 and run.poll() is None:
        time.sleep(0.02)
    run.kill()
    calm_said = (tmp_path / "calm" / "console.txt").read_text()
    assert re.search(r"^critique: done; .*30 of 30 accepted", calm_said, re.MULTILINE)
    assert run.wait() == -signal.SIGKILL
    paid = len(list(ledger_records(home)))
    assert start(spec, wild, home).wait(timeout=120) == 0
    calm, after = rows_by_step(tmp_path / "calm"), rows_by_step(wild)
    assert {name: [row["uid"] for row in rows] for name, rows in calm.items()} == {
        name: [row["uid"] for row in rows] for name, rows in after.items()
    }
    assert len(after["clean"]) == 30
    assert 30 < len(after["response"]) == len(after["critique"]) < 180
    assert after["clean"][-1]["uid"] == after["critique"][-1]["uid"]
    records = list(ledger_records(home))
    assert len(records) == len({*records})
    print(f"{paid} records before the kill, {len(records)} at the end, {len(after['response'])} rows for 30 accepted")


@pytest.mark.parametrize(
    ("tried", "further", "ahead"),
    [
        (Tried(), 10, 10),
        (Tried(99, 0), 1000, 109),  # nothing passed yet: as many again, and as many as are lacking
        (Tried(99, 9), 10, 20),  # one row is lacking, a tenth pass: 10, and sqrt(0.9) / 0.1 more
        (Tried(9, 9), 1, 1),
    ],
)
def test_as_many_rows_begin_as_it_takes_at_the_share_that_passed(tried: Tried, further: int, ahead: int) -> None:
    assert (tried.further(Until(10)), tried.ahead(Until(10))) == (further, ahead)
