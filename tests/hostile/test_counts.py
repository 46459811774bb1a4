"""How many hostile things are tried, as the README says it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.source_tree import ROOT

PLACES = ("tests/hostile", "tests/engine/llm/served/test_misbehaviour.py")


def collected() -> list[str]:
    """Return the names of the tests there, of whatever tier."""
    command = [sys.executable, "-m", "pytest", *PLACES, "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]


@pytest.mark.soak
def test_the_readme_says_how_many_hostile_things_are_tried() -> None:
    names = collected()
    hostile = sum(name.startswith(PLACES[0]) for name in names)
    kinds = sum("::test_a_misbehaving_server_costs_a_named_outcome[" in name for name in names)
    print(f"{hostile} hostile specs, files and texts, {kinds} kinds of misbehaviour")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) hostile specs, files and texts, and (\d+) ways in which a server", readme)
    assert said, "the README no longer says it"
    assert int(said[1]) == hostile // 10 * 10, f"there are {hostile}"
    assert int(said[2]) == kinds
