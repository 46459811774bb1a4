"""A node that dies or freezes in each phase of a whole run: the run ends by itself, with the rows of an undisturbed one.

Only a judge's probabilities, and what is trained on them, may differ in the seventh digit, with what is computed beside them.

Raylets of this machine with GPUs in name only; a new node comes in the place of each lost one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.store.journal import read_run
from support.kills import rows_by_step, without_token
from support.lost_nodes import PHASES
from support.source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.kill, pytest.mark.timeout(900)]

STEPS = {"sl_cai": 30, "reward_model": 30, "rl_cai": 8}
SPEC = """
caiflow: 1
name: phases
seed: 3
constitution: harmless
models:
  base: {source: tiny, engine: transformers, engine_args: {device: cpu, max_num_seqs: 8}, num_gpus: 1}
steps:
  red_team: {op: load, source: "tiny:red_team_train.jsonl", format: hh, sample: 40}
  test: {op: load, source: "tiny:red_team_test.jsonl", format: hh}
  response: {op: generate, input: red_team, model: base, sampling: {temperature: 0.7, max_tokens: 64}}
  revision: {op: revise, input: response, model: base, sampling: {max_tokens: 64}}
  sl_cai: {op: sft, input: revision, model: base, max_steps: 30, save_steps: 5, resources: {num_gpus: 1}}
  pair: {op: generate, input: red_team, model: sl_cai, samples: 2, sampling: {temperature: 1, max_tokens: 64}}
  preference: {op: judge, input: pair, model: base}
  reward_model: {op: reward, input: preference, model: sl_cai, max_steps: 30, save_steps: 5, resources: {num_gpus: 1}}
  rl_cai:
    {op: rl, algorithm: grpo, input: red_team, model: sl_cai, rewards: {reward_model: 1}, num_generations: 4,
     max_completion_length: 16, max_steps: 8, save_steps: 2, resources: {num_gpus: 1}}
  scores: {op: evaluate, models: [base, rl_cai], inputs: {harmful: test}, sampling: {max_tokens: 64}}
"""


def test_a_node_lost_in_each_phase_leaves_no_trace(tmp_path: Path, figure: Callable[[str, str], None]) -> None:
    (tmp_path / "phases.yaml").write_text(SPEC, encoding="utf-8")
    command = [sys.executable, "-m", "support.lost_nodes", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "tests", env=without_token(), capture_output=True, text=True, check=False)
    texts = "".join(path.read_text(encoding="utf-8")[-3000:] for path in tmp_path.glob("*.txt"))
    assert done.returncode == 0, done.stderr[-3000:] + texts
    told = json.loads(done.stdout.splitlines()[-1])
    after = [f"{step} {phase['goes on after']:g} s after {phase['how']}" for step, phase in told["phases"].items()]
    figure("phases", f"more was made: {', '.join(after)}")
    assert told["codes"] == [0, 0], texts
    for step in PHASES:
        assert told["phases"][step]["under way"], f"{step} was over before its node was hit"
        assert told["phases"][step]["processes"], "the node had none of the run's work"
    whole, disturbed = (tmp_path / name for name in ("whole", "disturbed"))
    steps = read_run(disturbed)["steps"]
    assert {step["status"] for step in steps.values()} == {"done"}
    assert {step: steps[step]["metrics"]["steps"] for step in STEPS} == STEPS
    assert alike(rows_by_step(disturbed), rows_by_step(whole))
    assert weights(disturbed / "steps" / "sl_cai") == weights(whole / "steps" / "sl_cai")


def alike(left: Any, right: Any) -> bool:
    """Tell whether rows are the same, floats up to what a batch's other rows do to them."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == (pytest.approx(right, abs=1e-4) if isinstance(left, float) else right))


def weights(folder: Path) -> dict[str, str]:
    """Return the sha256 of a model's files of weights."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert found
    return found
