"""The package as pip sees it: what a wheel holds, what `import caiflow` gives, and which version everything says."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from caiflow.engine.version import VERSION
from support.kills import without_token
from support.quickstart_figures import each_stage_earns_its_place
from support.source_tree import ROOT, copy_source, source_files

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
NOT_SHIPPED = ("examples/custom_operator/",)
"""Installed as a package of its own, by its own pyproject.toml."""


BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Return a wheel built from the source distribution of a fresh clone, so that a file that either lacks is missed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-c", BUILD_SDIST, str(folder)]
    subprocess.run(build, cwd=copy_source(folder / "source"), check=True, capture_output=True, text=True)
    (packed,) = folder.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(packed)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return ZipFile(built)


def place_in_wheel(file: Path) -> str | None:
    """Return where a file of the source belongs in the wheel; the deepest folder that is a package decides."""
    homes = {folder: package for package, folder in FOLDERS.items() if Path(folder) in file.parents}
    if not homes or file.as_posix().startswith(NOT_SHIPPED):
        return None
    home = max(homes, key=len)
    return f"{homes[home].replace('.', '/')}/{file.relative_to(home).as_posix()}"


def test_a_wheel_holds_every_file_of_the_packages_and_no_other(wheel: ZipFile) -> None:
    wanted = {place for file in source_files() if (place := place_in_wheel(file))}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {"caiflow/__init__.py", "caiflow/py.typed", "caiflow/engine/llm/base.py"} <= held


def test_a_wheel_has_the_version_that_the_code_says(wheel: ZipFile) -> None:
    assert Path(str(wheel.filename)).name == f"caiflow-{VERSION}-py3-none-any.whl"


LINKED = "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/dependencies.pth', 'w').write(sys.argv[1])"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.campaign)], ids=["", "with what pip brings"])
def test_the_wheel_runs_the_quickstart_from_an_empty_environment(wheel: ZipFile, tmp_path: Path, alone: bool) -> None:
    """Beside the dependencies that are here; or, as a user has it, with those that it names itself, but for torch's version.

    That those which it names are enough, `make quickstart` in a clean clone shows too.
    """
    variables = {**without_token(), "CAIFLOW_HOME": str(tmp_path / "home"), "PATH": os.defpath}

    def ran(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python, caiflow = str(tmp_path / "empty" / "bin" / "python"), str(tmp_path / "empty" / "bin" / "caiflow")
    ran(sys.executable, "-m", "venv", "empty")
    if alone:
        ran(python, "-m", "pip", "install", "--quiet", f"torch=={version('torch').partition('+')[0]}", str(wheel.filename))
    else:  # a folder that is linked brings its modules, and none of the editable installs that it names
        ran(python, "-c", LINKED, sysconfig.get_path("purelib"))
        ran(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel.filename))
    assert ran(python, "-c", "import caiflow; print(caiflow.__file__)").startswith(str(tmp_path / "empty"))
    ran(caiflow, "run", "quickstart", "--out", "run")
    each_stage_earns_its_place(tmp_path / "run", 0.05)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {file.parent for file in source_files() if file.suffix == ".py" and place_in_wheel(file)}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_importing_caiflow_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import caiflow; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light = {"typing", "_typing", "typing.io", "typing.re", "collections.abc"}
    own = {"caiflow", "caiflow.engine", "caiflow.engine.errors", "caiflow.engine.version"}
    assert set(done.stdout.split()) <= own | light


SAYS_ITS_VERSION = "import caiflow as c; print(c.__name__, c.__version__)"


@pytest.mark.parametrize("command", [["-m", "caiflow", "--version"], ["-c", SAYS_ITS_VERSION]])
def test_the_version_is_told(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert done.stdout == f"caiflow {VERSION}\n"


def test_the_installed_version_is_the_codes() -> None:
    assert version("caiflow") == VERSION, "caiflow.engine.version was raised since this environment was installed: `make venv`"
