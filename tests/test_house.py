"""The plan of the code: how large its rooms are, and that a wrong import is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("engine", "operators", "constitutions", "specs", "examples")
MOST_MODULES, MOST_OF_THE_ENGINES_OWN, MOST_LINES = 15, 10, 400


def modules(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.py") if path.name != "__init__.py"]


def test_no_folder_holds_more_modules_than_a_reader_takes_in() -> None:
    folders = [path for part in ("engine", "operators") for path in (ROOT / part, *(ROOT / part).rglob("*")) if path.is_dir()]
    crowded = {path.relative_to(ROOT).as_posix(): len(modules(path)) for path in folders if len(modules(path)) > MOST_MODULES}
    assert set(crowded) <= {"engine/commands"}  # a file a command
    assert len(modules(ROOT / "engine")) <= MOST_OF_THE_ENGINES_OWN


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    files = [path for part in ("engine", "operators") for path in (ROOT / part).rglob("*.py")]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


def test_every_wing_says_what_it_is_for() -> None:
    wings = [path for part in ("engine", "operators") for path in (ROOT / part).rglob("__init__.py")]
    assert [path for path in wings if not path.read_text(encoding="utf-8").startswith('"""')] == []


@pytest.mark.skipif(not shutil.which("lint-imports", path=Path(sys.executable).parent), reason="import-linter isn't installed")
@pytest.mark.parametrize(
    ("wing", "imported", "said"),
    [
        (
            "engine/store/disk.py",
            "from caiflow.engine.plan.plan import make_plan",
            "caiflow.engine.store.disk -> caiflow.engine.plan.plan",
        ),
        (
            "engine/yaml/tree.py",
            "from caiflow.engine.yaml.reader import read_yaml",
            "No cycles are allowed in caiflow.engine.yaml",
        ),
        (
            "operators/mixing/mix.py",
            "from caiflow.operators.load import Load",
            "caiflow.operators.mixing.mix -> caiflow.operators.load",
        ),
    ],
)
def test_a_wrong_import_is_named_from_where_to_where(tmp_path: Path, wing: str, imported: str, said: str) -> None:
    package = tmp_path / "caiflow"
    for part in PARTS:
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__", "model", "data"))
    shutil.copyfile(ROOT / "engine/door/__init__.py", package / "__init__.py")
    with (package / wing).open("a", encoding="utf-8") as file:
        file.write(f"\n\ndef planted() -> None:\n    {imported}\n")
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache", str(ROOT / "pyproject.toml")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stdout
