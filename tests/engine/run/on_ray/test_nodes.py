"""A cluster of several nodes: what can never run there is refused before the first step, and what waits says so.

Two raylets of this machine with GPUs in name only; nodes with another store or model have mount namespaces of their own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.once import made_once
from support.raylets import carried_out
from support.source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.soak]

TWO_NODES = '''
import json, subprocess, sys, time
from support.raylets import HERE, head

NODE = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
has = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 80 << 20}
Node(RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", **has), head=False)
sys.stdin.read()
"""
OTHER = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_gpus=1)
class Other:
    def here(self):
        return True

others = [Other.remote() for _ in range(2)]
ray.get([other.here.remote() for other in others])
print("held", flush=True)
sys.stdin.read()
"""
nodes = head(num_cpus=2, num_gpus=1)
nodes.add_node(**HERE, num_cpus=1, num_gpus=1, labels={"card": "large"})
told = {}

from pathlib import Path
from caiflow.engine.cli import main
from caiflow.engine.commands.doctor import examine_cluster
from caiflow.engine.errors import ClusterError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.on_ray import nodes as asked, waits
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.units import StagingUnit, StepResult

folder = Path(sys.argv[1])
began = time.monotonic()
told["too large"] = main(["run", str(folder / "large.yaml"), "--out", str(folder / "large"), "--address", nodes.address])
told["too large seconds"] = time.monotonic() - began
for name in ("large", "three"):
    told[f"planned {name}"] = main(["plan", str(folder / f"{name}.yaml"), "--address", nodes.address])
for name in ("three", "measured", "taught", "labelled", "unlabelled"):
    told[name] = main(["run", str(folder / f"{name}.yaml"), "--out", str(folder / name), "--address", nodes.address])

told["doctor"] = [str(found) for found in examine_cluster(nodes.address, folder / "home")]
def up():
    return sum(node["Alive"] for node in nodes.global_state.node_table())

def begun(*mounts):
    start = " && ".join([*(f"mount {mount}" for mount in mounts), f"exec {sys.executable} -c '{NODE}' {nodes.address}"])
    there, alive = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}, up()
    node, until = subprocess.Popen(["unshare", "--mount", "sh", "-c", start], **there), time.monotonic() + 60
    while up() == alive and node.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    return node

def ended(node):
    alive = up()
    node.stdin.close()
    node.wait(60)
    until = time.monotonic() + 60
    while up() == alive and time.monotonic() < until:
        time.sleep(0.2)

poor = begun(
    f"-t tmpfs none {folder / 'models' / 'one'}",
    f"--bind {folder / 'models' / 'other.json'} {folder / 'models' / 'two' / 'config.json'}",
)
told["poor"] = poor.poll()
for name in ("models", "kept off", "trained", "apart", "over"):
    told[name] = main(["plan", str(folder / f"{name}.yaml"), "--address", nodes.address])
ended(poor)

cluster = Cluster(nodes.address)
cluster.start()
told["threads"] = cluster.machines.threads(None)
for name, wanted in {"one node": (2.0, 1), "all nodes": (1.0, 3), "fits": (1.0, 2)}.items():
    try:
        cluster.refuse_too_large("base", Room(wanted[0], processes=wanted[1]))
        told[name] = "fits"
    except ClusterError as error:
        told[name] = str(error)

import ray

class Reads(StagingUnit):
    told, reads_files = "rows", True

    def run(self, report):
        return {ray.get_runtime_context().get_node_id(): StepResult()}

    def anew(self, attempt):
        return self

    def claims_in(self):
        return None

assert all(cluster.submit(Reads(), "flow") for _ in range(2))
told["here"], told["read on"] = cluster.machines.here, []
while cluster.busy():
    told["read on"] += [node for finished in cluster.wait(1.0) for node in finished.results]

class Writes:
    def run(self, report):
        staged = folder / "home" / "staging" / "written"
        staged.mkdir(parents=True)
        (staged / "rows.parquet").write_text("x")
        return {"step": StepResult(staged)}

piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
other = subprocess.Popen([sys.executable, "-c", OTHER, nodes.address], **piped)
assert other.stdout.readline() == "held\\n"
told["other process"] = other.pid
waits.PATIENCE_S = 1.0
said = []
cluster.on_event = lambda event: said.extend([event["text"]] if "text" in event else [])
tiny = ModelSource(path=sys.argv[2], identity="tiny", engine="transformers", options={"num_gpus": 1})
cluster.engine(tiny, "base", "client")
until = time.monotonic() + 30
while not said and time.monotonic() < until:
    cluster._poll()
    time.sleep(0.2)
told["busy"] = list(said)
began = time.monotonic()
cluster.refuse_unfit(folder / "home", {"own": "own_operator"})
told["fit seconds"] = time.monotonic() - began
told["marks left"] = [path.name for path in (folder / "home").glob("seen-*")]

heard, began = len(said), time.monotonic()
nodes.add_node(**HERE, num_cpus=1, wait=False)
node = begun(f"-t tmpfs none {folder / 'home'}", f"--bind {folder / 'other.py'} {folder / 'own_operator.py'}")
try:
    signs = [" it is used", " isn't used: ", "base: its engine's node isn't fit"][: None if node.poll() is None else 1]
    while not all(any(sign in text for text in said[heard:]) for sign in signs) and time.monotonic() < began + 90:
        cluster._poll()
        time.sleep(0.2)
    told["late"], told["late seconds"] = said[heard:], time.monotonic() - began
    told["late marks left"] = [path.name for path in (folder / "home").glob("seen-*")]
    told["late gpus"] = cluster.machines.gpus
    cluster.machines.nodes = asked.alive()
    began = time.monotonic()
    try:
        cluster.refuse_unfit(folder / "home", {"own": "own_operator"})
        told["blind"] = f"ended with {node.poll()}" if node.poll() else "none"
    except ClusterError as error:
        told["blind"] = str(error)
    told["blind seconds"] = time.monotonic() - began
    began = time.monotonic()
    try:
        cluster.refuse_unfit(folder / "home", {"own": "own_operator"})
    except ClusterError:
        told["blind again seconds"] = time.monotonic() - began
    asked.SEEN_S = 1.0
    if cluster.submit(Writes(), "train", Room(gpus=1)):
        while cluster.busy():
            told["unseen"] = [str(finished.error) for finished in cluster.wait(1.0)]
finally:
    node.stdin.close()
    node.wait(60)
    cluster.close()
    other.stdin.close()
    other.wait(60)
    nodes.shutdown()
print(json.dumps(told))
'''
THREE = """
caiflow: 1
constitution: harmless
models:
  a: {source: tiny, engine: transformers, engine_args: {max_num_seqs: 4}}
  b: {source: tiny, engine: transformers, engine_args: {max_num_seqs: 5}}
  c: {source: tiny, engine: transformers, engine_args: {max_num_seqs: 6}}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 4}
"""
CHAIN = """\
  answers:  {op: generate, input: prompts, model: a, sampling: {max_tokens: 8}}
  critique: {op: critique, input: answers, model: b, sampling: {max_tokens: 8}}
  revision: {op: revise, input: critique, model: c, sampling: {max_tokens: 8}}
"""
MEASURED = "  scores: {op: evaluate, models: [a, b, c], inputs: {harmful: prompts}}\n"
TAUGHT = """\
  taught:
    {op: rl, input: prompts, model: c, rewards: {x: {grader: {model: a, label: kind}}, y: {grader: {model: b, label: kind}}}}
"""
LABELLED = """
caiflow: 1
models: {base: {source: tiny, engine: transformers, node_labels: {card: KIND}}}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 4}
  answers: {op: generate, input: prompts, model: base, sampling: {max_tokens: 4}}
"""
MODELS = """
caiflow: 1
models:
  one: {source: models/one, engine: transformers, num_gpus: SHARE}
  two: {source: models/two, engine: transformers, num_gpus: SHARE}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 4}
  first:   {op: generate, input: prompts, model: one}
  second:  {op: generate, input: prompts, model: two}
"""
TRAINED = """
caiflow: 1
models: {one: {source: models/one, num_gpus: 0, node_labels: {card: large}}}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 4}
  answers: {op: generate, input: prompts, model: one}
  taught:  {op: sft, input: answers, model: one}
"""
APART = """
caiflow: 1
models: {one: {source: models/one, num_gpus: 0}}
steps:
  lessons: {op: load, source: "tiny:helpful_train.jsonl", limit: 4}
  taught:  {op: sft, input: lessons, model: one, node_labels: {card: large}}
  answers: {op: generate, input: lessons, model: taught}
"""
LARGE = """
caiflow: 1
models: {base: {source: tiny, engine: transformers, num_gpus: 2}}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 4}
  answers: {op: generate, input: prompts, model: base}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two nodes told, asked once for all processes of the session."""
    folder = made_once(tmp_path_factory, "nodes", asked_of_two_nodes)
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return {**found, "folder": folder}


def asked_of_two_nodes(folder: Path) -> None:
    (folder / "home").mkdir()
    specs = {"large": LARGE, "three": THREE + CHAIN, "measured": THREE + MEASURED, "taught": THREE + TAUGHT}
    specs |= {
        "labelled": LABELLED.replace("KIND", "large"),
        "unlabelled": LABELLED.replace("KIND", "huge").replace("4}}", "5}}"),
    }
    shares = {"models": MODELS, "kept off": MODELS.replace("SHARE", "SHARE, node_labels: {card: large}"), "trained": TRAINED}
    shares |= {"apart": APART, "over": APART.replace("card: large}", "card: large}, lora: {rank: 2}, merge: false")}
    specs |= {name: text.replace("SHARE", "1") for name, text in shares.items()}
    for name, text in specs.items():
        (folder / f"{name}.yaml").write_text(text)
    for name in ("one", "two"):
        shutil.copytree(ROOT / "examples" / "tiny" / "model", folder / "models" / name)
    (folder / "models" / "other.json").write_text((folder / "models" / "two" / "config.json").read_text() + " ")
    (folder / "own_operator.py").write_text("version = 1\n")
    (folder / "other.py").write_text("version = 2\n")
    variables = {"CAIFLOW_HOME": str(folder / "home"), "PYTHONPATH": str(folder)}
    done = carried_out(TWO_NODES, str(folder), str(ROOT / "examples" / "tiny" / "model"), **variables)
    found = json.loads(done.stdout.splitlines()[-1])
    (folder / "told.json").write_text(json.dumps({**found, "printed": done.stdout + done.stderr}))


def test_a_model_that_no_node_can_hold_is_refused_before_the_first_step(
    told: dict[str, Any], figure: Callable[[str, str], None]
) -> None:
    figure("too large", f"refused after {told['too large seconds']:.1f} s, joining Ray among them")
    assert told["too large"] == 1
    assert "base wants 2 GPUs on one node; of the 2 here the largest has 1" in told["printed"]
    run = json.loads((Path(told["folder"]) / "large" / "run.json").read_text())
    assert run["status"] == "failed"
    assert all(step["rows_out"] is None for step in run["steps"].values())


def test_a_plan_says_beforehand_what_the_cluster_cannot_hold(told: dict[str, Any]) -> None:
    assert (told["planned large"], told["planned three"]) == (1, 0)
    assert str(told["printed"]).count("base wants 2 GPUs on one node; of the 2 here the largest has 1") >= 2


def test_a_model_runs_on_nodes_with_its_labels_or_is_refused_with_those_there_are(told: dict[str, Any]) -> None:
    assert (told["labelled"], told["unlabelled"]) == (0, 1)
    assert "base wants nodes with the labels card: huge; there is none; the labels there are: card: large" in told["printed"]


def test_three_models_of_a_chain_take_turns_on_two_gpus(told: dict[str, Any], figure: Callable[[str, str], None]) -> None:
    assert told["three"] == 0, told["printed"]
    run = json.loads((Path(told["folder"]) / "three" / "run.json").read_text())
    rows = [step["rows_out"] for step in run["steps"].values()]
    figure("in turns", f"{rows[-1]} rows of {rows[0]} through all three")
    assert rows == [4, 4, 4, 4]


def test_three_models_that_one_step_asks_side_by_side_are_refused_before_the_first(told: dict[str, Any]) -> None:
    assert told["measured"] == 1
    assert "scores asks 3 models side by side, whose engines want 3 GPUs; there are 2" in told["printed"]
    run = json.loads((Path(told["folder"]) / "measured" / "run.json").read_text())
    assert run["steps"]["scores"]["digest"] is None


def test_a_training_s_own_gpus_are_counted_beside_those_of_its_graders(told: dict[str, Any]) -> None:
    assert told["taught"] == 1
    assert "taught asks 2 models side by side, whose engines want 2 GPUs beside 1 of its own; there are 2" in told["printed"]


def test_the_doctor_tells_of_each_node_and_that_all_are_fit(told: dict[str, Any]) -> None:
    *nodes, whole = told["doctor"]
    assert [node.split(": ")[-1] for node in sorted(nodes)] == ["1 CPU cores, 1 GPUs", "2 CPU cores, 1 GPUs"]
    assert "2 nodes at" in whole
    assert "see the store and run the same code" in whole


def test_each_process_may_want_what_one_node_has_and_all_what_all_have(told: dict[str, Any]) -> None:
    assert "wants 2 GPUs on one node" in told["one node"]
    assert "wants 3 GPUs, the cluster has 2" in told["all nodes"]
    assert told["fits"] == "fits"


def test_threads_are_those_of_the_smallest_node(told: dict[str, Any], figure: Callable[[str, str], None]) -> None:
    figure("threads", f"{told['threads']} on nodes of 1 and 2 cores")
    assert told["threads"] == 1


def test_a_model_that_waits_for_gpus_says_who_has_them(told: dict[str, Any], figure: Callable[[str, str], None]) -> None:
    (said,) = told["busy"]
    figure("busy", f"said once the patience was over, with the job that has {said.rpartition(' has ')[2]}")
    assert said.startswith("base waits for 1 GPUs: of the cluster's 2, 0 are free; `")
    assert said.endswith(f"(process {told['other process']} on 127.0.0.1) has 2 (in Other)")


def test_a_node_that_sees_another_store_is_named(told: dict[str, Any], figure: Callable[[str, str], None]) -> None:
    assert told["marks left"] == []
    if str(told["blind"]).startswith("ended with"):
        pytest.skip("this user may make no mount namespace")
    assert "127.0.0.1 doesn't see the store at" in told["blind"]
    assert "put CAIFLOW_HOME on a file system that all nodes share" in told["blind"]
    again = f"{told['blind again seconds']:.2f} s where a process is at hand, two fit nodes {told['fit seconds']:.2f} s"
    figure("other store", f"named after {told['blind seconds']:.1f} s on a node that has just come, {again}")


def test_a_node_that_lacks_a_model_or_has_another_is_named_where_it_may_have_to_load_it(told: dict[str, Any]) -> None:
    if told["poor"] is not None:
        pytest.skip("this user may make no mount namespace")
    assert (told["models"], told["kept off"], told["trained"]) == (1, 0, 1)
    assert (told["apart"], told["over"]) == (0, 1), "what is trained is loaded from the store, but what an adapter lies over"
    models = Path(told["folder"]) / "models"
    one, two = f"127.0.0.1 lacks {models / 'one'} (the model one)", f"127.0.0.1 has another config.json in {models / 'two'}"
    assert f"the cluster isn't fit for this run: {one}; {two} (the model two); put models on a file system" in told["printed"]
    assert f"the cluster isn't fit for this run: {one}; put models" in told["printed"], "a training's own, wherever engines go"


def test_files_are_read_on_the_node_of_the_command(told: dict[str, Any]) -> None:
    assert told["here"]
    assert told["read on"] == [told["here"]] * 2


def test_a_node_that_comes_later_is_asked_too_and_one_that_is_not_fit_is_named_and_left(
    told: dict[str, Any], figure: Callable[[str, str], None]
) -> None:
    assert (
        "node 127.0.0.1 (1 CPU cores, 0 GPUs) sees the store and runs the same code: it is used; there are 2 GPUs"
        in told["late"]
    )
    assert told["late marks left"] == []
    if str(told["blind"]).startswith("ended with"):
        pytest.skip("this user may make no mount namespace")
    (unfit,) = [text for text in told["late"] if "isn't used" in text]
    assert unfit.startswith("node 127.0.0.1 (1 CPU cores, 2 GPUs) isn't used: it doesn't see the store at ")
    assert "has another operator `own` than here" in unfit
    assert told["late gpus"] == 2
    assert "base: its engine's node isn't fit; another is begun elsewhere" in told["late"]  # Ray had put there what waited
    figure(
        "late node",
        f"named, and the engine taken back that Ray had put there, {told['late seconds']:.1f} s after it began to start",
    )


def test_a_node_with_another_operator_of_the_same_name_is_named(told: dict[str, Any]) -> None:
    if str(told["blind"]).startswith("ended with"):
        pytest.skip("this user may make no mount namespace")
    assert "has another operator `own` than here: install the same there" in told["blind"]


def test_what_a_node_wrote_into_another_store_is_no_result(told: dict[str, Any]) -> None:
    if str(told["blind"]).startswith("ended with"):
        pytest.skip("this user may make no mount namespace")
    (said,) = told["unseen"]
    assert "(127.0.0.1) wrote 1 files that aren't here as it wrote them" in said
    assert "staging/written/rows.parquet" in said
