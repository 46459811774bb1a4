"""Full profiles of recipes run to the end over a hub on loopback: one with each change, all of them before a release.

Its repositories are laid out as they are published, with tiny weights in the models' names.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.journal import read_run
from support.bad_server import bad_server, said
from support.loopback_hub import HUB, loopback_hub

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "specs").glob("*.yaml") if "\n  full:\n" in path.read_text())

ALWAYS = {"nemo_style"}
"""The only one that asks a hosted judge, and most data sets."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(1600),  # beyond what the run itself is given
    pytest.mark.skipif(not (HUB / "hub.py").is_file(), reason=f"no hub to serve at {HUB}; set CAIFLOW_TEST_HUB"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve the repositories that the recipes name; give the variables under which they are found there."""
    with loopback_hub(Path(tmp_path_factory.mktemp("hub"))) as variables:
        yield variables


def shortened(path: Path, judge: str) -> list[str]:
    """Return what cuts time and GPUs, lifts bounds that tiny weights can't meet, and puts a hosted judge on loopback."""
    spec = load_spec(path, profile="full")
    sets = [f"models.{name}.base_url={judge}" for name, entry in spec.models.items() if entry.base_url]
    for name in dict.fromkeys(step.base for step in spec.steps.values()):
        step = next(step for step in spec.steps.values() if step.base == name)
        fields: dict[str, Any] = dict(step.params)
        sets += [f"steps.{name}.sampling.max_tokens=24"] if "sampling" in fields else []
        sets += [f"steps.{name}.sampling.temperature=1"] if step.op == "probe" else []  # given any, the default is gone
        sets += [f"steps.{name}.resources.workers=1"] if step.params.resources.workers > 1 else []
        sets += [f"steps.{name}.fsdp=false"] if fields.get("fsdp") else []
        sets += [f"steps.{name}.require={{}}"] if step.params.require else []
        sets += [f"steps.{name}.max_steps=2", f"steps.{name}.max_completion_length=16"] if step.op == "rl" else []
        sets += [f"steps.{name}.samples=1"] if step.op == "evaluate" else []
    if path.stem == "principle_ablation":
        arms = [step.arm for step in spec.steps.values() if step.base == "sl_cai"]
        sets += [f"matrix.without.{arm}=null" for arm in arms if arm not in ("none", "theft")]
    return [option for text in sets for option in ("--set", text)]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in ALWAYS else [pytest.mark.campaign]) for path in RECIPES],
    ids=lambda path: path.stem,
)
def test_its_full_profile_runs_to_the_end(path: Path, hub: dict[str, str], tmp_path: Path) -> None:
    with bad_server() as judge:
        judge.reply = lambda _, number: said("(A)" if number % 2 else "(B)")
        options = ["--profile", "full", "--sample", "8", "--out", str(tmp_path / "run"), *shortened(path, judge.url)]
        command = [sys.executable, "-m", "caiflow.engine.cli", "run", str(path), *options]
        done = subprocess.run(
            command,
            env={**hub, "MIXTRAL_API_KEY": "none"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )
    steps = read_run(tmp_path / "run")["steps"]
    assert done.returncode == 0, {name: step["error"] for name, step in steps.items() if step.get("error")} or done.stdout[
        -6000:
    ]
    assert {step["status"] for step in steps.values()} <= {"done", "cached"}
