"""Nodes that die, freeze and come while a run goes on: no answer is lost, none is waited for long, work goes on elsewhere.

Raylets of this machine with GPUs in name only, killed and stopped with all of their processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.kills import without_token
from support.source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.kill]

NODES = """
import asyncio, json, os, secrets, signal, sys, time
from pathlib import Path
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
import psutil
from ray.cluster_utils import Cluster as Nodes
from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.run.on_ray.cluster import Cluster

here = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 << 20}
nodes = Nodes(initialize_head=True, connect=False, head_node_args={**here, "num_cpus": 2})

def come():
    return nodes.add_node(**here, num_cpus=1, num_gpus=1, wait=False)

def signalled(node, number):
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass

def closed(cluster):
    for node in list(nodes.worker_nodes):
        signalled(node, signal.SIGCONT)
    cluster.close()
    nodes.shutdown()

by_id = {node.node_id: node for node in (come(), come())}
nodes.wait_for_nodes()
cluster = Cluster(nodes.address)
cluster.start()
said, told = [], {}
cluster.on_event = lambda event: said.extend([event["text"]] if "text" in event else [])
"""
ENGINES = """
tiny = ModelSource(path=sys.argv[1], identity="tiny", engine="transformers", options={"num_gpus": 1, "replicas": 2})
links = cluster.engine(tiny, "base", "client")
took, failed, going = [], [], True

async def asking(client, number):
    n = 0
    while going:
        n += 1
        begun = time.monotonic()
        answer = await client.ask(Request(f"word {number} {n}", Sampling(max_tokens=8)))
        took.append(time.monotonic() - begun)
        if not isinstance(answer, Completion):
            failed.append(str(answer))

async def until(is_so, seconds):
    begun = time.monotonic()
    while not is_so() and time.monotonic() - begun < seconds:
        cluster._poll()
        await asyncio.sleep(0.1)
    return time.monotonic() - begun

async def trial():
    global going
    async with EngineClient(links) as client:
        where = [await link._actor.node.remote() for link in links]
        told["spread"] = len(set(where)) == 2
        tasks = [asyncio.ensure_future(asking(client, n)) for n in range(24)]
        await until(lambda: len(took) > 100, 120)
        signalled(by_id[where[0]], signal.SIGKILL)
        told["lost noticed after"] = await until(lambda: any("is lost" in text for text in said), 90)
        before = len(took)
        await until(lambda: len(took) > before + 100, 120)
        told["answered by the survivor"] = len(took) - before
        come()
        told["replaced after"] = await until(lambda: all(replica.up for replica in client._replicas), 180)
        where = [await link._actor.node.remote() for link in links]
        frozen = next(node for node in nodes.worker_nodes if node.node_id == where[0])
        took.clear()
        heard = len(said)  # the node that was killed may have been said not to answer before it was said to be lost
        signalled(frozen, signal.SIGSTOP)
        await until(lambda: any("doesn't answer" in text for text in said[heard:]), 90)
        going = False
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        told["longest"] = max(took)
        told["client"] = client.told()
        signalled(frozen, signal.SIGKILL)

try:
    asyncio.run(trial())
finally:
    closed(cluster)
print(json.dumps({**told, "failed": failed, "said": said}))
"""
WORK = """
import ray

class Works:
    def __init__(self, notes):
        self.notes = notes

    def run(self, report):
        with self.notes.open("a") as file:
            print(ray.get_runtime_context().get_node_id(), time.time(), file=file, flush=True)
        while len(begun(self.notes)) < 2:
            time.sleep(0.1)
        return {}

def begun(notes):
    return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []

def tried(name, number):
    notes = Path(sys.argv[1]) / name
    assert cluster.submit(Works(notes), "train", gpus=1)
    until, ended, hit = time.monotonic() + 120, [], 0.0
    while cluster.busy() and time.monotonic() < until:
        ended += [str(finished.error) for finished in cluster.wait(0.2)]
        if not hit and begun(notes):
            hit = time.time()
            signalled(by_id[begun(notes)[0][0]], number)
    (first, _), *others = begun(notes)
    told[name] = {"ended": ended, "elsewhere": [node != first for node, _ in others], "after": float(others[0][1]) - hit}

try:
    tried("killed", signal.SIGKILL)
    by_id |= {node.node_id: node for node in [come()]}
    while sum(node.gpus for node in cluster._nodes.up) != 2:
        list(cluster.wait(0.2))
    tried("frozen", signal.SIGSTOP)
finally:
    closed(cluster)
print(json.dumps({**told, "said": said}))
"""


def told_by(script: str, argument: str) -> dict[str, Any]:
    command = [sys.executable, "-c", NODES + script, argument]
    done = subprocess.run(command, capture_output=True, text=True, env=without_token(), timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    (only,) = done.stdout.splitlines()  # Ray tells of lost nodes, too, but not here
    found: dict[str, Any] = json.loads(only)
    print(json.dumps(found, indent=1))
    return found


def test_a_lost_engine_s_node_and_a_frozen_one_cost_no_answer_and_one_that_comes_is_used() -> None:
    told = told_by(ENGINES, str(ROOT / "examples" / "tiny" / "model"))
    assert told["failed"] == []
    assert told["spread"]
    assert any("127.0.0.1 (1 CPU cores, 1 GPUs) is lost; there are 1 GPUs" in text for text in told["said"])
    assert any("has come; there are 2 GPUs" in text for text in told["said"])
    assert told["answered by the survivor"] > 100
    assert told["replaced after"] < 180
    assert any("says nothing" in text for text in told["client"])
    assert told["longest"] < 60  # Ray would wait for a minute; under 15 s where the machine does nothing else


def test_work_of_a_lost_node_and_of_a_frozen_one_goes_on_elsewhere_at_once(tmp_path: Path) -> None:
    told = told_by(WORK, str(tmp_path))
    for how in ("killed", "frozen"):
        assert told[how]["ended"] == ["None"]
        assert told[how]["elsewhere"] == [True]
