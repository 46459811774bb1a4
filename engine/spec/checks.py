"""The checks that a schema can't make: names, kinds, cycles, columns, files, constitutions.

Each adds its findings to one list and goes on, so that a user sees all of them at once. Reads no data beyond what an operator's
own `columns()` and `check()` read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caiflow.engine.constitution.in_view import MARK, places_unfilled
from caiflow.engine.errors import CaiflowError, Finding, nearest, suggest
from caiflow.engine.field_marks import Mark
from caiflow.engine.llm.base import only_vllm_gives
from caiflow.engine.llm.files import template_text
from caiflow.engine.llm.model_files import BUNDLED, PACKAGED, gguf_file, model_folder
from caiflow.engine.llm.tokenizer_files import ModelFiles, TokenizerFiles
from caiflow.engine.machine import local_path
from caiflow.engine.operator import Operator, RowOperator, StepContext, TableOperator
from caiflow.engine.rows.columns import Columns
from caiflow.engine.spec import graph
from caiflow.engine.spec.column_flow import check_columns, inputs_of, remark_overlaps
from caiflow.engine.spec.findings import Checked, Constitutions
from caiflow.engine.spec.grammar import ModelEntry, Step
from caiflow.engine.spec.layers import ByHand
from caiflow.engine.spec.reach import LONGEST_PART, LONGEST_PATH, is_there, named, out_of_reach, paths_of, too_long
from caiflow.engine.yaml.tree import Path_

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SCHEME = re.compile(r"[a-z][a-z0-9]+:")
DATA_SUFFIXES = (
    ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".txt", ".yaml", ".yml", ".jinja", ".gguf",
)  # fmt: skip
LARGEST_TEMPLATE = 1_000_000
"""Bytes of a chat template's file."""
MANY_PROBLEMS = 100
"""Findings after which no more names are compared, which takes time."""
LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, of which times and endings take some."""
_OUTPUT = {"rows": "rows", "model": "a model", "metrics": "figures"}


def check(checked: Checked) -> dict[str, Operator[Any]]:
    """Add everything wrong with the parts taken together to the list of problems; return the operators that could be made."""
    _check_names(checked)
    broken = _check_references(checked)
    broken |= _check_cycles(checked)
    _check_models(checked)
    refused = _check_reach(checked)
    _check_files(checked, refused)
    operators = _build_operators(checked, refused)
    columns = check_columns(checked, operators, broken)
    _check_model_files(checked._replace(models=_readable(checked, refused)), operators, broken, columns)
    _check_until(checked, operators)
    _remark_unfilled(checked)
    remark_overlaps(checked)
    return operators


def led_up_to(
    steps: Mapping[str, Step], operators: Mapping[str, Operator[Any]], needs: graph.Edges
) -> dict[str, tuple[str, ...]]:
    """Return, by each step that wants so many rows and no more, the row steps that end where it has them."""
    last = [name for name, made in operators.items() if isinstance(made, TableOperator) and made.until()]
    stream = {name for name, made in operators.items() if isinstance(made, RowOperator) and not made.params.require}
    inputs = {name: steps[name].input for name in (*stream, *last)}
    return {name: graph.led_up_to(name, inputs, needs) for name in last}


def _check_until(checked: Checked, operators: Mapping[str, Operator[Any]]) -> None:
    """Report where rows can't end with what a step wants of them."""
    taken: dict[str, str] = {}
    for name, members in led_up_to(checked.steps, operators, checked.needs()).items():
        if not members:
            told = "no step makes rows one by one for it, so that none could end when enough passed"
            checked.report(name, ("until",), told, "put it behind `generate`, `critique`, `revise` or `judge`", key=True)
        for member in members:
            if (other := taken.setdefault(member, name)) != name:
                told = f"`{member}` leads up to `{other}` as well, which ends it elsewhere"
                checked.report(name, ("until",), told, "leave one `until` out, or give each its own steps", key=True)
                break


def _check_names(checked: Checked) -> None:
    for name in checked.names("steps"):
        place = checked.node(name).key
        if name in checked.names("models"):
            checked.problems.at(place, ("steps", name), f"`{name}` is also the name of a model", "rename the step or the model")
        if len(name.encode()) > LONGEST_NAME:
            told = "the name is too long for a file" + (", with its arm's" if "@" in name else "")
            checked.problems.at(place, ("steps", name), told, f"use at most {LONGEST_NAME} bytes")


def _check_references(checked: Checked) -> set[str]:
    """Return the steps with a reference that leads nowhere or to the wrong kind."""
    broken: set[str] = set()
    for name in checked.names("steps"):
        for mark in checked.marks(name, "x-ref"):
            wrong = _wrong_reference(checked, name, mark)
            if wrong:
                broken.add(name)
                checked.report(name, mark.path, *wrong, key=mark.key)
    return broken


def _wrong_reference(checked: Checked, step: str, mark: Mark) -> tuple[str, str] | None:
    steps, models = checked.names("steps"), checked.names("models")
    if mark.value in steps and mark.value in models:
        return None  # reported already
    if mark.value not in steps and mark.value not in models:
        if step not in checked.steps and any(name.startswith(f"{mark.value}@") for name in (*steps, *models)):
            return None  # a matrix made copies of it, and a step that couldn't be read names none of them yet
        what = "model" if mark.meaning == "model" else "step"
        return f"unknown {what} `{mark.value}`", _fitting(checked, step, mark, mark.value)
    found = "model" if mark.value in models else _kind(checked, mark.value)
    if found is not None and found != mark.meaning:
        field = next((str(part) for part in reversed(mark.path[: -1 if mark.key else None]) if isinstance(part, str)), "input")
        message = f"`{mark.value}` is {_OUTPUT[found]}, but `{field}` takes {_OUTPUT[mark.meaning]}"
        return message, _fitting(checked, step, mark, "")
    return None


def _fitting(checked: Checked, step: str, mark: Mark, name: str) -> str:
    """Return a hint at what a reference could name, the nearest to `name` first; none after many findings."""
    if len(checked.problems) > MANY_PROBLEMS:
        return ""
    fitting = [*checked.names("models")] if mark.meaning == "model" else []
    others = (other for other in checked.names("steps") if other not in (step, mark.value))
    fitting += [other for other in others if _kind(checked, other) in (mark.meaning, None)]
    return suggest(name, fitting, "models" if mark.meaning == "model" else "steps with rows")


def _kind(checked: Checked, name: str) -> str | None:
    """Return what a step's output is, or None where its operator isn't known."""
    operator = checked.operator_type(name)
    return operator.kind if operator else None


def _check_cycles(checked: Checked) -> set[str]:
    """Return the steps in a cycle."""
    shared = checked.names("models")
    needs = {name: found for name, found in checked.needs().items() if name not in shared}
    found = graph.cycles(needs)
    for cycle in found:
        # Report at the reference that closes the circle, in the step that comes first in the file.
        first = min(cycle[:-1], key=list(checked.steps).index)
        start = cycle.index(first)
        turned = [*cycle[start:-1], *cycle[:start], first]
        ref = next(ref for ref in checked.steps[first].references() if ref.name == turned[1])
        checked.report(
            first, ref.path, "the steps need each other: " + " -> ".join(turned), "cut one of these edges", key=ref.key
        )
    return {name for cycle in found for name in cycle}


def _check_models(checked: Checked) -> None:
    for name, entry in checked.models.items():
        path = ("models", name)
        node = checked.tree.nearest(path)
        if entry.served and not entry.address:
            checked.problems.at(node.key, path, f"model `{name}` has no server", "add `base_url: http://HOST:PORT/v1`")
        elif entry.address and entry.engine in ("transformers", "vllm"):
            at = checked.tree.nearest((*path, "engine")).at
            checked.problems.at(at, (*path, "engine"), f"a served model can't run on {entry.engine}", "write `engine: openai`")
        if entry.max_cost is not None and entry.prices is None:
            at = checked.tree.nearest((*path, "max_cost")).key
            checked.problems.at(
                at, (*path, "max_cost"), "a cap in money needs prices", "add `prices: {prompt: 1, completion: 4}`"
            )
        if entry.api_key_env and entry.served and not os.environ.get(entry.api_key_env):
            at, told = checked.tree.nearest((*path, "api_key_env")).at, f"the variable {entry.api_key_env} isn't set here"
            checked.remarks.at(at, (*path, "api_key_env"), told, "export the server's key in it before a run")
        if entry.revision and not entry.served and _is_local(entry.source):
            at, told = (
                checked.tree.nearest((*path, "revision")).at,
                f"`revision` has no effect: {entry.source} isn't on the hub",
            )
            checked.remarks.at(at, (*path, "revision"), told, "leave it out")
        _check_engine_has(checked, path, entry)


def _is_local(source: str) -> bool:
    """Return whether a model's source is no repository, by its name alone: no file is looked for."""
    bundled = source in BUNDLED or source in PACKAGED
    return bundled or source.startswith((".", "/", "~")) or source.endswith(".gguf") or source.count("/") > 1


def _check_template(checked: Checked, path: Path_, value: str | None) -> None:
    """Report a chat template that is no template: a file that isn't there, or a text that can't be one."""
    if not value:
        return
    file, at = checked.base_dir / value, checked.tree.nearest(path).at
    if "{" in value:
        _check_jinja(checked, path, value)
    elif not os.path.exists(file):
        hint = "name one that is there, or write the template itself, which has `{{ ... }}`"
        checked.problems.at(at, path, f"no such file: {value}", hint)
    elif not file.is_file() or file.stat().st_size > LARGEST_TEMPLATE:
        told = f"{value} isn't a template file, which has at most {LARGEST_TEMPLATE:,} bytes"
        checked.problems.at(at, path, told, "name a file ending in .jinja")
    else:
        _check_jinja(checked, path, file.read_text(encoding="utf-8", errors="replace"))


def _check_jinja(checked: Checked, path: Path_, text: str) -> None:
    from caiflow.engine.llm.jinja.chat import refuse_unreadable  # what few specs need takes long to import

    try:
        refuse_unreadable(text)
    except ValueError as error:
        told = f"the chat template can't be read: {error}"
        checked.problems.at(checked.tree.nearest(path).at, path, told, "it is Jinja, as tokenizers have it")


def _check_engine_has(checked: Checked, path: Path_, entry: ModelEntry) -> None:
    """Report what vLLM alone gives and the named engine doesn't; for `auto` the engine's start tells."""
    if not entry.served and entry.engine != "transformers":
        return
    engine = "a server" if entry.served else "the transformers engine"
    for field, value in only_vllm_gives(entry.exact, entry.draws).items():
        at = checked.tree.nearest((*path, field)).key
        told = f"{engine} can't give `{field}: {value}`, which vLLM alone does"
        checked.problems.at(at, (*path, field), told, "leave it out, or use engine: vllm")


def _check_reach(checked: Checked) -> set[Path_]:
    """Report each file that the spec may not read, and return where it is named: nobody is to look at it."""
    steps = {name: checked.marks(name, "x-path") for name in checked.names("steps")}
    refused: set[Path_] = set()
    for found in named(checked.models, steps, checked.tree):
        at = checked.tree.nearest(found.place).at
        if too_long(checked.base_dir / found.value):
            told = "this is longer than the path of any file"
            checked.problems.at(at, found.place, told, f"names have at most {LONGEST_PART} bytes, paths {LONGEST_PATH}")
            refused.add(found.place)
            continue
        targets = () if isinstance(at.file, ByHand) else map(checked.reach.refused, found.leads_to(checked.base_dir))
        if target := next(filter(None, targets), None):
            checked.problems.at(at, found.place, *out_of_reach(found.value, target))
            refused.add(found.place)
    return refused


def _readable(checked: Checked, refused: set[Path_]) -> dict[str, ModelEntry]:
    """Return the models of which every file may be read."""
    return {name: entry for name, entry in checked.models.items() if not any(at[:2] == ("models", name) for at in refused)}


def _check_files(checked: Checked, refused: set[Path_]) -> None:
    owned = [(("models", name), mark) for name, entry in checked.models.items() for mark in paths_of(entry)]
    owned += [(("steps", name), mark) for name in checked.names("steps") for mark in checked.marks(name, "x-path")]
    for owner, mark in owned:
        if (*owner, *mark.path) not in refused:
            _check_file(checked, owner, mark)
    for name, entry in checked.models.items():
        if (path := ("models", name, "chat_template")) not in refused:
            _check_template(checked, path, entry.chat_template)


def _check_file(checked: Checked, owner: Path_, mark: Mark) -> None:
    if mark.meaning != "file" and SCHEME.match(mark.value):
        return  # a server, or a bundled thing such as tiny:red_team, which its operator checks
    full, path = local_path(mark.value, checked.base_dir), Path(mark.value)
    at = checked.tree.nearest((*owner, *mark.path)).at
    if os.path.exists(full) and not (full.is_file() or full.is_dir()):
        told = f"{mark.value} is neither a file nor a folder"
        checked.problems.at(at, (*owner, *mark.path), told, "a device or a pipe may have no end; name a file")
        return
    if os.path.exists(full) or (mark.meaning != "file" and may_be_hub_id(mark.value)):
        return
    if owner[0] == "steps" and mark.meaning == "file-or-hub" and is_there(full):
        return  # a pattern of files
    where = full.parent if full.parent.is_dir() else None
    near = [entry.name for entry in sorted(where.iterdir())[:500]] if where else []
    hint = suggest(path.name, near, "files there") if near else f"there is no folder {full.parent}"
    if hint.startswith("did you mean") and str(path.parent) != ".":
        hint = f"did you mean `{path.parent / hint.split('`')[1]}`?"
    checked.problems.at(at, (*owner, *mark.path), f"no such file: {mark.value}", hint)


def may_be_hub_id(value: str) -> bool:
    """Return whether a value may name a repository on the hub."""
    return HUB_ID.fullmatch(value) is not None and not value.endswith(DATA_SUFFIXES)


def _build_operators(checked: Checked, refused: set[Path_]) -> dict[str, Operator[Any]]:
    """Return the operators that can be made; what stops the others, and what they find wrong, is reported."""
    constitutions = Constitutions(checked, refused)
    made: dict[str, Operator[Any]] = {}
    for name, step in checked.steps.items():
        if any(place[:2] == ("steps", name) for place in refused):
            continue
        kind = step.operator_type()
        raw, path = constitutions.of(step)
        if raw is None and step.goes_by_principles:
            checked.report(name, (), f"`{step.op}` needs a constitution", "add `constitution: harmless` at the top of the spec")
            continue
        loaded = constitutions.of_step(step, raw, path) if raw is not None else None
        if loaded is None and raw is not None:
            continue
        try:
            operator = kind(step.params, StepContext(checked.seed, checked.base_dir.absolute(), loaded))
            for wrong in (*operator.check(), *_check_require(operator)):
                checked.report(name, *wrong)
            for told in operator.remarks():
                checked.remark(name, *told)
            made[name] = operator
        except (ValueError, CaiflowError, OSError) as error:
            checked.report_raised(name, error)
    return made


def _check_model_files(
    checked: Checked, operators: Mapping[str, Operator[Any]], broken: set[str], columns: Mapping[str, Columns]
) -> None:
    """Have each operator look at the files of the models that it names; a trained step has the layers of its own model."""
    found: dict[str, ModelFiles | None] = {}
    for name, operator in operators.items():
        step = checked.steps[name]
        if name in broken:
            continue
        origins = {ref.name: _origin(checked, ref.name, broken) for ref in step.references() if ref.kind == "model"}
        found |= {origin: _model_files(checked, origin) for origin in {*origins.values()} - found.keys()}
        models = {model: files for model, origin in origins.items() if (files := found[origin]) is not None}
        for wrong in operator.check_models(models, inputs_of(step, columns)):
            checked.report(name, *wrong)
    for name in sorted(origin for origin, files in found.items() if files is None):
        _remark_absence(checked, name)


def _remark_absence(checked: Checked, name: str) -> None:
    """Say that nothing could be checked against a model whose files aren't here yet."""
    entry, path = checked.models.get(name), ("models", name, "source")
    if entry is not None and not entry.served and gguf_file(entry.source, checked.base_dir) is None:
        told = "not checked: its files aren't on this machine yet, which tell its layers, positions and chat template"
        near = nearest(entry.source, (*BUNDLED, *PACKAGED))
        checked.remarks.at(checked.tree.nearest(path).at, path, told, f"did you mean `{near}`?" if near else "")


def _origin(checked: Checked, name: str, broken: set[str]) -> str:
    """Return the entry of the model that a trained step begins with; empty where it begins with none."""
    while name in checked.steps and name not in checked.models and name not in broken:
        name = next((ref.name for ref in checked.steps[name].references() if ref.path == ("model",)), "")
    return name


def _model_files(checked: Checked, name: str) -> ModelFiles | None:
    """Return the files of an entry's model; None where they aren't on this machine."""
    entry = checked.models.get(name)
    folder = model_folder(entry.source, entry.revision, checked.base_dir) if entry and not entry.served else None
    if entry is None or folder is None:
        return None
    tokenizer = model_folder(entry.tokenizer, None, checked.base_dir) if entry.tokenizer else folder
    template = template_text(entry.chat_template, checked.base_dir)
    return ModelFiles(folder, TokenizerFiles(tokenizer, template, entry.chat_template_kwargs)) if tokenizer else None


def _remark_unfilled(checked: Checked) -> None:
    """Remark what looks like a place for the principles in a system turn, and isn't filled in."""
    for name, step in checked.steps.items():
        for mark in step.marks(MARK):
            for place in places_unfilled(mark.value):
                told = f"`{place}` is sent as it stands"
                checked.remark(name, mark.path, told, "`{{ principles }}` alone is filled in, with those of the constitution")


def _check_require(operator: Operator[Any]) -> Iterator[Finding]:
    """Yield requirements on what the step has no reading of."""
    known = operator.readings()
    for name in operator.params.require:
        if name not in known:
            hint = suggest(name, known, "readings") if known else "remove it"
            yield Finding(("require", name), f"`{operator.name}` has no reading `{name}`", hint)
