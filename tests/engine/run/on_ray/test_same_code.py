"""Whether a node runs the same code: each difference has its words, and a digest follows the sources that decide it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from caiflow.engine.run.on_ray.nodes import Code, Found, Node, blind, code_here, sources_digest, unlike

HERE: Code = {"caiflow": "1.0", "Python": "3.11", "Ray": "2.60", "code": "a", "`title`": "b"}


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({}, []),
        ({"Python": "3.12", "Ray": "2.50"}, ["Python 3.12, here it is 3.11", "Ray 2.50, here it is 2.60"]),
        ({"caiflow": "0.9", "code": "x"}, ["caiflow 0.9, here it is 1.0"]),
        ({"code": "x"}, ["other sources of caiflow 1.0 than here"]),
        ({"`title`": "x"}, ["another operator `title` than here"]),
        ({"`title`": ""}, ["no operator `title`"]),
    ],
)
def test_each_difference_is_named(there: Code, said: list[str]) -> None:
    assert unlike({**HERE, **there}, HERE) == said


def test_an_operator_that_no_file_holds_is_no_difference() -> None:
    found = code_here({"own": "__main__"})
    assert unlike(found, found) == []


def test_a_digest_follows_the_package_around_an_operator_and_not_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for place, text in (("one", "x = 1"), ("two", "x = 1"), ("three", "x = 2")):
        package = tmp_path / place / "their_operators"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "title.py").write_text("from their_operators.words import x")
        (package / "words.py").write_text(text)
        monkeypatch.syspath_prepend(package.parent)
        monkeypatch.delitem(sys.modules, "their_operators", raising=False)
        digests.append(sources_digest("their_operators.title"))
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_a_module_that_is_not_there_has_no_digest() -> None:
    assert sources_digest("no_such_package.title") == sources_digest("no_such_module") == ""


def test_the_sources_of_caiflow_itself_are_found() -> None:
    assert {sources_digest("caiflow.engine"), sources_digest("caiflow.operators")}.isdisjoint({""})
    assert sources_digest("caiflow.engine") != sources_digest("caiflow.operators")


def test_nodes_that_are_given_locks_held_here_are_named() -> None:
    one, two = Node("a", "10.0.0.1", 1, 0), Node("b", "10.0.0.2", 1, 0)
    assert blind([(one, Found("x", {}))]) == []
    (said,) = blind([(one, Found("x", {})), (two, Found("x", {}, ["of files"]))])
    assert "10.0.0.2 (of files)" in said
    assert "10.0.0.1" not in said
