"""The models of a run as engines load them: what its steps trained, and those its spec names. Changes nothing of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caiflow.engine.errors import CaiflowError, suggest
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import Task, base_and_adapter, load_tokenizer, load_weights, read_object
from caiflow.engine.lookback.history import output_dir, output_kind, step_dir
from caiflow.engine.plan.components import Resolver
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import ADAPTER, Store, read_artifact
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


def merge(run_dir: Path, name: str, target: Path, store: Store) -> None:
    """Write a model of a run with its adapter folded into the weights, and its tokenizer, as one that needs no adapter.

    Over a quantised model the weights are those from before, in full.

    Raises:
        CaiflowError: the model has no adapter, the folder isn't empty, or as `run_models`.
        EngineError: kind `load`: its files are missing or unreadable.
    """
    if target.exists() and any(target.iterdir()):
        raise CaiflowError(f"{target}: not empty", "name a new folder")
    (source,) = run_models(run_dir, [name], store).values()
    adapter = base_and_adapter(source)[2]
    if adapter is None:
        raise CaiflowError(f"{name}: it has no adapter, it is whole as it is", f"take {source.path}")
    task: Task = "reward" if read_object(Path(adapter) / ADAPTER).get("task_type") == "SEQ_CLS" else "causal"
    model = load_weights(source, task, dtype="auto")
    model.save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
