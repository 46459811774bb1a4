"""The package as pip sees it: what a wheel holds, what `import caiflow` gives, and which version everything says."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from caiflow.engine.version import VERSION
from support.source_tree import ROOT, copy_source, source_files

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
NOT_SHIPPED = ("examples/custom_operator/",)
"""Installed as a package of its own, by its own pyproject.toml."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Return a wheel built from the source alone, as a fresh clone builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=copy_source(folder / "source"), check=True, capture_output=True, text=True)
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
