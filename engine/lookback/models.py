"""The models of a run as engines load them: what its steps trained, and those its spec names. Reads only; loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caiflow.engine.errors import CaiflowError, suggest
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.lookback.history import output_dir, output_kind, step_dir
from caiflow.engine.plan.components import Resolver
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store, read_artifact
from caiflow.engine.store.journal import read_run


def run_models(run_dir: Path, names: Sequence[str], store: Store) -> dict[str, ModelSource]:
    """Return the models that are named, steps or entries of `models`, with the engine that the run had them on.

    Raises:
        CaiflowError: a name is neither, or its step made no model.
        SpecError: the run's spec can't be read any more.
    """
    steps = read_run(run_dir)["steps"]
    for name in names:
        if name in steps and (kind := output_kind(step_dir(run_dir, name))) != "model":
            raise CaiflowError(f"{name}: its output is {kind}, not a model", "name a step that trains one")
    spec = load_spec(run_dir / "spec.yaml", allowed=(Path("/"),))  # whoever made the run allowed its files then
    resolver = Resolver(spec, store)
    for name, record in steps.items():
        path = output_dir(run_dir, name, record)
        if path.is_dir() and output_kind(path) == "model":
            resolver.artifacts[name] = read_artifact(path.resolve())
    known = [*resolver.artifacts, *spec.models]
    for name in names:
        if name not in known:
            raise CaiflowError(f"{run_dir}: no model {name!r} in this run", suggest(name, known, "models"))
    return {name: source for name in names if (source := resolver.model(name)) is not None}
