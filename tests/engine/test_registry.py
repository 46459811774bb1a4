"""Operators by name: built in, added, from plugins; broken plugins are never passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from caiflow.engine import registry
from caiflow.engine.errors import CaiflowError
from caiflow.engine.operator import Operator
from support.small_operators import Ask


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_each_built_in_operator_has_its_name_and_its_models(name: str) -> None:
    found = registry.operator(name)
    assert issubclass(found, Operator)
    assert found.name == name
    assert found.kind in ("rows", "model", "metrics")
    assert (found.__doc__ or "").strip()
    assert found.params_type.model_config["extra"] == "forbid"


def test_extra_operators_are_there_for_a_while() -> None:
    assert not registry.exists("ask")
    with registry.extra(Ask):
        assert registry.operator("ask") is Ask
        assert "ask" in registry.names()
        assert not registry.is_built_in("ask")
    with pytest.raises(registry.UnknownOperatorError, match="unknown operator `ask`"):
        registry.operator("ask")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Return a function that installs a package with entry points, as pip leaves it on disk."""

    def put(name: str, entry: str, code: str = "") -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[caiflow.operators]\n{entry}\n")
        (tmp_path / f"{name}.py").write_text(code)
        registry.plugins.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    monkeypatch.undo()
    registry.plugins.cache_clear()
    registry._load.cache_clear()


PLUGIN = """
from support.small_operators import Ask
class Shout(Ask):
    name = "shout"
"""


def test_a_plugin_is_found_by_its_entry_point(install) -> None:  # type: ignore[no-untyped-def]
    install("shouting", "shout = shouting:Shout", PLUGIN)
    assert "shout" in registry.names()
    assert registry.operator("shout").__name__ == "Shout"


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        (
            "broken = broken_plugin:Nothing",
            "raise RuntimeError('no licence')",
            "got RuntimeError: no licence",
        ),
        ("broken = broken_plugin:Nothing", "", "can't be imported, got AttributeError"),
        ("broken = broken_plugin:Nothing", "Nothing = 3", "not an operator, got 3"),
        ("broken = broken_plugin:Shout", PLUGIN, "named `shout`, got entry point `broken`"),
    ],
)
def test_a_broken_plugin_raises(install, entry: str, code: str, message: str) -> None:  # type: ignore[no-untyped-def]
    install("broken_plugin", entry, code)
    with pytest.raises(CaiflowError, match="plugin broken_plugin") as caught:
        registry.operator("broken")
    assert message in str(caught.value)
    import sys

    sys.modules.pop("broken_plugin", None)


def test_a_plugin_cannot_take_a_built_in_name(install) -> None:  # type: ignore[no-untyped-def]
    install("greedy", "generate = greedy:Generate")
    with pytest.raises(CaiflowError, match="`generate` is taken by caiflow itself"):
        registry.names()


def test_two_plugins_cannot_share_a_name(install) -> None:  # type: ignore[no-untyped-def]
    install("first", "shout = first:Shout")
    install("second", "shout = second:Shout")
    with pytest.raises(CaiflowError, match="the operator name `shout` is taken by"):
        registry.names()
