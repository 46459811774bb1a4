"""Runs handed over as jobs: what is sent along, what KubeRay gets, and a real job server that carries one out."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import pytest
import yaml

from caiflow.engine.cli import main
from caiflow.engine.errors import PlanError
from caiflow.engine.run.on_ray.jobs import RunJob
from support.kills import without_token
from support.ports import free_port
from support.source_tree import ROOT

SPEC = """\
caiflow: 1
name: sent
steps:
  rows: {op: load, source: data/rows.jsonl}
  kept: {op: filter, input: rows, drop: [{length: {column: response, max: 10}}]}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"prompt": "Why?", "response": "So."}\n')
    (tmp_path / "sent.yaml").write_text(SPEC)
    return tmp_path / "sent.yaml"


def test_kuberay_gets_the_files_the_command_and_no_secret(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden-value")
    given = ["--kuberay", "me/caiflow:1", "--store", "/store", "--claim", "disk", "--workers", "2", "--gpus", "8"]
    assert main(["submit", str(spec), *given, "--env", "HF_TOKEN"]) == 0
    said = capsys.readouterr()
    files, job = yaml.safe_load_all(said.out)
    assert "hidden-value" not in said.out + said.err
    assert f"kubectl create secret generic {job['metadata']['name']}-env --from-literal=HF_TOKEN=" in said.err
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,), (head,) = (pod["template"]["spec"]["containers"] for pod in (group, cluster["headGroupSpec"]))
    assert (group["replicas"], worker["resources"]["limits"]["nvidia.com/gpu"]) == (2, 8)
    for container in (worker, head):
        assert {"name": "store", "mountPath": "/store"} in container["volumeMounts"]
        assert {"name": "CAIFLOW_HOME", "value": "/store"} in container["env"]
        assert {item["name"] for item in container["env"]} == {"CAIFLOW_HOME", "HF_TOKEN"}
    assert re.fullmatch(r"sent-\d{8}-\d{6}", job["metadata"]["name"])
    *shell, command = handed_on(job["spec"]["entrypoint"])
    assert shell == ["sh", "-c"]
    run = f"python -m caiflow run spec.yaml --address auto --out /store/jobs/{job['metadata']['name']}"
    assert command == f"cd /caiflow/spec && exec {run}"
    (volume, _) = group["template"]["spec"]["volumes"]
    assert [item["path"] for item in volume["configMap"]["items"]] == ["data/rows.jsonl", "spec.yaml"]
    assert set(files["binaryData"]) == {item["key"] for item in volume["configMap"]["items"]}


def handed_on(entrypoint: str) -> list[str]:
    """Return what Ray gets of an entry point, which KubeRay's submitter has in the midst of a command of its shell."""
    shell = f"ray() {{ shift 3; printf '%s\\n' \"$@\"; }}; if true; then ray job submit -- {entrypoint} ; fi ; echo followed"
    *words, last = subprocess.run(["bash", "-c", shell], check=True, capture_output=True, text=True).stdout.splitlines()
    assert last == "followed"
    return words


@pytest.mark.parametrize("name", ["_2", "A-name_that-is-far_too-long_for_what_Kubernetes_takes"])
def test_a_job_of_any_spec_has_a_name_that_kubernetes_takes(spec: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spec.write_text(SPEC.replace("sent", name))
    assert main(["submit", str(spec), "--kuberay", "me/caiflow:1", "--store", "/a store", "--claim", "disk"]) == 0
    _, job = yaml.safe_load_all(capsys.readouterr().out)
    named = job["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", named)
    assert len(named) <= 47
    assert handed_on(job["spec"]["entrypoint"])[-1].endswith(f"--out '/a store/jobs/{named}'")


def test_what_stays_where_the_nodes_share_it_may_be_read_there(
    spec: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, job = tmp_path_factory.mktemp("shared data"), tmp_path_factory.mktemp("job")
    (shared / "large.jsonl").write_text((json.dumps({"prompt": "Why?", "response": "So. " * (1 << 18)}) + "\n") * 101)
    spec.write_text(SPEC.replace("data/rows.jsonl", str(shared / "large.jsonl")))
    given = ["--kuberay", "me/caiflow:1", "--store", "/store", "--allow-path", str(shared)]
    assert main(["submit", str(spec), *given]) == 0
    said = capsys.readouterr()
    assert f"{shared / 'large.jsonl'} isn't sent along: the nodes must have it there" in said.err
    files, made = yaml.safe_load_all(said.out)
    (job / "spec.yaml").write_bytes(b64decode(files["binaryData"]["f0"]))
    words = shlex.split(shlex.split(made["spec"]["entrypoint"])[-1])
    monkeypatch.chdir(job)  # as the job begins: nothing beside it is its own
    assert main(["validate", "spec.yaml"]) == 2
    assert main(["validate", "spec.yaml", *(word for word in words if word.startswith("--allow-path="))]) == 0


def test_what_is_too_large_to_send_is_named(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("x")
    (tmp_path / "large.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(PlanError, match=r"job: its local files have 2 MB, large.bin alone 2; at most 1 can be sent along"):
        RunJob("job", ["true"], tmp_path).refuse_large(1_000_000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "http://127.0.0.1:1"], "no store is named; say with --store"),
        (["--store", "/s", "--address", "head:6379"], "no address of a job server; name its dashboard, as http://head:8265"),
        (["--store", "/s", "--address", "http://127.0.0.1:1"], "http://127.0.0.1:1: no job server answers"),
        (["--store", "/s", "--address", "http://127.0.0.1:1", "--env", "NOT_SET"], "--env: NOT_SET isn't set here"),
    ],
)
def test_what_is_missing_is_said(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("CAIFLOW_HOME", raising=False)
    assert main(["submit", str(spec), *arguments]) == 1
    assert said in capsys.readouterr().err


JOB_SERVER = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import write_ray_address
has = {"num_cpus": 2, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1", "temp_dir": sys.argv[2]}
ports = {"dashboard_port": 0, "dashboard_agent_listen_port": int(sys.argv[1])}
node = Node(RayParams(include_dashboard=True, dashboard_host="127.0.0.1", **ports, **has), head=True)
write_ray_address(node.gcs_address, sys.argv[2])  # as `ray start` does: a job asks it which of a machine's Rays it belongs to
print(f"http://{node.webui_url}", flush=True)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=True)
"""
REDACTED = """\
caiflow: 1
name: redacted
models: {base: {source: tiny, engine: transformers}}
steps:
  rows:     {op: load, source: answers.jsonl}
  redacted: {op: redact, input: rows, column: response}
  answers:  {op: generate, input: redacted, model: base, sampling: {max_tokens: 4}}
"""


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray with its dashboard on loopback; yields its address, and the variables by which it lets one in."""
    from secrets import token_hex

    token = tmp_path / "token"  # Ray hands no token in a variable on to what it begins as a job
    token.write_text(token_hex(32))
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    variables = {**without_token(), **own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:  # its sockets want a short path
        command = [sys.executable, "-c", JOB_SERVER, str(free_port()), temp]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), variables
        finally:
            server.stdin.close()
            server.wait(60)


@pytest.mark.slow
@pytest.mark.soak
def test_a_job_runs_with_the_spec_s_files_and_its_own_operator(tmp_path: Path, job_server: tuple[str, dict[str, str]]) -> None:
    address, variables = job_server
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, *install, str(ROOT / "examples" / "custom_operator")], check=True, capture_output=True)
    (tmp_path / "answers.jsonl").write_bytes((ROOT / "examples" / "custom_operator" / "answers.jsonl").read_bytes())
    (tmp_path / "redacted.yaml").write_text(REDACTED)
    here = {**variables, "PYTHONPATH": str(site), "CAIFLOW_HOME": str(tmp_path / "elsewhere")}

    def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "caiflow", "submit", *arguments, "--address", address]
        return subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=500, check=False)

    done = submit("redacted.yaml", "--store", str(tmp_path / "shared"))
    assert done.returncode == 0, done.stdout + done.stderr
    name = re.findall(r"submitted (redacted-\S+);", done.stderr)[0]
    run = json.loads((tmp_path / "shared" / "jobs" / name / "run.json").read_text())
    assert (run["status"], {step["status"] for step in run["steps"].values()}) == ("done", {"done"})
    assert not (tmp_path / "elsewhere").exists()
    again = submit("--attach", name)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "done in " in done.stdout
    unknown = submit("--attach", "nothing")
    assert (unknown.returncode, "is it a job of" in unknown.stderr) == (1, True)

    printed = submit("redacted.yaml", "--store", str(tmp_path / "apart"), "--kuberay", "image", "--claim", "disk")
    assert by_submitter(printed.stdout, tmp_path / "mounted", address, here)
    (run,) = (tmp_path / "apart" / "jobs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def by_submitter(printed: str, folder: Path, address: str, variables: dict[str, str]) -> bool:
    """Do with what is printed for KubeRay what its submitter does, its files in a folder; return whether the job went well."""
    files, job = yaml.safe_load_all(printed)
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (head,), (volume, _) = pod["containers"], pod["volumes"]
    for item in volume["configMap"]["items"]:
        (folder / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / item["path"]).write_bytes(b64decode(files["binaryData"][item["key"]]))
    of_pod = json.dumps({"env_vars": {item["name"]: item["value"] for item in head["env"]}})
    entrypoint, name = job["spec"]["entrypoint"].replace("/caiflow/spec", str(folder)), job["metadata"]["name"]
    there = f"--address {address} --submission-id {name} --no-wait --runtime-env-json {quote(of_pod)}"
    shell = f"if true; then ray job submit {there} -- {entrypoint} ; fi ; ray job logs --address {address} --follow {name}"
    done = subprocess.run(["bash", "-c", shell], env=variables, capture_output=True, text=True, timeout=500, check=False)
    return done.returncode == 0 and f"Job '{name}' succeeded" in done.stdout
