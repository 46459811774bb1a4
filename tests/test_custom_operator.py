"""The example plugin: installed by pip, then checked, listed and run by the real command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.kills import without_token

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_operator"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example, installed into `site` beside it."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "example", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        "site",
        "./example",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder


def caiflow(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = {"CAIFLOW_HOME": str(plugin / "home"), "PYTHONPATH": str(plugin / "site")}
    command = [sys.executable, "-m", "caiflow.engine.cli", *arguments]
    return subprocess.run(command, cwd=plugin, env={**without_token(), **home}, capture_output=True, text=True, timeout=300)


def test_spec_with_the_plugin_is_valid_only_with_it(plugin: Path) -> None:
    assert caiflow(plugin, "validate", "example/redact.yaml").returncode == 0
    without = caiflow(plugin.parent, "validate", str(plugin / "example/redact.yaml"))
    assert without.returncode == 2
    assert "unknown operator `redact`; operators: load, " in without.stdout
    assert "or install the plugin that has it" in without.stdout


def test_its_parameters_are_checked_and_described(plugin: Path) -> None:
    wrong = caiflow(plugin, "validate", "example/redact.yaml", "--set", "steps.redacted.colum=response")
    assert wrong.returncode == 2
    assert "column" in wrong.stdout
    described = caiflow(plugin, "ops", "redact").stdout
    assert "What stands for each" in described
    assert json.loads(caiflow(plugin, "ops", "redact", "--json").stdout)["properties"]["mark"]["default"] == "[private]"


@pytest.mark.soak
def test_it_runs(plugin: Path) -> None:
    ran = caiflow(plugin, "run", "example/redact.yaml", "--out", "out")
    assert ran.returncode == 0, ran.stderr
    lines = caiflow(plugin, "show", "out", "redacted", "--json").stdout.splitlines()
    assert [json.loads(line)["response"] for line in lines] == [
        "Write to [left out] or call [left out].",
        "At 9 on weekdays.",
        "Ask [left out] first.",
    ]
    assert json.loads((plugin / "out" / "caiflow.lock").read_text())["plugins"] == {"redact": "caiflow-redact==1.0"}


def test_whoever_lacks_the_plugin_is_told_its_package_by_the_lock(plugin: Path, tmp_path: Path) -> None:
    shutil.copytree(plugin / "example", tmp_path / "handed")
    lock = {"caiflow_lock": 1, "plugins": {"redact": "caiflow-redact==1.0"}}
    (tmp_path / "handed" / "caiflow.lock").write_text(json.dumps(lock))
    without = caiflow(tmp_path, "validate", "handed/redact.yaml")
    assert without.returncode == 2
    assert "install the plugin that has it, by the lock beside the file caiflow-redact==1.0" in without.stdout
