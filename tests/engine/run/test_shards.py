"""Chains given in shards: how many, what is told of them, and what becomes of the whole where one fails or is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import AskAnewError, StepError
from caiflow.engine.operator import Resources
from caiflow.engine.rows.folder import Rows
from caiflow.engine.run.flows import FlowUnit, Joining, Shard
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.cluster import Finished
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.nodes import Node
from caiflow.engine.run.shards import LEAST_ROWS, Sharding, cut, number_of_shards, together
from caiflow.engine.run.units import Unit
from caiflow.engine.store.journal import read_run
from support.bad_server import Reply, bad_server, said
from support.flows import Ask, params, step, write_source
from support.kills import end_started, start, victims
from support.raylets import carried_out
from support.runs_without_ray import AskedLink

ROWS = 40


@pytest.mark.parametrize(
    ("fields", "rows", "nodes", "number"),
    [
        ({}, 10 * LEAST_ROWS, 1, 1),
        ({}, 10 * LEAST_ROWS, 4, 4),
        ({}, 3 * LEAST_ROWS, 4, 3),
        ({}, LEAST_ROWS - 1, 4, 1),
        ({"workers": 3}, 100, 1, 3),
        ({"workers": 3}, 2, 1, 2),
        ({"workers": 3}, 0, 1, 1),
        ({"workers": 1}, 10 * LEAST_ROWS, 4, 1),
        ({"workers": 8, "concurrency": 2}, 100, 1, 2),
    ],
)
def test_a_chain_is_cut_as_asked_or_once_for_each_node_that_is_worth_it(
    fields: dict[str, int], rows: int, nodes: int, number: int
) -> None:
    own = {"resources": Resources(workers=fields["workers"])} if "workers" in fields else {}
    limits = {name: value for name, value in fields.items() if name != "workers"}
    steps = [step("one", Ask(params()), "source"), step("two", Ask(params(**own, **limits), "answer", "second"), "one")]
    assert number_of_shards(steps, rows, nodes) == number
    places = cut(rows, number)
    assert [place for places in places for place in places] == list(range(rows))
    assert max(map(len, places)) - min(map(len, places)) <= 1


def test_progress_is_told_of_all_shards_together() -> None:
    counts = dict.fromkeys(("cached", "dropped", "failed", "calls", "prompt_tokens", "completion_tokens"), 2)
    one = {
        "step": "s",
        "done": 3,
        "total": 10,
        **counts,
        "busy_s": 4.0,
        "left_s": 9.0,
        "tokens_per_second": 5.0,
        "waiting": None,
    }
    other = {**one, "done": 4, "busy_s": 5.0, "left_s": None, "tokens_per_second": None, "waiting": "its server"}
    told = together([one, other])
    assert (told["step"], told["done"], told["total"], told["calls"]) == ("s", 7, 20, 4)
    assert (told["busy_s"], told["left_s"], told["tokens_per_second"], told["waiting"]) == (5.0, None, 5.0, "its server")


class Here:
    """A cluster that carries units out in this process, one at a time: what it can't show is shown on Ray below."""

    def __init__(self, fails: Callable[[Unit], Exception | None] = lambda _: None, most: int = 99) -> None:
        self.machines = Machines(several=False)
        self.machines.nodes = [Node("a", "", 1, 0), Node("head", "", 0, 0), Node("b", "", 1, 0)]
        self.on_event: Report = lambda _: None
        self.fails, self.most = fails, most
        self.begun: list[tuple[Unit, str, Sequence[str]]] = []
        self.closed = False
        self._going: list[Unit] = []

    def submit(self, unit: Unit, pool: str, room: Room = Room(), *, engines: Sequence[str] = ()) -> bool:
        if len(self._going) == self.most:
            return False
        self._going.append(unit)
        self.begun.append((unit, room.node, engines))
        return True

    def wait(self, timeout_s: float) -> Iterator[Finished]:
        if self._going:
            unit = self._going.pop(0)
            error = self.fails(unit)
            yield Finished(unit, {} if error else unit.run(self.on_event), error)

    def close(self) -> None:
        self.closed = True


def given(
    folder: Path, cluster: Here, shards: int = 4
) -> tuple[list[Finished], FlowUnit, list[AskedLink], list[dict[str, Any]]]:
    """Give a chain in shards, and wait for what becomes of it."""
    source = write_source(folder / "source", [f"question {i}" for i in range(ROWS)]).dir
    steps = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    staged = {one.name: folder / "staging" / one.name for one in steps}
    for path in staged.values():
        path.mkdir(parents=True, exist_ok=True)
    flow, links = FlowUnit(steps, source, {}, staged, folder / "ledger"), [AskedLink() for _ in range(4)]
    events: list[dict[str, Any]] = []
    sharding = Sharding(cluster, events.append)  # type: ignore[arg-type]
    assert sharding.submit(flow, [{"m": [link]} for link in links], ["engine"])
    found: list[Finished] = []
    for _ in range(20):
        found += sharding.wait(0)
    return found, flow, links, events


@pytest.mark.parametrize("most", [99, 1])
def test_shards_are_one_unit_to_a_run_and_each_is_near_a_node_of_its_own(tmp_path: Path, most: int) -> None:
    cluster = Here(most=most)
    (whole,), flow, links, events = given(tmp_path, cluster)
    assert (whole.unit, whole.error) == (flow, None)
    assert (whole.results["two"].rows_out, whole.results["two"].counts["calls"]) == (ROWS, ROWS)
    assert [row["uid"] for row in Rows(flow.staged["two"]).pylist()] == [f"u{i}" for i in range(ROWS)]
    assert [len(link.answered) for link in links] == [20, 20, 20, 20]
    assert [(node, engines) for unit, node, engines in cluster.begun if isinstance(unit, Shard)] == [
        (node, ["engine"]) for node in ("a", "b", "a", "b")
    ]
    assert [engines for unit, _, engines in cluster.begun if isinstance(unit, Joining)] == [(), ()]
    assert max(event["total"] for event in events if event.get("step") == "one" and "total" in event) == ROWS
    assert not any("shard" in event for event in events)
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("error", [StepError("its process died 3 times"), AskAnewError("the server takes no seeds")])
def test_a_shard_that_fails_for_good_ends_the_whole(tmp_path: Path, error: Exception) -> None:
    cluster = Here(lambda unit: error if isinstance(unit, Shard) and unit.number == 1 else None)
    (whole,), flow, links, _ = given(tmp_path, cluster)
    assert (whole.unit, whole.error, whole.results) == (flow, error, {})
    assert [len(link.answered) for link in links] == [20, 0, 0, 0], "the others ask nothing more"
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["one", "two"]


def test_a_step_that_can_not_be_joined_ends_the_whole(tmp_path: Path) -> None:
    error = StepError("no space left")
    cluster = Here(lambda unit: error if isinstance(unit, Joining) and unit.step.name == "one" else None)
    (whole,), flow, _, _ = given(tmp_path, cluster)
    assert (whole.unit, whole.error, whole.results) == (flow, error, {})


SPEC = """\
caiflow: 1
constitution: harmless
models: {served: {source: m, base_url: "URL", concurrency: 8}}
steps:
  rows:     {op: load, source: rows.jsonl}
  answer:   {op: generate, input: rows, model: served, resources: {workers: SHARDS}}
  critique: {op: critique, input: answer, model: served}
"""


def answered(body: dict[str, Any], _number: int) -> Reply:
    """Answer by what is asked, after a while."""
    time.sleep(0.02)
    return said(f"An answer to {len(json.dumps(body))} of {hash(json.dumps(body['messages'])) % 9} kinds.")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.kill
def test_shards_killed_and_gone_on_with_make_the_same_bytes_and_pay_for_nothing_twice(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(500)))

    def run(name: str, shards: int, disturb: Callable[[Any], None] = lambda _: None) -> dict[str, bytes]:
        spec = tmp_path / f"{name}.yaml"
        spec.write_text(SPEC.replace("URL", server.url).replace("SHARDS", str(shards)))
        for _ in range(2):
            driver = start(spec, tmp_path / name, tmp_path / f"home-{name}")
            disturb(driver)
            if driver.wait(timeout=240) == 0:
                break
        made = read_run(tmp_path / name)
        assert made["status"] == "done", (tmp_path / name / "console.txt").read_text()
        folders = [tmp_path / name / "steps" / one for one in ("answer", "critique")]
        return {
            f"{path.parent.name}/{path.name}": path.read_bytes()
            for folder in folders
            for path in sorted(folder.glob("*.parquet"))
        }

    def until(calls: int) -> None:
        until_s = time.monotonic() + 200  # Ray's start may take minutes on a busy machine
        while len(server.calls) < calls and time.monotonic() < until_s:
            time.sleep(0.01)

    def disturb(driver: Any) -> None:
        if len(server.calls) < 300:
            until(300)
            workers = victims(driver, "worker")
            assert len(workers) >= 3
            workers[-1].send_signal(signal.SIGKILL)
            until(600)
            os.killpg(driver.pid, signal.SIGKILL)

    with bad_server() as server:
        server.reply = answered
        try:
            whole = run("whole", 1)
            assert len(server.calls) == 1_000
            server.calls.clear()
            sharded = run("sharded", 3, disturb)
        finally:
            end_started()
        twice = len(server.calls) - 1_000
        told = f"{sum(sharded[name] == whole[name] for name in whole)} of {len(whole)} files the same in three shards"
        figure("shards", f"{told}; {twice} of 1,000 calls made twice when a shard and the run were killed")
        assert sharded == whole
        assert twice <= 2 * server.most_at_once, "what was on its way at each of the two kills, and nothing else"
    assert "a worker died and its work goes on in another" in (tmp_path / "sharded" / "console.txt").read_text()


NODES = """
import asyncio, json, signal, sys, time
from pathlib import Path
from support.raylets import HERE, head
nodes = head(num_cpus=0)
import ray
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.operator import RowOperator, RowParams, StepContext
from caiflow.engine.rows.folder import Rows
from caiflow.engine.run.flows import FlowUnit
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.shards import Sharding
from support.flows import write_source
from support.lost_nodes import signalled

class Where(RowOperator[RowParams]):
    name = "where"
    params_type = RowParams

    def reads(self):
        return ("question",)

    def writes(self):
        return {"node": "text"}

    async def row(self, row, llm):
        await asyncio.sleep(1)
        return {"node": ray.get_runtime_context().get_node_id()}

for _ in range(3):
    nodes.add_node(**HERE, num_cpus=1, wait=False)
nodes.wait_for_nodes()
folder, texts, found = Path(sys.argv[1]), [], []
source = write_source(folder / "source", [f"question {n}" for n in range(600)]).dir
step = FlowStep("where", Where(RowParams(input="rows"), StepContext(seed=1)), "rows", "id", "where-none")
(folder / "where").mkdir()
cluster = Cluster(nodes.address)
cluster.start()
sharding = Sharding(cluster, lambda event: texts.extend([event["text"]] if "text" in event else []))
try:
    flow = FlowUnit([step], source, {}, {"where": folder / "where"}, folder / "ledger")
    assert sharding.submit(flow, [{}] * len(sharding.nodes), [])
    until, lost = time.monotonic() + 100, ""
    while not found and time.monotonic() < until:
        found += sharding.wait(0.2)
        segments = (folder / "ledger" / "where-none").glob("*.seg")
        if not lost and sum(path.stat().st_size > 4000 for path in segments) == 3:
            gone = nodes.worker_nodes.copy().pop()
            lost = gone.node_id
            signalled(gone, signal.SIGKILL)
    rows = Rows(found[0].results["where"].staged).pylist()
finally:
    sharding.close()
    nodes.shutdown()
ranges = [[row["node"] for row in rows[start : start + 200]] for start in (0, 200, 400)]
print(json.dumps({"error": str(found[0].error), "lost": lost, "ranges": ranges, "texts": texts}))
"""


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.kill
def test_a_shard_whose_node_is_lost_goes_on_elsewhere_with_what_it_has_kept(tmp_path: Path) -> None:
    told = json.loads(carried_out(NODES, str(tmp_path)).stdout.splitlines()[-1])
    print(json.dumps([told["texts"], [sorted(set(nodes)) for nodes in told["ranges"]], told["lost"]]))
    assert told["error"] == "None"
    assert [len(nodes) for nodes in told["ranges"]] == [200, 200, 200]
    assert len({nodes[0] for nodes in told["ranges"]}) == 3, "each shard began on a node of its own"
    (moved,) = [nodes for nodes in told["ranges"] if told["lost"] in nodes]
    assert len(set(moved)) > 1, "what the lost node had done is kept, the rest is done elsewhere"
    assert any("is lost" in text or "doesn't answer" in text for text in told["texts"])
