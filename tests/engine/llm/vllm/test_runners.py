"""vLLM's two model runners side by side: the same work in as many steps, over two devices, and through a run."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.load import load_engine
from support.agreement import assert_agree
from support.asking import ask, mixed_requests
from support.source_tree import ROOT
from support.vllm_process import answered, second_runner

ARGS = {"max_num_seqs": 16, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20, "max_num_batched_tokens": 512}
RUNNERS = {1: {"VLLM_USE_V2_MODEL_RUNNER": "0"}, 2: second_runner(ahead=False)}
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed"),
    pytest.mark.skipif(not find_spec("triton"), reason="Triton, whose interpreter stands for a GPU, is not installed"),
]


def on_vllm(source: ModelSource, **more: Any) -> ModelSource:
    return source._replace(engine="vllm", options={"engine_args": {**ARGS, **more}})


def test_both_runners_take_the_same_number_of_steps_for_the_same_work(tmp_path: Path, tiny_source: ModelSource) -> None:
    requests = mixed_requests(24)  # more than the engine has places
    found = {number: answered(tmp_path, [(on_vllm(tiny_source), requests)], **RUNNERS[number])[0] for number in RUNNERS}
    assert {number: one["runner"] for number, one in found.items()} == {1: 1, 2: 2}
    assert found[1]["steps"] == found[2]["steps"] > max(request.sampling.max_tokens for request in requests)
    (ahead,) = answered(tmp_path, [(on_vllm(tiny_source), requests)], **second_runner(ahead=True))
    # a row's end is known a step later, so that its place is taken a step later
    assert found[2]["steps"] <= ahead["steps"] <= 1.2 * found[2]["steps"]


@pytest.mark.parametrize("runner", [pytest.param(1, marks=pytest.mark.campaign), 2])
def test_two_devices_draw_what_one_does(tmp_path: Path, tiny_source: ModelSource, runner: int) -> None:
    requests = mixed_requests(12)
    source = on_vllm(tiny_source, tensor_parallel_size=2)
    (found,) = answered(tmp_path, [(source, requests)], **RUNNERS[runner])
    assert found["runner"] == runner
    assert_agree(tiny_source, requests, found["answers"], ask(load_engine(tiny_source), requests))


def run(folder: Path, engine: dict[str, Any], **variables: str) -> dict[str, dict[str, Any]]:
    """Run the quickstart on eight rows of each set, up to its judge, and return the rows of its steps, by step and uid."""
    sets = [part for name, value in engine.items() for part in ("--set", f"models.base.{name}={value}")]
    command = [sys.executable, "-m", "caiflow.engine.cli", "run", str(ROOT / "specs" / "quickstart.yaml"), "--sample", "8"]
    command += ["--until", "preference"]
    done = subprocess.run(
        [*command, *sets, "--out", str(folder / "run")], env={**os.environ, "CAIFLOW_HOME": str(folder / "home"), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    steps = (folder / "run" / "steps").iterdir()
    tables = {step.name: pq.read_table(step) for step in steps if list(step.glob("*.parquet"))}
    return {name: {row["uid"]: row for row in table.to_pylist()} for name, table in tables.items()}


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_the_quickstart_gives_on_the_second_runner_what_transformers_gives_up_to_its_judge(tmp_path: Path) -> None:
    for name in ("theirs", "mine"):
        (tmp_path / name).mkdir()
    theirs = run(tmp_path / "theirs", {"engine": "transformers"})
    mine = run(
        tmp_path / "mine", {"engine": "vllm", "engine_args.kv_cache_memory_bytes": 64 << 20}, **second_runner(ahead=True)
    )
    assert mine.keys() == theirs.keys() > {"response", "critique", "revision", "pair", "preference"}
    for name in ("response", "critique", "revision"):
        assert mine[name] == theirs[name], name
    # what was trained on equal rows is equal, up to what adding up in another order changes
    same = [uid for uid, row in theirs["pair"].items() if mine["pair"][uid] == row]
    assert len(same) >= 0.75 * len(theirs["pair"])
    judged = [uid for uid in same if uid in theirs["preference"]]
    assert judged
    for uid in judged:
        one, other = mine["preference"][uid], theirs["preference"][uid]
        assert one["chosen"] == other["chosen"]
        assert one["p_chosen"] == pytest.approx(other["p_chosen"], abs=1e-3)
