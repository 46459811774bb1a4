"""Constitutions: the principles a spec follows, their few-shot examples, and which row draws which principle.

Owns the documented YAML format below and what a spec may write under `constitution:`; formats of other systems are turned into
this one by `foreign_formats`. Never asks a model and never writes a prompt: operators do.

    caiflow_constitution: 1          # version of this format
    name: kind
    description: What it is for.     # optional
    principles:
      - id: no-insults               # stable: the draw goes by it, so texts may be edited without moving a row
        critique: Say where ...      # what the model is asked about its own answer
        revision: Rewrite ...        # what it is asked next
        judge: ... Which is kinder?  # how two answers (A) and (B) are compared
        guards: insults              # what it guards against, for the reader
        weight: 1                    # how often it is drawn, against the others
      - id: honest
        rule: be honest              # short form: texts that are left out are built from this phrase
    few_shot:
      critique:                      # shown before `critique` and `revise`; a `principle` stands for its two requests
        - {prompt: ..., response: ..., principle: no-insults, critique: ..., revision: ...}
      judge:                         # shown before `judge`; without `principle`, one is drawn
        - {prompt: ..., principle: no-insults, a: ..., b: ..., answer: B, thought: ...}

A prompt is a text (one user turn) or a list of {role, content}. A spec names a constitution as a bundled name, a path, a
mapping in this format, `{source: NAME, without: [ids]}` or `{source: NAME, only: [ids]}`, or a list of principles and sources.
A file may also be a list of principles, or of rules as plain texts, or a text of rules: numbered or under several headings,
each with its passage and rank, or else one principle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from caiflow.engine.constitution.foreign_formats import FormatError, convert_data, read_data
from caiflow.engine.constitution.own_format import dump, parse, parse_principle, rule_texts
from caiflow.engine.constitution.principles import (
    STAGES,
    Constitution,
    CritiqueExample,
    JudgeExample,
    Principle,
    Stage,
    findings,
    known,
    merge,
    same_id,
    usable,
)
from caiflow.engine.errors import Problem, SpecError, finding, nearest

__all__ = [
    "STAGES",
    "Constitution",
    "CritiqueExample",
    "JudgeExample",
    "Principle",
    "Stage",
    "bundled",
    "convert",
    "dump",
    "findings",
    "load_constitution",
    "merge",
    "rule_texts",
    "source_path",
    "usable",
]
MADE = "constitution.yaml"
"""What a step that makes a constitution calls it, in its folder."""
MAX_BYTES = 8_000_000
"""Largest constitution file that is read, in bytes."""
_BUNDLED = Path(__file__).parents[2] / "constitutions"
_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl", ".txt", ".md")


def load_constitution(value: str | Sequence[Any] | Mapping[str, Any], base_dir: Path = Path()) -> Constitution:
    """Return the constitution that a spec's `constitution:` names; relative paths start at `base_dir`.

    Raises:
        SpecError: a file is missing, has an unknown format, or breaks the format. Problems in a file have their place there;
            problems of a value in the spec have an empty file and their path below `constitution`.
    """
    if isinstance(value, str):
        path = source_path(value, base_dir).resolve()
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    if isinstance(value, Mapping):
        return _from_mapping(value, base_dir)
    if isinstance(value, Sequence) and value:
        return _from_list(value, base_dir)
    raise _wrong("", f"a name, a path, a mapping or a list of principles is expected, got {value!r}"[:200])


def bundled() -> tuple[str, ...]:
    """Return the names of the constitutions that come with caiflow."""
    return tuple(sorted(path.stem for path in _BUNDLED.glob("*.yaml")))


def source_path(value: str, base_dir: Path = Path()) -> Path:
    """Return the file that a name or path means; a bundled name counts only where `base_dir` has no such file.

    Raises:
        SpecError: there is none.
    """
    path = base_dir / value
    if path.is_file():
        return path
    if value in bundled():
        return _BUNDLED / f"{value}.yaml"
    beside = [found.name for found in sorted(base_dir.glob("*")) if found.suffix in _SUFFIXES][:500] if "/" not in value else []
    near = nearest(value, (*bundled(), *beside))
    hint = f"did you mean {near!r}?" if near else f"bundled are {', '.join(bundled())}; a path starts in {base_dir.resolve()}"
    if " " in value:
        hint = f"a rule in place is written {{id: my-rule, rule: {value}}}; {hint}"
    raise SpecError((Problem("", 1, 1, "", f"no constitution {value!r} and no such file", hint),))


@lru_cache(maxsize=32)
def _read(path: Path, _mtime_ns: int, size: int) -> Constitution:
    if size > MAX_BYTES:
        raise SpecError((Problem(str(path), 1, 1, "", f"{size} bytes are too many for a constitution, at most {MAX_BYTES}"),))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError((Problem(str(path), 1, 1, "", f"not UTF-8 text: {error.reason} at byte {error.start}"),)) from None
    try:
        return _parsed(read_data, path, text)
    except SpecError as error:
        raise _answered_once(error, path, text) from None


def convert(value: str, base_dir: Path = Path()) -> Constitution:
    """Return a constitution, even from a file that is refused for its form alone.

    Raises:
        SpecError: as `load_constitution`.
    """
    try:
        return load_constitution(value, base_dir)
    except SpecError as error:
        path = source_path(value, base_dir)
        if found := _converted(path, path.read_text(encoding="utf-8-sig", errors="replace")):
            return found
        raise error


def _parsed(read: Callable[[str, str, bool], dict[str, Any]], path: Path, text: str) -> Constitution:
    try:
        data = read(text, path.stem, path.suffix.lower() in (".yaml", ".yml", ".json"))
    except FormatError as error:
        raise SpecError((Problem(str(path), error.line, error.col, "", error.message, error.hint),)) from None
    found = parse(data, str(path), text)
    told = (p.model_copy(update={"passage": path.name + p.passage}) if p.passage[:1] == ":" else p for p in found.principles)
    return replace(found, principles=tuple(told))


def _converted(path: Path, text: str) -> Constitution | None:
    try:
        found = _parsed(convert_data, path, text)
    except SpecError:
        return None
    return found if found.principles else None


def _answered_once(error: SpecError, path: Path, text: str) -> SpecError:
    """Return one problem that offers the converted file, where that has all that is there; else the problems as they are."""
    if _converted(path, text) is None:
        return error
    first, more = error.problems[0], len(error.problems) - 1
    told = f"{first.message} (and {more} more of the kind)" if more else first.message
    to = "mine.yaml" if path.name != "mine.yaml" else "converted.yaml"
    offer = f"`caiflow constitution convert {path.name} > {to}` writes all of it as caiflow reads it"
    hint = f"{first.hint}, or {offer}" if first.hint and not more else offer
    return SpecError((first._replace(message=told, hint=hint),))


def _from_mapping(value: Mapping[str, Any], base_dir: Path) -> Constitution:
    if value.keys() == {"step"}:
        raise _wrong(
            "step", "only a step takes the constitution that another one makes", "write this under the steps that use it"
        )
    if "source" not in value:
        return parse({"caiflow_constitution": 1, "name": "in the spec", **value})
    unknown = sorted(set(map(str, value)) - {"source", "only", "without"})
    if unknown:
        raise _wrong(unknown[0], f"unknown key {unknown[0]!r}", "beside `source` there may be `only` or `without`")
    try:
        whole = load_constitution(value["source"], base_dir)
    except SpecError as error:
        raise SpecError(tuple(_below("source", error))) from None
    only, without = (_ids(value, key, whole) for key in ("only", "without"))
    named = value.get("only") is not None
    kept = tuple(p for p in whole.principles if (not named or p.id in only) and p.id not in without)
    if not kept:
        raise _wrong("only" if named else "without", "no principle is left", "name some to keep, or leave fewer out")
    return replace(whole, principles=kept)


def _ids(value: Mapping[str, Any], key: str, whole: Constitution) -> frozenset[str]:
    given = value.get(key) or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise _wrong(key, f"the ids of principles are expected, got {given!r}"[:200], f"write `{key}: [ID, ...]`")
    by_id = {principle.id: principle for principle in whole.principles}
    for name in names:
        try:
            known(str(name), by_id)
        except ValueError as error:
            _, message, hint = finding(error)
            raise _wrong(key, f"{whole.name}: {message}", hint) from None
    return frozenset(names)


def _from_list(value: Sequence[Any], base_dir: Path) -> Constitution:
    parts: list[Constitution] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for index, item in enumerate(value):
        try:
            part = _from_item(item, base_dir)
        except SpecError as error:
            problems += _below(str(index), error)
            continue
        parts.append(part)
        for principle in part.principles:
            if principle.id in seen:
                path = f"{index}.id" if _is_principle(item) else str(index)
                problems += _wrong(path, *same_id(principle.id)).problems
            seen.add(principle.id)
    if problems:
        raise SpecError(tuple(problems))
    return merge(parts)


def _below(key: str, error: SpecError) -> list[Problem]:
    """Return the problems with those of the spec's own values set below `key`."""
    return [p if p.file else p._replace(path=f"{key}.{p.path}".rstrip(".")) for p in error.problems]


def _is_principle(item: Any) -> bool:
    return isinstance(item, Mapping) and not item.keys() & {"source", "principles"}


def _from_item(item: Any, base_dir: Path) -> Constitution:
    if _is_principle(item):
        return Constitution("in the spec", (parse_principle(item),))
    if isinstance(item, str | Mapping):
        return load_constitution(item, base_dir)
    raise _wrong("", f"a principle or a source is expected, got {item!r}"[:200])


def _wrong(path: str, message: str, hint: str = "") -> SpecError:
    return SpecError((Problem("", 1, 1, path, f"constitution: {message}", hint),))
