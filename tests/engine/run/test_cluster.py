"""Starting Ray: what goes wrong by chance is tried again, and what goes wrong for good is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.kills import without_token

FAILING = """
import os, sys
from caiflow.engine.run.cluster import Cluster, _lock_out_others
from caiflow.engine.errors import PlanError
_lock_out_others()
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
from caiflow.engine.run.cluster import Cluster
for _ in range(2):
    cluster = Cluster()
    cluster.start()
    cluster.close()
print("twice")
"""
DYING = """
import os
from pathlib import Path
from caiflow.engine.run.cluster import Cluster

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
cluster.submit(Dying(), "train", cpus=3)
while cluster.busy():
    for finished in cluster.wait(1.0):
        print(finished.error)
cluster.close()
"""


def said_by(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=without_token(), timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_start_that_fails_by_chance_is_tried_again() -> None:
    assert said_by(FAILING, "1") == "started True 2"


def test_a_start_that_always_fails_says_why() -> None:
    said = "ray: can't start or reach a local cluster: The current node timed out during startup. 3"
    assert said_by(FAILING, "99") == said


def test_a_process_may_run_one_cluster_after_the_other() -> None:
    assert said_by(TWICE) == "twice"


def test_work_that_goes_on_in_another_process_keeps_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path / "threads"))
    assert said_by(DYING).endswith("None")
    assert (tmp_path / "threads").read_text().split() == ["3", "3"]


def test_ray_must_not_be_there_before_its_environment_is() -> None:
    script = "import ray\nfrom caiflow.engine.run.cluster import Cluster\nCluster().start()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=without_token(), timeout=200)
    assert "PlanError: ray: it was imported before the run" in done.stderr


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    script = "from caiflow.engine.run.cluster import Cluster\nCluster('127.0.0.1:1').start()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=without_token(), timeout=20)
    assert "PlanError: ray: can't reach 127.0.0.1:1: " in done.stderr
