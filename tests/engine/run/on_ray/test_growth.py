"""A cluster without GPUs to which Ray's own autoscaler adds nodes that have some, where `--grow` says so; all on this machine.

Ray's provider of such nodes has fixed names for them, so that the cluster has a network and processes of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caiflow.engine.errors import PlanError
from caiflow.engine.run.on_ray.nodes import Growth
from support.kills import without_token
from support.source_tree import ROOT

APART = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
PORT = 6379
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The head's name for that provider."""
NODES = {
    "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
    "with_gpu": {
        "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 << 20},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
}
EMPTY = (
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
    "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
AUTOSCALER = {
    "cluster_name": "growing",
    "max_workers": 2,
    "available_node_types": NODES,
    "head_node_type": "ray.head.default",
    "provider": {
        "type": "external",
        "module": "support.growing_nodes.OneAddressProvider",
        "gcs_address": f"127.0.0.1:{PORT}",
        "head_node_id": HEAD,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {"ssh_user": ""},
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{name: [] for name in EMPTY},
}
SPEC = """\
caiflow: 1
models: {{base: {{source: tiny, num_gpus: {gpus}}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: base, sampling: {{max_tokens: 4}}}}
"""
CLUSTER = f"""
import json, os, socket, subprocess, sys, time
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
place = Path(sys.argv[1])
head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port={PORT}", "--num-cpus=2"]
head += ["--include-dashboard=false", "--object-store-memory=83886080", "--min-worker-port=0", "--max-worker-port=0"]
head += ["--disable-usage-stats", f"--autoscaling-config={{place / 'autoscaler.json'}}"]
fake = {{**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}}
for _ in range(3):  # on a busy machine a node may not be there in the time that Ray gives it
    ray = subprocess.Popen(head, env=fake, stdout=(place / "ray.log").open("w"), stderr=subprocess.STDOUT)
    until = time.monotonic() + 90
    while ray.poll() is None and "Ray runtime started" not in (place / "ray.log").read_text() and time.monotonic() < until:
        time.sleep(0.5)
    if ray.poll() is None:
        break
told = {{}}
for name in ("two.yaml", "one.yaml"):
    begun = time.monotonic()
    command = [sys.executable, "-m", "caiflow", "run", str(place / name), "--address", "127.0.0.1:{PORT}", "--grow", "2x1"]
    done = subprocess.run([*command, "--out", str(place / name.partition(".")[0])], capture_output=True, text=True, timeout=120)
    told[name] = [done.returncode, done.stdout + done.stderr, time.monotonic() - begun]
print(json.dumps(told))
"""


def apart() -> bool:
    tried = shutil.which("ip") and subprocess.run([*APART, "true"], capture_output=True, check=False)
    return bool(tried) and tried.returncode == 0


@pytest.mark.parametrize("text", ["2", "x8", "2x", "0x8", "2x0", "two x eight", "-1x2"])
def test_what_is_no_growth_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(PlanError, match=r"--grow: .*2x8"):
        Growth.read(text, "auto")


def test_growth_is_a_cluster_s() -> None:
    assert Growth.read("2x8", "auto") == (2, 8)
    assert Growth.read(None, None) == Growth()
    with pytest.raises(PlanError, match="this machine can't grow; name a cluster with --address"):
        Growth.read("2x8", None)


@pytest.mark.slow
@pytest.mark.soak
def test_an_autoscaler_adds_the_node_that_a_model_wants_and_what_it_can_never_add_is_refused(tmp_path: Path) -> None:
    if not apart():
        pytest.skip("this user may not make a network of its own (`unshare --net`), or there is no `ip`")
    (tmp_path / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    for name, gpus in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(SPEC.format(gpus=gpus))
    done = subprocess.run(
        [*APART, sys.executable, "-c", CLUSTER, str(tmp_path)],
        cwd=ROOT / "tests",
        env={**without_token(), "CAIFLOW_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "ray.log").read_text()[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(told, indent=1))
    code, said, _ = told["two.yaml"]
    assert code == 1
    assert "wants 2 GPUs on one node" in said
    code, said, _ = told["one.yaml"]
    assert code == 0, said
    assert "(1 CPU cores, 1 GPUs) has come" in said
    answer = json.loads((tmp_path / "one" / "run.json").read_text())["steps"]["answer"]
    assert answer["status"] == "done"
    assert answer["gpu_hours"] > 0
