"""The files that a commit of this repository would have, to build or to compare with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def source_files() -> list[Path]:
    """Return the repository's files relative to its root: those that git tracks or would add, which are there."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git clone: git alone knows which files belong to the source")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(Path(name) for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def copy_source(target: Path) -> Path:
    """Copy the source to `target`, free of what earlier builds left, and return it."""
    for file in source_files():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target / file)
        (target / file).chmod((ROOT / file).stat().st_mode)
    return target
