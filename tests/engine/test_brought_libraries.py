"""The commands that bring optional libraries: those that the package's own metadata names."""

from __future__ import annotations

import tomllib

import pytest

from caiflow.engine.machine import EXTRAS, pip_command
from support.source_tree import ROOT, source_files


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_what_the_extra_brings(extra: str) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    said = pip_command(extra)
    assert said.startswith("pip install '")
    for library in wanted:
        name = library.partition(">")[0].partition("=")[0]
        assert f"'{name}" in said
        assert name in EXTRAS[extra]


def test_no_message_tells_to_install_caiflow_from_an_index() -> None:
    code = [file for file in source_files() if file.suffix == ".py" and file.parts[0] in ("engine", "operators")]
    assert [str(file) for file in code if "caiflow[" in (ROOT / file).read_text() and file.name != "failures.py"] == []
