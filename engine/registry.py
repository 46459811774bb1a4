"""Which operators there are, by the name that `op:` says.

Owns the table of built-in operators and the lookup of installed plugins (entry-point group `caiflow.operators`). Modules are
imported only when one of their operators is asked for, and plugins are looked for only when a name isn't built in. A plugin
that can't be loaded raises; it is never passed over.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from caiflow.engine.operator import Operator

GROUP = "caiflow.operators"
BUILT_IN: Mapping[str, str] = {
    "load": "caiflow.operators.load:Load",
    "map": "caiflow.operators.map:Map",
    "generate": "caiflow.operators.generate:Generate",
    "converse": "caiflow.operators.converse:Converse",
    "probe": "caiflow.operators.probe:Probe",
    "critique": "caiflow.operators.critique:Critique",
    "revise": "caiflow.operators.revise:Revise",
    "filter": "caiflow.operators.filtering.filter:Filter",
    "mix": "caiflow.operators.mixing.mix:Mix",
    "sft": "caiflow.operators.sft:Sft",
    "grade": "caiflow.operators.grade:Grade",
    "judge": "caiflow.operators.judge:Judge",
    "reward": "caiflow.operators.reward:Reward",
    "dpo": "caiflow.operators.dpo:Dpo",
    "rl": "caiflow.operators.rl:Rl",
    "induce": "caiflow.operators.inducing.induce:Induce",
    "evaluate": "caiflow.operators.evaluate:Evaluate",
}
"""Operator name -> `module:Class`, in the order of a Constitutional AI run."""

_extra: dict[str, type[Operator[Any]]] = {}


class UnknownOperatorError(CaiflowError):
    """No operator of that name is built in or installed."""


def names() -> tuple[str, ...]:
    """Return every operator's name: built-in ones first, then those of plugins."""
    return (*BUILT_IN, *_extra, *plugins())


def is_built_in(name: str) -> bool:
    """Return whether the operator comes with caiflow."""
    return name in BUILT_IN and name not in _extra


def exists(name: str) -> bool:
    """Return whether there is an operator of that name, without importing it."""
    return name in BUILT_IN or name in _extra or name in plugins()


def operator(name: str) -> type[Operator[Any]]:
    """Return the operator's class.

    Raises:
        UnknownOperatorError: there is none of that name.
        CaiflowError: a plugin is broken: it can't be imported, isn't an operator, or takes another one's name.
    """
    if name in _extra:
        return _extra[name]
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: type[Operator[Any]] = getattr(importlib.import_module(module), attribute)
        return found
    if name in plugins():
        return _load(name)
    raise UnknownOperatorError(f"unknown operator `{name}`")


@cache
def plugins() -> Mapping[str, EntryPoint]:
    """Return the operators that installed packages offer, by name.

    Raises:
        CaiflowError: two packages, or a package and caiflow, offer the same name.
    """
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = "caiflow itself" if entry.name in BUILT_IN else found[entry.name].value if entry.name in found else ""
        if other:
            raise CaiflowError(f"plugin {entry.value}: the operator name `{entry.name}` is taken by {other}", "uninstall one")
        found[entry.name] = entry
    return found


def package(name: str) -> str | None:
    """Return the package that an operator was installed with, as `NAME==VERSION`; None for one that is built in."""
    entry = None if name in BUILT_IN or name in _extra else plugins().get(name)
    return None if entry is None or entry.dist is None else f"{entry.dist.name}=={entry.dist.version}"


@cache
def _load(name: str) -> type[Operator[Any]]:
    from caiflow.engine.operator import Operator

    entry = plugins()[name]
    try:
        found: Any = entry.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise CaiflowError(f"plugin {entry.value}: it can't be imported, got {said}", "fix or uninstall it") from error
    if not (isinstance(found, type) and issubclass(found, Operator)):
        raise CaiflowError(f"plugin {entry.value}: it is not an operator, got {found!r}", "subclass RowOperator or a sibling")
    if getattr(found, "name", None) != name:
        raise CaiflowError(
            f"plugin {entry.value}: its class is named `{getattr(found, 'name', None)}`, got entry point `{name}`"
        )
    return found


@contextmanager
def extra(*operators: type[Operator[Any]]) -> Iterator[None]:
    """Add operators for a while, by their `name`: what a notebook or a test has that no package installs."""
    before = dict(_extra)
    _extra.update({found.name: found for found in operators})
    try:
        yield
    finally:
        _extra.clear()
        _extra.update(before)
