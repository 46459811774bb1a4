"""`load` from a hub on loopback: the asked split's files alone are fetched; one request tells a whole plan their commit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.loopback_hub import HUB, loopback_hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.skipif(not (HUB / "hub.py").is_file(), reason=f"no hub to serve at {HUB}; set CAIFLOW_TEST_HUB"),
    pytest.mark.skipif(not find_spec("fastapi") or not find_spec("uvicorn"), reason="the hub needs fastapi and uvicorn"),
]
CHAT = "HuggingFaceH4/ultrachat_200k"
PROGRAM = """
import json, sys
from pathlib import Path
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.load import Load, LoadParams
for number, fields in enumerate(json.loads(sys.argv[1])):
    step, told = Load(LoadParams(**fields), StepContext()), []
    out = Path(sys.argv[2]) / str(number)
    out.mkdir(parents=True)
    try:
        with_types = RowsWriter(out, {})
        step.table(Job(out, log=lambda **said: told.append(said.get("doing"))), with_types)
        with_types.close()
        print(json.dumps({"rows": Rows(out).num_rows, "told": told, "of": step.identity()["content"]}))
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
"""
SPEC = """\
caiflow: 1
steps:
  one:   {{op: load, source: {chat}, hub_split: train_sft}}
  two:   {{op: load, source: {chat}, hub_split: test_sft}}
  three: {{op: load, source: {chat}, hub_split: train_gen, sample: 5}}
  four:  {{op: load, source: {chat}, hub_split: train_sft, sample: 5}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with loopback_hub(Path(tmp_path_factory.mktemp("hub"))) as variables:
        yield variables


def requests(hub: dict[str, str]) -> list[str]:
    log = Path(hub["HF_HOME"]).parent / "requests.log"
    return [line.split()[1] for line in log.read_text().splitlines() if CHAT in line and line.startswith("GET")]


def loaded(hub: dict[str, str], out: Path, *steps: dict[str, Any], **variables: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", PROGRAM, json.dumps([{"source": CHAT, **step} for step in steps]), str(out)]
    done = subprocess.run(command, env={**hub, **variables}, capture_output=True, text=True, check=True, timeout=280)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_the_files_of_the_asked_split_are_fetched_and_the_cache_knows_what_it_lacks(
    hub: dict[str, str], tmp_path: Path
) -> None:
    before = len(requests(hub))
    train, again, missing = loaded(
        hub, tmp_path / "online", {"hub_split": "train_sft"}, {"hub_split": "train_sft", "sample": 5}, {"hub_split": "nope"}
    )
    assert (train["rows"], again["rows"]) == (600, 5)
    assert train["told"][:3] == [f"fetching {CHAT}:train_sft: {n} of 3 files" for n in (1, 2, 3)]
    assert "it has no split 'nope'" in missing["error"]
    asked = requests(hub)[before:]
    fetched = sorted(path.rpartition("/")[2].partition("-of-")[0] for path in asked if "/resolve/" in path)
    assert fetched == ["README.md", "train_sft-00000", "train_sft-00001", "train_sft-00002"]
    assert len([path for path in asked if path.startswith("/api/")]) == 1
    pinned = train["of"].rpartition("@")[2]
    train, named, gen = loaded(
        hub, tmp_path / "offline", {"hub_split": "train_sft", "revision": pinned}, {"hub_split": "train_sft"},
        {"hub_split": "train_gen", "revision": pinned}, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert train["rows"] == named["rows"] == 600
    assert named["of"].endswith(f"@{pinned}"), "what the revision stood for when it was fetched"
    assert gen["error"] == f"{CHAT}:train_gen: 3 of 3 files aren't in the hub's cache; fetch it while online"


def test_one_request_tells_all_steps_of_a_plan_the_commit(hub: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.format(chat=CHAT))
    before = len(requests(hub))
    command = [sys.executable, "-m", "caiflow", "plan", "spec.yaml", "--json"]
    done = subprocess.run(command, env=hub, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=280)
    assert [step["state"] for step in json.loads(done.stdout)["steps"]] == ["run"] * 4
    assert len(requests(hub)[before:]) == 1
