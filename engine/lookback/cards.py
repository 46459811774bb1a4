"""Cards of what a run made: a model's or a data set's README as the hub wants it, from the run's lock and figures.

Says what is recorded and nothing else: a licence that nobody gave isn't guessed. Writes no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.display.report import central, figure, leaves, number
from caiflow.engine.errors import CaiflowError
from caiflow.engine.llm.model_files import hub_snapshot
from caiflow.engine.lookback.opened import Run, Step
from caiflow.engine.plan.components import TEXTS
from caiflow.engine.plan.lock import LOCK, read_lock
from caiflow.engine.store.journal import read_run

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
"""The hub's words for the number of rows: fewer than so many."""
_NO_LICENCE = (
    "Nobody has said under which licence this may be used. It follows from those of the base models, the data and the "
    "software above; look at each before you publish."
)
_LIMITS = (
    "The figures are of the prompts that the recipe names, and of no others. Checks such as `no_refusal_phrase` look for "
    "phrases: an answer without one needn't help, and one with it needn't be safe. What is in it was written by models, and "
    "nobody has read it unless the recipe says so."
)


def card(run: Run, name: str, licence: str = "") -> str:
    """Return the card of a step's rows or model: metadata in YAML between lines of dashes, then Markdown.

    Raises:
        CaiflowError: the step made neither.
        PlanError: the run has no lock.
    """
    step = run[name]
    if step.kind == "metrics":
        raise CaiflowError(f"{name}: its output is figures, which have no card", "name a step that makes rows or a model")
    import yaml

    lock = read_lock(run.path / LOCK)
    names = _ancestors(run, name)
    metadata = yaml.safe_dump(dict(_metadata(run, step, lock, names, licence)), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{metadata}---\n\n" + "\n\n".join(_body(run, step, lock, names, licence)) + "\n"


def _ancestors(run: Run, name: str) -> list[str]:
    """Return the steps that a step was made by, itself last, in the run's order."""
    wanted, waiting = {name}, [name]
    while waiting:
        for before in run[waiting.pop()].record.get("inputs", ()):
            if before in run and before not in wanted:
                wanted.add(before)
                waiting.append(before)
    return [step for step in run if step in wanted]


# ------------------------------------------------------------------------------------------------------ metadata


def _metadata(run: Run, step: Step, lock: Mapping[str, Any], names: Sequence[str], licence: str) -> Iterator[tuple[str, Any]]:
    if licence := licence or _licence(lock):
        yield "license", licence
    if step.kind == "model":
        architecture = step.card["architecture"]
        yield "library_name", "peft" if (step.path / "adapter_config.json").exists() else "transformers"
        yield "pipeline_tag", "text-classification" if "SequenceClassification" in architecture else "text-generation"
    yield "tags", ["caiflow", "constitutional-ai", step.op]
    if hub := [model["source"] for model in lock["models"].values() if _on_hub(model)]:
        yield ("base_model" if step.kind == "model" else "source_models"), hub
    if data := _hub_data(lock, names):
        yield ("datasets" if step.kind == "model" else "source_datasets"), data
    if step.kind == "model":
        yield "model-index", [{"name": step.name, "results": list(_results(run, lock, step.name))}]
    else:
        rows = len(step.table)
        yield "size_categories", [next((word for most, word in SIZES if rows < most), "10M<n<100M")]
        yield "configs", [{"config_name": "default", "data_files": "*.parquet"}]


def _on_hub(model: Mapping[str, Any]) -> bool:
    return model["source"].count("/") == 1 and "://" not in model["source"] and model.get("revision") is not None


def _hub_data(lock: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [source["hub"] for place, source in lock["sources"].items() if "hub" in source and place.split(".")[0] in names]


def _licence(lock: Mapping[str, Any]) -> str:
    """Return the licence that all base models from the hub give on their own cards; nothing where one gives none."""
    found = {_licence_of(model) for model in lock["models"].values()}
    return found.pop() if len(found) == 1 else ""


def _licence_of(model: Mapping[str, Any]) -> str:
    import yaml

    folder = hub_snapshot(model["source"], model["revision"]) if _on_hub(model) else None
    readme = folder / "README.md" if folder else Path()
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if not text.startswith("---\n"):
        return ""
    try:
        said = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return ""
    return str(said["license"]) if isinstance(said, Mapping) and isinstance(said.get("license"), str) else ""


def _results(run: Run, lock: Mapping[str, Any], model: str) -> Iterator[dict[str, Any]]:
    """Yield a model's evaluation results as the hub's `model-index` has them, one for each set of prompts."""
    for step, metrics in run.figures.items():
        for set_name, checks in (metrics.get("models") or {}).get(model, {}).items():
            found = [metric for check, value in leaves(checks) if (metric := _metric(check, value)) is not None]
            if found:
                dataset = {**_dataset(run, lock, set_name), "name": set_name}
                task = {"type": "text-generation", "name": f"{step}: {set_name}"}
                yield {"task": task, "dataset": dataset, "metrics": found}


def _dataset(run: Run, lock: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return where a set comes from: a suite is named after the step that loads it from the hub, at a commit."""
    found = (one for place, one in lock["sources"].items() if place.split(".")[0] == name and "hub" in one)
    pinned = next(found, None)
    return {"type": pinned["hub"], "revision": pinned["revision"]} if pinned else {"type": f"{run.name}/{name}"}


def _metric(check: str, value: Any) -> dict[str, Any] | None:
    centre = central(value)
    if centre is None:
        return None
    about = value if isinstance(value, Mapping) else {}
    args = {name: about[name] for name in ("low", "high", "n") if about.get(name) is not None}
    return {"type": check, "name": f"{check}: {figure(value)}", "value": centre, **({"args": args} if args else {})}


# ---------------------------------------------------------------------------------------------------------- text


def _body(run: Run, step: Step, lock: Mapping[str, Any], names: Sequence[str], licence: str) -> Iterator[str]:
    made = "A model" if step.kind == "model" else f"{number(len(step.table))} rows"
    variant = run.record.get("variant")
    yield f"# {_text(run.name)}: {_text(step.name)}"
    yield (
        f"{made} made by caiflow {lock['packages'].get('caiflow', '')}, which runs Constitutional AI from one YAML file: "
        f"the step `{_text(step.name)}` (`{step.op}`) of the recipe `{_text(run.name)}`."
    )
    if variant:
        yield f"**This was a variant or a trial**: `{_text(variant)}`."
    yield "## How it was made\n\n" + _table(("step", "operator", "rows in", "rows out", "left out"), _steps(run, names))
    if step.kind == "rows":
        yield "## Columns\n\n" + _table(("column", "type"), list(step.table.columns.items()))
    if told := _constitutions(run, lock, names):
        yield f"## Constitution\n\n{told}"
    if figures := list(_figures(run, step)):
        yield "## Figures\n\nShares and means with their 95% intervals.\n\n" + "\n\n".join(figures)
    yield "## From what\n\n" + _table(("what", "from", "pinned by"), [*_models(lock), *_sources(lock, names)])
    yield "## Software\n\n" + _table(("package", "version"), [*lock["packages"].items(), *lock["plugins"].items()])
    yield "## Limits\n\n" + "\n".join([_LIMITS, "", *_notes(run, names)]).rstrip()
    yield f"## Licence\n\n{_text(licence or _licence(lock)) or _NO_LICENCE}"


def _steps(run: Run, names: Sequence[str]) -> list[tuple[Any, ...]]:
    records = [(name, run[name].record) for name in names]
    return [(name, one["op"], one.get("rows_in"), one.get("rows_out"), one.get("dropped")) for name, one in records]


def _constitutions(run: Run, lock: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the principles of the constitutions in use, where a step on the way asks by principles."""
    path = run.path / TEXTS
    texts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not any(run[name].op in ("critique", "revise", "judge") for name in names):
        return ""
    told = []
    for name, pinned in lock["constitutions"].items():
        rows = [(one, _principle(texts.get(key, {}))) for one, key in pinned["principles"].items()]
        told.append(f"`{_text(name)}`, {len(rows)} principles:\n\n{_table(('id', 'what it asks'), rows)}")
    return "\n\n".join(told)


def _principle(texts: Mapping[str, Any]) -> str:
    return next((texts[name] for name in ("critique", "revision", "judge") if texts.get(name)), "")


def _figures(run: Run, step: Step) -> Iterator[str]:
    """Yield a table for each evaluation that measures the model, beside the other models it measures; the step's own last."""
    for name, metrics in run.figures.items():
        models = metrics.get("models") or {}
        if step.name in models:
            cells = {model: dict(_named(sets)) for model, sets in models.items()}
            others = [step.name, *(model for model in models if model != step.name)]
            rows = [(check, *(figure(cells[model].get(check)) for model in others)) for check in cells[step.name]]
            yield f"`{_text(name)}`:\n\n" + _table(("set · check", *others), rows)
    own = [(name, figure(value)) for name, value in leaves(step.metrics) if not isinstance(value, list | str)]
    if own:
        yield f"Of the step itself:\n\n{_table(('figure', 'value'), own)}"


def _named(sets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, checks in sets.items():
        yield from ((f"{name} · {check}", value) for check, value in leaves(checks))


def _models(lock: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, model in lock["models"].items():
        yield f"model `{name}`", model["source"], model.get("revision") or f"identity {str(model['identity'])[:16]}"


def _sources(lock: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for place, source in lock["sources"].items():
        if place.split(".")[0] in names:
            pinned = source.get("revision") or f"sha256 {str(source.get('sha256'))[:16]}"
            yield f"data of `{place.split('.')[0]}`", source.get("hub") or source.get("file") or source.get("folder"), pinned


def _notes(run: Run, names: Sequence[str]) -> list[str]:
    notes = [note for note in read_run(run.path).get("notes", ()) if note["step"] in names]
    told = [f"- `{note['step']}`: {_text(note['message'])}" for note in notes]
    return ["The run's own notes on what its steps made:", "", *told] if told else []


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)


def _text(value: Any) -> str:
    """Return a value as Markdown that is no markup, on one line."""
    text = "" if value is None else number(value) if isinstance(value, int | float) else " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
