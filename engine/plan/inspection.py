"""What a spec may do when it runs: files read, servers asked, keys sent, code run, and what of it needs its user's word.

Goes by what the spec says, before anything that it names is opened, asked or looked up. Runs nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caiflow.engine import registry
from caiflow.engine.errors import SpecError
from caiflow.engine.llm.model_files import BUNDLED, PACKAGED
from caiflow.engine.llm.served.hosts import host_of
from caiflow.engine.machine import local_path
from caiflow.engine.plan.consent import unallowed_hosts, unallowed_keys, with_typed
from caiflow.engine.spec.checks import SCHEME, may_be_hub_id
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.spec.layers import ByHand
from caiflow.engine.spec.load import Draft, in_order
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.spec.reach import Named, flag_for, is_there, named, resolved
from caiflow.engine.store.artifacts import default_home
from caiflow.engine.store.bucket import bucket_here
from caiflow.engine.yaml.tree import Node, dotted

TRUST = "--trust-remote-code"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value that names a file, or what is fetched; `flag` is what allows it, empty where it may be read."""

    place: str
    value: str
    path: str
    """The file or folder, links followed; empty for what is fetched from the hub or comes with caiflow by name."""
    why: str
    """Where that is, or where it is fetched from."""
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """A server that is asked; `flags` are what allows it."""

    host: str
    models: tuple[str, ...]
    steps: tuple[str, ...]
    """The steps whose rows it is sent."""
    keys: tuple[str, ...]
    """The environment variables whose content it is sent."""
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Code beyond caiflow's own."""

    place: str
    what: str
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a spec may do."""

    specs: tuple[str, ...]
    """The spec's file and those that it extends."""
    unseen: tuple[str, ...]
    """Its profiles that weren't chosen."""
    models: dict[str, str]
    reads: tuple[Reading, ...]
    asks: tuple[Asking, ...]
    runs: tuple[Code, ...]
    writes: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """The options that allow all of it, each once."""
        found = [reading.flag for reading in self.reads]
        found += [flag for asking in self.asks for flag in asking.flags] + [code.flag for code in self.runs]
        return tuple(dict.fromkeys(filter(None, found)))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "flags": list(self.flags)}


def inspection(path: Path, draft: Draft, allowed: Permissions = Permissions()) -> Inspection:
    """Return what a spec may do, and what of it is allowed neither for good nor by hand, nor by `allowed`.

    Raises:
        SpecError: its values aren't of the right shape, so that it can't be told.
    """
    if draft.problems or draft.head is None:
        raise SpecError(in_order(draft.problems))
    steps = {name: step.marks("x-path") for name, step in draft.steps.items()}
    return Inspection(
        specs=tuple(dict.fromkeys(file for file in _written_in(draft.tree) if not isinstance(file, ByHand))),
        unseen=draft.profiles,
        models={name: _model(entry) for name, entry in draft.models.items()},
        reads=tuple(found for value in named(draft.models, steps, draft.tree) for found in _reading(value, draft)),
        asks=tuple(_askings(draft, with_typed(draft.models, draft.tree, allowed))),
        runs=tuple(_codes(draft)),
        writes=(
            f"runs/{draft.head.name or path.stem}/ in the working folder, or --out",
            f"the store, {default_home()}",
            *([f"the artifacts, to {bucket}"] if (bucket := bucket_here()) else []),
        ),
    )


def _written_in(node: Node) -> Iterator[str]:
    """Yield the files that the values of a spec are written in."""
    yield node.at.file
    children = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, tuple) else ()
    for child in children:
        yield from _written_in(child)


def _model(entry: ModelEntry) -> str:
    """Return in words what a model is."""
    if entry.served:
        return f"{entry.source} at {host_of(entry.address)}" if entry.base_url else f"what answers at {host_of(entry.address)}"
    by_name = {**dict.fromkeys(BUNDLED, "comes with caiflow"), **dict.fromkeys(PACKAGED, "of a package")}
    return " ".join(filter(None, (entry.source, by_name.get(entry.source) and f"({by_name[entry.source]})")))


def _reading(value: Named, draft: Draft) -> Iterator[Reading]:
    """Yield what is read for a value: the first place that may not be, or all of them together; nothing for a plain text."""
    place, base_dir = dotted(value.place), draft.reach.base_dir
    by_hand = isinstance(draft.tree.nearest(value.place).at.file, ByHand)
    paths = [] if by_hand else [*_until_refused(value, draft)]
    if paths and (target := draft.reach.refused(paths[-1])):
        yield Reading(place, value.value, str(target), "not allowed", flag_for(target))
        return
    written = local_path(value.value, base_dir)
    there = is_there(written)
    if there:
        why = "written by hand" if by_hand else draft.reach.why(written)
        yield Reading(place, value.value, str(resolved(written)), why)
    elif value.takes == "constitution" or (SCHEME.match(value.value) and not value.value.startswith("suite:")):
        yield Reading(place, value.value, "", "comes with caiflow, by name")
    elif value.takes in ("model", "file-or-hub") and (may_be_hub_id(value.value) or SCHEME.match(value.value)):
        yield Reading(place, value.value, "", "fetched from the hub, unless it is in its cache")
    elif value.takes != "template":
        yield Reading(place, value.value, str(resolved(written)), "not there")


def _until_refused(value: Named, draft: Draft) -> Iterator[Path]:
    for path in value.leads_to(draft.reach.base_dir):
        yield path
        if draft.reach.refused(path):
            return


def _askings(draft: Draft, allowed: Permissions) -> Iterator[Asking]:
    unnamed = unallowed_keys(draft.models, allowed)
    private = unallowed_hosts(draft.models, allowed, look_up=False)
    asked: dict[str, list[str]] = {}
    for name, entry in draft.models.items():
        if entry.address:
            asked.setdefault(host_of(entry.address), []).append(name)
    for host, models in asked.items():
        steps = [name for name, step in draft.steps.items() if any(ref.name in models for ref in step.references())]
        keys = dict.fromkeys(key for name in models if (key := draft.models[name].api_key_env))
        flags = [f"--allow-env {key}" for key in unnamed if key.host == host]
        flags += [f"--allow-host {host}"] if host in private and not flags else []
        yield Asking(host, tuple(models), tuple(steps), tuple(keys), tuple(flags))


def _codes(draft: Draft) -> Iterator[Code]:
    for name, entry in draft.models.items():
        if entry.other_engine_args:
            given = ", ".join(entry.other_engine_args)
            yield Code(f"models.{name}.other_engine_args", f"vLLM's arguments {given}, which may name code", TRUST)
    for name, step in draft.steps.items():
        if not registry.is_built_in(step.op):
            kind = step.operator_type()
            yield Code(f"steps.{name}.op", f"the operator `{step.op}`, {kind.__module__}, which is installed here")
