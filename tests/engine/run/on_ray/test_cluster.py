"""Starting Ray: what goes wrong by chance is tried again, and what goes wrong for good is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.kills import without_token
from support.source_tree import ROOT

FAILING = """
import os, sys
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.entering import lock_out_others
from caiflow.engine.errors import PlanError
lock_out_others()
import ray
start, tries = ray.init, []

def fails(**options):
    tries.append(options)
    if len(tries) <= int(sys.argv[1]):
        raise Exception("The current node timed out during startup.")
    return start(**options)

ray.init = fails
cluster = Cluster()
try:
    cluster.start()
    print("started", cluster.started, len(tries))
except PlanError as error:
    print(error, len(tries))
finally:
    cluster.close()
"""
"""Stands in for a start of Ray that fails by chance, as where two take the same port: that can't be brought about."""
TWICE = """
import contextlib, io
from pathlib import Path
import psutil
from caiflow.engine.run.on_ray.cluster import Cluster
MANY = "WARNING: 10 PYTHON worker processes have been started on node: 5e, with address: 127.0.0.1, which is 5x the maximum"
for _ in range(2):
    cluster = Cluster()
    cluster.start()
    from ray._private.worker import print_to_stdstream
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        for line in (MANY, "A node is short of memory."):
            print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    print("short of memory" in errors.getvalue(), MANY in errors.getvalue())
    words = [word for child in psutil.Process().children(recursive=True) for word in child.as_dict(["cmdline"], [])["cmdline"]]
    print(sorted({Path(word).name for word in words} & {"raylet", "dashboard.py", "log_monitor.py", "monitor.py"}))
    cluster.close()
"""
DYING = """
import os
from pathlib import Path
import psutil
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room

class Dying:
    def run(self, report):
        notes = Path(os.environ["NOTES"])
        with notes.open("a") as file:
            file.write(os.environ["OMP_NUM_THREADS"] + " ")
        if len(notes.read_text().split()) == 1:
            os._exit(1)
        return {}

cluster = Cluster()
cluster.start()
cluster.submit(Dying(), "train", Room(cpus=3))
while cluster.busy():
    for finished in cluster.wait(1.0):
        print(finished.error)
titles = [" ".join(child.cmdline()).split() for child in psutil.Process().children(recursive=True)]
print(sorted(words[0] for words in titles if words and words[0].startswith("ray::") and "Agent" not in words[0]))
cluster.close()
"""
"""Work whose first process dies; tells what it came to, and which of Ray's workers there are then."""

HOLDING = """
import ctypes
from caiflow.engine.run.on_ray.cluster import Cluster

class Holding:
    def run(self, report):
        for number in range(3):
            report({"event": "step_progress", "done": number})
            report({"event": "step_progress", "done": number + 0.5})
            ctypes.PyDLL(None).usleep(2_500_000)
        return {}

cluster = Cluster()
cluster.start()
told = []
def heard(event):
    if "done" in event:
        told.append(event["done"])
        if event["done"] in (0, 1, 2):
            raise OSError(28, "No space left on device")
cluster.on_event = heard
cluster.submit(Holding(), "table")
while cluster.busy():
    for finished in cluster.wait(0.1):
        print(finished.error)
print(told)
cluster.close()
"""
"""Work that keeps its process from answering for longer than it is waited for; tells what was heard of it."""

ABSENT = """
import asyncio, sys, types
from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.on_ray.cluster import Cluster

module = types.ModuleType("theirs_alone")
class Work:
    def run(self, report):
        return {}
Work.__module__ = "theirs_alone"
module.Work = Work
sys.modules["theirs_alone"] = module

class Importing:
    def run(self, report):
        import theirs_to_import

cluster = Cluster()
cluster.start()
for work in (Work(), Importing()):
    cluster.submit(work, "table")
    while cluster.busy():
        for finished in cluster.wait(1.0):
            print(finished.error)
links = cluster.engine(ModelSource(sys.argv[1], identity="m", engine="transformers"), "m", "client")
try:
    asyncio.run(links[0].open())
except EngineError as error:
    print(error)
cluster.close()
"""
"""Work of a module that is here and in no other process, as where a node lacks a package; and an engine without its library."""
BLOCKING = """
import sys

class Blocking:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers" and any("default_worker" in word for word in sys.orig_argv):
            raise ModuleNotFoundError("No module named 'transformers'", name=name)

sys.meta_path.insert(0, Blocking())
"""
"""A `sitecustomize` by which Ray's processes lack a library that is installed here."""


def said_by(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=without_token(), timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.soak
def test_a_start_that_fails_by_chance_is_tried_again(figure: Callable[[str, str], None]) -> None:
    said = said_by(FAILING, "1")
    figure("start", f"started at try {said.split()[-1]}")
    assert said == "started True 2"


def test_ray_starts_where_the_folder_for_temporary_files_has_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / "as-a-batch-system-has-it-for-each-job-1234567"
    folder.mkdir()
    environment = {**without_token(), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", FAILING, "0"], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines() == ["started True 1"], done.stderr
    assert list(folder.glob("caiflow-ray-*")) == []


def test_a_start_that_always_fails_says_why() -> None:
    said = "ray: can't start or reach a local cluster: The current node timed out during startup. 3"
    assert said_by(FAILING, "99") == said


@pytest.mark.soak
def test_a_process_may_run_one_cluster_after_the_other_with_nothing_that_watches_it_for_others() -> None:
    assert said_by(TWICE).splitlines() == ["True False", "['raylet']"] * 2


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """What is said of work whose process dies once, and the threads that each of its two processes had."""
    notes = tmp_path_factory.mktemp("dying") / "threads"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTES", str(notes))
        return said_by(DYING).splitlines(), notes.read_text()


@pytest.mark.soak
def test_work_that_goes_on_in_another_process_keeps_its_cores(dying: tuple[list[str], str]) -> None:
    said, threads = dying
    assert said[-2] == "None"
    assert threads.split() == ["3", "3"]


@pytest.mark.soak
def test_no_process_is_started_that_no_work_can_use(dying: tuple[list[str], str]) -> None:
    assert dying[0][-1] == "['ray::Worker']"


@pytest.mark.soak
def test_a_module_that_a_node_lacks_is_named_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str, str], None]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = said_by(ABSENT, str(ROOT / "examples" / "tiny" / "model")).splitlines()
    figure("missing", f"{sum(' is no module ' in line and ' on node ' in line for line in said)} of {len(said)} named")
    for module, line in zip(("theirs_alone", "theirs_to_import", "transformers"), said, strict=True):
        assert f"there is no module {module} on node " in line
        assert "install what brings it on every node" in line
        assert "memory" not in line


def test_ray_must_not_be_there_before_its_environment_is() -> None:
    script = "import ray\nfrom caiflow.engine.run.on_ray.cluster import Cluster\nCluster().start()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=without_token(), timeout=200)
    assert "ClusterError: ray: it was imported before the run" in done.stderr


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    script = "from caiflow.engine.run.on_ray.cluster import Cluster\nCluster('127.0.0.1:1').start()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=without_token(), timeout=100)
    assert "ClusterError: ray: can't reach 127.0.0.1:1: " in done.stderr


@pytest.mark.soak
def test_progress_that_is_told_late_is_told() -> None:
    assert said_by(HOLDING).splitlines()[-2:] == ["None", "[0, 0.5, 1, 1.5, 2, 2.5]"], "a full disk ends nothing"
