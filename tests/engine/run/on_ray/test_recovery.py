"""Nodes that die, freeze and come while a run goes on: no answer is lost, none is waited for long, work goes on elsewhere.

Raylets of this machine with GPUs in name only, killed and stopped with all of their processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.raylets import carried_out
from support.small_models import lessons, saved
from support.source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.kill]

NODES = """
import asyncio, json, signal, subprocess, sys, time
from pathlib import Path
from support.raylets import HERE, head
nodes = head(num_cpus=2)
from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from support.lost_nodes import signalled, whole_lines

def come(gpus=1, card="one"):
    return nodes.add_node(**HERE, num_cpus=1, num_gpus=gpus, labels={"card": card}, wait=False)

def leaves(node):
    drain = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", nodes.address, "--node-id", node]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "no reason"]
    return subprocess.Popen([*drain, "--deadline-remaining-seconds", "300"], stdout=subprocess.DEVNULL)

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
LEAVING = """
import ray
from caiflow.engine.run.units import StagingUnit

folder = Path(sys.argv[1])
tiny = ModelSource(path=sys.argv[2], identity="tiny", engine="transformers", options={"num_gpus": 1, "replicas": 2})
links = cluster.engine(tiny, "base", "client")
done = [0]

class Asks:
    def run(self, report):
        took, failed = [], []

        async def asking(client, number):
            while not (folder / "go").exists():
                begun = time.monotonic()
                answer = await client.ask(Request(f"word {number} {len(took)}", Sampling(max_tokens=8)))
                took.append(time.monotonic() - begun)
                failed.extend([] if isinstance(answer, Completion) else [str(answer)])
                report({"done": len(took)})

        async def all_of_them():
            async with EngineClient(links) as client:
                await asyncio.gather(*(asking(client, n) for n in range(24)))
                return {"calls": client.calls, "client": client.told()}

        found = asyncio.run(all_of_them())
        (folder / "told").write_text(json.dumps({**found, "asked": len(took), "longest": max(took), "failed": failed}))
        return {}

class Kept(StagingUnit):
    told = "rows"

    def run(self, report):
        with (folder / "places").open("a") as file:
            print(ray.get_runtime_context().get_node_id(), file=file, flush=True)
        while not (folder / "go").exists():
            time.sleep(0.1)
        return {}

    def anew(self, attempt):
        return self

    def claims_in(self):
        return folder

def kept():
    return (folder / "places").read_text().split() if (folder / "places").exists() else []

def heard(event):
    said.extend([event["text"]] if "text" in event else [])
    done.append(event.get("done", done[-1]))

def until(is_so, seconds):
    begun = time.monotonic()
    while not is_so() and time.monotonic() - begun < seconds:
        list(cluster.wait(0.2))
    return time.monotonic() - begun

def places():
    (engine,) = cluster.engines._engines.values()
    return ray.get([one.actor.node.remote() for one in engine.replicas])

cluster.on_event = heard
try:
    assert cluster.submit(Asks(), "flow", engines=list(cluster.engines._engines))
    until(lambda: done[-1] > 100, 120)
    come()
    until(lambda: cluster.machines.gpus == 3, 60)
    told["nodes"] = places()
    assert cluster.submit(Kept(), "flow", Room(node=told["nodes"][0]))
    until(kept, 60)
    rows = cluster._running[-1]
    drained = leaves(told["nodes"][0])
    told["moved after"] = until(lambda: any("has left the node" in text for text in said), 120)
    assert drained.wait(60) == 0
    told["nodes then"] = places()
    until(lambda: len(kept()) > 1, 60)
    told["rows"] = {"nodes": kept(), "tries": rows.tries}
    told["room for more"] = cluster.submit(None, "train", Room(gpus=1))
    asked = done[-1]
    until(lambda: done[-1] > asked + 100, 60)
    (folder / "go").touch()
    until(lambda: not cluster.busy(), 60)
finally:
    closed(cluster)
print(json.dumps({**told, **json.loads((folder / "told").read_text()), "said": said}))
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
    return [line.split() for line in whole_lines(notes)]

def tried(name, number):
    notes = Path(sys.argv[1]) / name
    assert cluster.submit(Works(notes), "train", Room(gpus=1))
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
    while sum(node.gpus for node in cluster.machines.up) != 2:
        list(cluster.wait(0.2))
    tried("frozen", signal.SIGSTOP)
finally:
    closed(cluster)
print(json.dumps({**told, "said": said}))
"""
SHORT = """
import ray
folder = Path(sys.argv[1])

class Holds:
    def __init__(self, name):
        self.name = name

    def run(self, report):
        with (folder / self.name).open("a") as file:
            print(ray.get_runtime_context().get_node_id(), file=file, flush=True)
        while not (folder / "go").exists():
            time.sleep(0.1)
        return {}

def places(name):
    return (folder / name).read_text().split() if (folder / name).exists() else []

def until(is_so, seconds):
    begun = time.monotonic()
    while not is_so() and time.monotonic() - begun < seconds:
        ended.extend(finished for finished in cluster.wait(0.2))
    return time.monotonic() - begun

try:
    ended, works = [], [Holds("lost"), Holds("survives")]
    assert all(cluster.submit(work, "train", Room(gpus=1)) for work in works)
    until(lambda: places("lost") and places("survives"), 60)
    signalled(by_id[places("lost")[0]], signal.SIGKILL)
    told["said after"] = until(lambda: any("waits for" in text for text in said), 60)
    told["survivor's tries"] = cluster._running[-1].tries
    (folder / "go").touch()
    until(lambda: not cluster.busy(), 60)
    told["ended"] = [finished.unit.name for finished in ended]
    told["errors"] = [str(finished.error) for finished in ended]
    told["begun on"] = {name: len(places(name)) for name in ("lost", "survives")}
    told["took the survivor's"] = places("lost")[-1] == places("survives")[0]
finally:
    closed(cluster)
print(json.dumps({**told, "said": said}))
"""
TRAINING = """
from caiflow.engine.operator import StepContext
from caiflow.engine.run.units import TrainUnit
from caiflow.engine.store.checkpoints import last_checkpoint, steps_of
from caiflow.operators.sft import Sft, SftParams

folder, workers, how, most = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if workers == 2:
    by_id |= {node.node_id: node for node in (come(), come(), come(2, "other"))}  # all would go there, if labels said nothing
    while sum(node.gpus for node in cluster.machines.up) != 6:
        list(cluster.wait(0.2))
fields = {"scratch": {"hidden_size": 64, "num_hidden_layers": 2, "tokenizer": {"vocab_size": 400}}, "learning_rate": 3e-3}
fields |= {"input": "rows", "max_steps": most, "save_steps": 20, "logging_steps": 1, "resources": {"workers": workers}}
sft = Sft(SftParams.model_validate(fields), StepContext())
(folder / "work").mkdir()
places = folder / "staged", folder / "work", {}, folder / "ledger"
unit = TrainUnit("sft", sft, {"rows": folder / "rows"}, {}, *places)
steps, found = [], []

def heard(event):
    said.extend([event["text"]] if "text" in event else [])
    steps.extend([(time.time(), event["done"], cluster._running[0].begun)] if "done" in event else [])

def wait(is_so, seconds):
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        found.extend(cluster.wait(0.2))

def saved():
    return steps_of(last_checkpoint(folder / "work" / "checkpoints", clean=False))

cluster.on_event = heard
try:
    assert cluster.submit(unit, "train", Room(1, 1, workers, {"card": "one"}))
    wait(saved, 120)
    (running,) = cluster._running
    first = running.gang.nodes
    told["nodes"] = len(set(first))
    if how == "drain":
        leaves(first[-1])
        wait(lambda: running.kept is not None, 120)
    else:
        signalled(by_id[first[-1]], getattr(signal, how))
    hit, kept = time.time(), saved()
    ahead = set()
    wait(lambda: ahead.add(running.ahead) or (steps and steps[-1][2] > 1), 120)
    told["made ready ahead"] = running.gang in ahead
    *before, began = [step for step in steps if step[2] == 1] + [step for step in steps if step[2] > 1][:1]
    told["next step after"], told["next step"], told["kept"] = began[0] - hit, began[1], kept
    told["last step before"] = before[-1][1]
    told["without the lost one"] = first[-1] not in running.gang.nodes
    told["nodes then"] = len(set(running.gang.nodes))
    if how != "drain":  # which is of a training that lasts
        wait(lambda: not cluster.busy(), 120)
    told["tries"], told["errors"] = running.tries, [str(one.error) for one in found]
    told["steps"] = [one.results["sft"].metrics["steps"] for one in found]
finally:
    closed(cluster)
print(json.dumps({**told, "said": said}))
"""


LEAVES = (" is to leave within ", "base is begun on another node", "base is ready on another node", "base has left the node")
"""What is said of an engine's node that Ray drains, in this order."""


def told_by(script: str, *arguments: str) -> dict[str, Any]:
    (only,) = carried_out(NODES + script, *arguments).stdout.splitlines()  # Ray tells of lost nodes, too, but not here
    found: dict[str, Any] = json.loads(only)
    print(json.dumps(found, indent=1))
    return found


def test_a_lost_engine_s_node_and_a_frozen_one_cost_no_answer_and_one_that_comes_is_used(
    figure: Callable[[str, str], None],
) -> None:
    told = told_by(ENGINES, str(ROOT / "examples" / "tiny" / "model"))
    figure("lost engine", f"{len(told['failed'])} failed, none held for longer than {told['longest']:.1f} s")
    assert told["failed"] == []
    assert told["spread"]
    assert any("127.0.0.1 (1 CPU cores, 1 GPUs) is lost; there are 1 GPUs" in text for text in told["said"])
    assert any("has come; there are 2 GPUs" in text for text in told["said"])
    assert told["answered by the survivor"] > 100
    assert told["replaced after"] < 180
    assert any("says nothing" in text or "far longer than most" in text for text in told["client"])
    assert told["longest"] < 60  # Ray would wait for a minute; under 15 s where the machine does nothing else


def test_an_engine_on_a_node_that_is_to_leave_is_ready_elsewhere_before_it_ends_and_no_call_is_lost(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    told = told_by(LEAVING, str(tmp_path), str(ROOT / "examples" / "tiny" / "model"))
    asked = f"{told['calls']} calls for {told['asked']}, {len(told['failed'])} failed, the longest {told['longest']:.1f} s"
    figure("leaving", f"{asked}; the worker's tries: {told['rows']['tries']}")
    assert told["failed"] == []
    assert told["calls"] == told["asked"]
    said = [next(n for n, text in enumerate(told["said"]) if sign in text) for sign in LEAVES]
    assert said == sorted(said)
    assert told["nodes"][0] not in told["nodes then"]
    assert told["nodes"][1] == told["nodes then"][1]
    first, then = told["rows"]["nodes"]
    assert first == told["nodes"][0] != then
    assert told["rows"]["tries"] == 1
    assert "rows goes on on another node, before its own is gone" in told["said"]
    assert told["room for more"] is False  # the GPU that it left is none to count on
    assert all("asked of another" in text for text in told["client"])  # on a busy machine some may lag; none was asked again


def test_work_of_a_lost_node_and_of_a_frozen_one_goes_on_elsewhere_at_once(tmp_path: Path) -> None:
    told = told_by(WORK, str(tmp_path))
    for how in ("killed", "frozen"):
        assert told[how]["ended"] == ["None"]
        assert told[how]["elsewhere"] == [True]


def test_work_of_a_lost_node_waits_where_no_other_has_a_gpu_free_and_the_rest_goes_on(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    told = told_by(SHORT, str(tmp_path))
    tries = told["survivor's tries"]
    figure("no GPU left", f"said after {told['said after']:.1f} s, tries of the survivor: {tries}")
    (said,) = [text for text in told["said"] if "waits for" in text]
    assert said == "what is begun again waits for 1 GPUs: of the cluster's 1, 0 are free; this run has 1 (in Worker)"
    assert told["survivor's tries"] == 1
    assert told["ended"] == ["survives", "lost"]
    assert told["errors"] == ["None", "None"]
    assert told["begun on"] == {"lost": 2, "survives": 1}
    assert told["took the survivor's"]


@pytest.mark.parametrize(
    ("workers", "how", "most"),
    [(1, "drain", 100_000), (2, "SIGKILL", 200), pytest.param(2, "SIGSTOP", 200, marks=pytest.mark.campaign)],
)
def test_a_training_goes_on_from_its_checkpoint_without_the_node_of_a_worker(
    tmp_path: Path, workers: int, how: str, most: int, figure: Callable[[str, str], None]
) -> None:
    saved(tmp_path / "rows", lessons())
    told = told_by(TRAINING, str(tmp_path), str(workers), how, str(most))
    leaves = how == "drain"
    assert told["nodes"] == told["nodes then"] == workers
    assert told["kept"] <= told["next step"] - 1 < told["kept"] + (most if leaves else 20)  # some steps may not be told
    assert told["without the lost one"]
    assert (told["tries"], told["errors"], told["steps"]) == ((1, [], []) if leaves else (2, ["None"], [most]))
    # a checkpoint that was due anyway may be the one that is taken for the new one, and steps behind it are taken twice
    assert not leaves or told["next step"] > told["last step before"] - 20
    assert told["next step after"] < 60  # 12 to 15 s after a death, on two busy cores
    after = f"next step {told['next step after']:.1f} s after" + (" it was to save" if leaves else "")
    after += ", where it was made ready ahead" if told["made ready ahead"] else ""
    figure("training", f"{workers} workers, {how}: {after}, tries {told['tries']}")
