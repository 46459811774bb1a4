"""What editors offer and show in a spec: the schema in the real yaml-language-server, from npm's registry."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import caiflow.specs
from caiflow.engine import registry
from caiflow.engine.spec import schema
from support.language_server import LanguageServer

VERSION = "yaml-language-server@1"
HEAD = f"# yaml-language-server: $schema={schema.SHIPPED.as_uri()}\ncaiflow: 1\n"
RECIPE = Path(str(caiflow.specs.__file__)).with_name("quickstart.yaml")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    place = tmp_path_factory.mktemp("server")
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    done = subprocess.run(["npm", "install", "--silent", VERSION], cwd=place, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{VERSION} can't be installed: {done.stderr[-300:]}")
    with LanguageServer(place / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server", place) as server:
        yield server


@pytest.mark.parametrize(
    "text", ["steps:\n  answer:\n    op: |\n", "steps:\n  answer: {op: |}\n", "steps:\n  answer: {op: gen|}\n"]
)
def test_operators_are_offered_with_what_they_do(server: LanguageServer, text: str) -> None:
    offered = server.completions(HEAD + text)
    assert set(registry.BUILT_IN) <= set(offered)
    assert "Makes rows." in offered["critique"]


@pytest.mark.parametrize(
    "text",
    [
        "steps:\n  answer:\n    op: critique\n    |\n",
        "steps:\n  answer: {op: critique, f|}\n",
    ],
)
def test_an_operators_parameters_are_offered_in_both_styles(server: LanguageServer, text: str) -> None:
    offered = server.completions(HEAD + text)
    assert "few_shot" in offered
    assert "beta" not in offered, "a parameter of another operator"
    assert offered["few_shot"].strip()


def test_operators_and_parameters_are_described_where_one_points(server: LanguageServer) -> None:
    text = HEAD + "steps:\n  answer: {op: critique, input: red, model: base, few_shot: 2}\n"
    assert "critici" in server.hover(text.replace("op: crit", "op: cr|it")).lower()
    described = schema.describe("critique")["properties"]["few_shot"]["description"]
    assert described.split(".")[0] in server.hover(text.replace("few_shot", "few|_shot"))


def test_a_recipe_is_right_and_a_slip_is_found(server: LanguageServer) -> None:
    recipe = HEAD + RECIPE.read_text(encoding="utf-8").partition("caiflow: 1\n")[2]
    assert server.problems(recipe) == []
    (problem,) = server.problems(recipe.replace("few_shot:", "few_shots:", 1))
    assert "few_shots" in problem


def test_a_constitution_is_described_and_a_slip_is_found(server: LanguageServer, tmp_path: Path) -> None:
    (tmp_path / "constitution.json").write_text(schema.text(schema.constitution_schema()))
    text = f"# yaml-language-server: $schema={(tmp_path / 'constitution.json').as_uri()}\n"
    text += "caiflow_constitution: 1\nname: mine\nprinciples:\n- id: kind\n  rule: be kind\n"
    assert server.problems(text) == []
    assert "relative to the others" in server.hover(f"{text}  wei|ght: 2\n")
    assert {"critique", "revision", "judge", "weight"} <= set(server.completions(f"{text}  we|\n"))
    (problem,) = server.problems(text.replace("rule:", "rules:"))
    assert "rules" in problem
