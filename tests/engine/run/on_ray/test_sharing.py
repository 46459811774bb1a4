"""Two flows on two nodes, neither the driver's, that want the same answers of one server at the same time.

The server holds its first answers until both have asked. Nothing is asked twice while both live; when the node of one is
killed, at most what that one was asking.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bad_server import Reply, bad_server, said
from support.lost_nodes import whole_lines
from support.raylets import carried_out

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.kill]
ROWS = 400

NODES = """
import json, signal, sys, time
from pathlib import Path
from support.raylets import HERE, head
nodes = head(num_cpus=2)
import ray
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import ModelRowParams, RowOperator, StepContext
from caiflow.engine.rows.folder import Rows
from caiflow.engine.run.flows import FlowUnit
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from support.flows import write_source
from support.lost_nodes import signalled, whole_lines

folder, url, many = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

class Asks(RowOperator[ModelRowParams]):
    name = "asks"
    params_type = ModelRowParams

    def reads(self):
        return ("question",)

    def writes(self):
        return {"answer": "text"}

    async def row(self, row, llm):
        self.note("asks", row)
        answer = await llm.chat([{"role": "user", "content": row["question"]}])
        self.note("has", row)
        return {"answer": answer.text}

    def note(self, what, row):
        with (folder / row["question"].split()[0]).open("a") as file:
            print(what, ray.get_runtime_context().get_node_id(), row["question"], file=file, flush=True)

def noted(name):
    return [line.split(" ", 2) for line in whole_lines(folder / name)]

def asked_by(name):
    return {node: [q for what, by, q in noted(name) if (what, by) == ("asks", node)] for _, node, _ in noted(name)}

by_id = {}
for card in ("rows", "rows", "asks"):
    node = nodes.add_node(**HERE, num_cpus=1, labels={"card": card}, wait=False)
    by_id[node.node_id] = node
nodes.wait_for_nodes()
first, second, *_ = by_id
cluster = Cluster(nodes.address)
cluster.start()
texts, told = [], {}
cluster.on_event = lambda event: texts.extend([event["text"]] if "text" in event else [])
options = {"base_url": url, "concurrency": 8, "node_labels": {"card": "asks"}}
served = ModelSource(path="served", identity="m@1", engine="openai", options=options)

def tried(name, killed):
    source = write_source(folder / f"source {name}", [f"{name} {n}" for n in range(many)]).dir
    asks = Asks(ModelRowParams(input="source", model="m"), StepContext())
    step = FlowStep("asks", asks, "source", "id", f"asks-{name}", "m", "m@1", 7, served=True)
    units = []
    for place, node in enumerate((first, second)):
        staged = folder / f"staged {name} {place}"
        staged.mkdir()
        links = {"m": cluster.engine(served, "served", f"client {name} {place}")}
        units.append(FlowUnit([step], source, links, {"asks": staged}, folder / "ledger"))
        assert cluster.submit(units[-1], "flow", Room(node=node), engines=list(cluster.engines._engines))
    ended, until, held = [], time.monotonic() + 200, None
    while cluster.busy() and time.monotonic() < until:
        ended += cluster.wait(0.1)
        asked = asked_by(name)
        if killed and held is None and len(asked) == 2 and min(map(len, asked.values())) >= 20:
            signalled(by_id[first], signal.SIGKILL)
            of_first = [(what, question) for what, node, question in noted(name) if node == first]
            held = sorted({q for what, q in of_first if what == "asks"} - {q for what, q in of_first if what == "has"})
    whole = [one.results["asks"] for one in ended if "asks" in one.results]
    made = [sorted(row["question"] + row["answer"] for row in Rows(one.staged).pylist()) for one in whole if one.staged]
    told[name] = {
        "errors": [*(str(one.error) for one in ended if one.error), *(one.error for one in whole if one.error)],
        "rows": [len(rows) for rows in made], "same": made[:1] == made[1:],
        "asked by": {place: len(asked_by(name).get(node, [])) for place, node in (("first", first), ("second", second))},
        "held": held,
    }

try:
    tried("both", False)
    tried("one", True)
finally:
    cluster.close()
    nodes.shutdown()
print(json.dumps({**told, "texts": texts}))
"""


def test_two_nodes_ask_for_nothing_twice_but_what_one_was_asking_when_it_was_killed(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    def both_have_asked(name: str) -> bool:
        return len({line.split(" ", 2)[1] for line in whole_lines(tmp_path / name)}) > 1

    def reply(body: dict[str, Any], _number: int) -> Reply:
        question = body["messages"][-1]["content"]
        until = time.monotonic() + 60
        while not both_have_asked(question.split()[0]) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.1)
        return said(f"An answer to {question}")

    with bad_server() as server:
        server.reply = reply
        told = json.loads(carried_out(NODES, str(tmp_path), server.url, str(ROWS)).stdout.splitlines()[-1])
    print(json.dumps(told, indent=1))
    asked = Counter(body["messages"][-1]["content"] for body in server.calls)
    twice = {name: {question for question in asked if question.startswith(name) and asked[question] > 1} for name in told}
    for name in ("both", "one"):
        assert told[name]["errors"] == []
        assert told[name]["rows"] == [ROWS, ROWS]
        assert told[name]["same"]
        assert min(told[name]["asked by"].values()) >= 20, "each had its part"
        assert sum(question.startswith(name) for question in asked) == ROWS
    figure(
        "equal runs", f"on two nodes {len(twice['both'])} of {ROWS} calls made twice, {len(twice['one'])} where one was killed"
    )
    assert twice["both"] == set()
    assert twice["one"] <= set(told["one"]["held"])
    assert max(asked.values()) <= 2
