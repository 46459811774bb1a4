"""vLLM in a process of its own, on either of its model runners: what chooses the runner must be set before vLLM is imported."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource, Request

TESTS = Path(__file__).parents[1]
ON_A_CPU = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""Variables under which vLLM's own programs run beside other tests."""
Asked = Sequence[tuple[ModelSource, list[Request]]]


def second_runner(*, ahead: bool) -> dict[str, str]:
    """Return the variables under which vLLM's CPU build serves on its second model runner, one step ahead or in step."""
    return {
        "PYTHONPATH": os.pathsep.join([str(TESTS / "support" / "second_runner"), str(TESTS)]),
        "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "CAIFLOW_TEST_ONE_STEP_AHEAD": "1" if ahead else "0",
    }  # fmt: skip


def answered(folder: Path, asked: Asked, **variables: str) -> list[dict[str, Any]]:
    """Have one vLLM after the other answer what it is asked; support/answering.py says what is told of each."""
    folder.mkdir(exist_ok=True)
    (folder / "asked").write_bytes(pickle.dumps(list(asked)))
    command = [sys.executable, "-m", "support.answering", str(folder / "asked"), str(folder / "answered")]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), **variables}
    done = subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = pickle.loads((folder / "answered").read_bytes())
    return found
