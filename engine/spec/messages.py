"""What is wrong with a value, in words: errors of `jsonschema` and pydantic as problems at the key or value that causes them.

Imported only where something is wrong. Decides nothing: what it is handed is an error already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import ValidationError

from caiflow.engine import registry
from caiflow.engine.errors import nearest, refusal, suggest
from caiflow.engine.spec import schema, slips
from caiflow.engine.spec.layers import Problems
from caiflow.engine.yaml.reader import scalar
from caiflow.engine.yaml.tree import Node, Path_

KIND_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_ENTRIES = {"models": "write `{source: tiny}`, say", "steps": "write `{op: generate, ...}`, say"}
_NAME_HINT = "use letters, digits, `_` and `-`, and begin with a letter"
_BOUNDS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than", "exclusiveMaximum": "less than"}


def schema_problems(tree: Node, problems: Problems) -> Iterator[Path_]:
    """Check the tree against the schema, add what is wrong, and yield the path of each finding."""
    steps = tree.child("steps")
    ops = [op.value for _, step in (steps.items() if steps else ()) if (op := step.child("op")) and isinstance(op.value, str)]
    language = schema.spec_schema(list(dict.fromkeys(filter(registry.exists, ops))))
    checker = Draft202012Validator(language)
    errors = sorted(checker.iter_errors(tree.plain()), key=lambda error: [str(part) for part in error.absolute_path])
    for error in errors:
        for leaf in _leaves(error):
            path = tuple(leaf.absolute_path)
            _report(tree, leaf, path, problems, language["$defs"])
            yield path


def model_problems(tree: Node, path: Path_, error: ValidationError, problems: Problems) -> None:
    """Add what a parameter model refuses beyond the schema."""
    for detail in error.errors(include_url=False):
        where = list(path)
        for part in detail["loc"]:
            # A location may hold names of union members and validators, which are nowhere in the file.
            node = tree.get(*where)
            if node is not None and node.child(part) is not None:
                where.append(part)
        message, hint = refusal(detail)
        node = tree.nearest(tuple(where))
        problems.at(node.key if len(where) == len(path) else node.at, tuple(where), message[:1].lower() + message[1:], hint)


def _parts(error: SchemaError) -> tuple[Any, Any, Any]:
    """Return the rule that is broken, its value in the schema, and the value that breaks it."""
    return error.validator, error.validator_value, error.instance


def _leaves(error: SchemaError) -> Iterator[SchemaError]:
    """Yield the errors that tell most: those of the union member which the value seems to mean."""
    if error.validator not in ("anyOf", "oneOf") or not error.context:
        yield error
        return
    branches: dict[Any, list[SchemaError]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    close = [errors for errors in branches.values() if not any(_is_other_kind(inner) for inner in errors)]
    if not close:
        yield error
        return
    unknown = [[inner for inner in errors if inner.validator == "additionalProperties"] for errors in close]
    if len(close) > 1 and all(inner and not inner[0].relative_path for inner in unknown):
        yield error  # an unknown key in every member: say which keys there are
        return
    best = min(close, key=lambda errors: (any(e.validator == "additionalProperties" for e in errors), len(errors)))
    for inner in best:
        yield from _leaves(inner)


def _is_other_kind(error: SchemaError) -> bool:
    return not error.relative_path and error.validator in ("type", "const", "enum")


def _report(tree: Node, error: SchemaError, path: Path_, problems: Problems, definitions: slips.Schema) -> None:
    node = tree.nearest(path)
    rule, bound, value = _parts(error)
    field = f"`{_field(path)}`"
    if rule == "additionalProperties" or (rule in ("anyOf", "oneOf") and isinstance(value, Mapping) and _keys(error)):
        _report_unknown_keys(node, error, path, problems, definitions)
    elif rule == "required":
        missing = next((key for key in bound if key not in value and f"'{key}' is" in error.message), bound[0])
        hint = _close(missing, value) or ("add `caiflow: 1`" if missing == "caiflow" else f"add `{missing}:`")
        problems.at(node.key, path, f"`{path[-1]}` lacks `{missing}`" if path else f"`{missing}` is missing", hint)
    elif rule == "enum" and path[-1:] == ("op",):
        problems.at(node.at, path, f"unknown operator `{value}`", _operator_hint(str(value), node.at.file))
    elif rule == "enum":
        problems.at(node.at, path, f"unknown value {_shown(value)} for {field}", _allowed(value, bound))
    elif rule == "const" and path == ("caiflow",) and isinstance(value, int) and value > bound:
        hint = "bring caiflow up to date, or ask for the file as an older one reads it"
        problems.at(node.at, path, f"this file is in version {value} of the language; this caiflow reads version {bound}", hint)
    elif rule == "const":
        problems.at(node.at, path, f"{field} must be {bound}, got {_shown(value)}", f"write `{path[-1]}: {bound}`")
    elif rule == "type" or rule in ("anyOf", "oneOf"):
        hint = _type_hint(error, value, path)
        problems.at(node.at, path, f"{field} must be {_expected(error)}, got {_shown(value)}", hint)
    elif rule == "pattern" and error.parent is None and error.schema_path[-2] == "propertyNames":
        key = (node.child(value) or node).key
        problems.at(key, (*path, value), f"`{value}` isn't a valid name", _NAME_HINT)
    else:
        problems.at(node.at, path, f"{field} {_bound(rule, bound)}, got {_shown(value)}", _bound_hint(rule, bound))


def _operator_hint(op: str, file: str) -> str:
    """Name the nearest operator, or say that it may be a plugin's: whose it was by the lock beside the file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        package = json.loads(Path(file).with_name("caiflow.lock").read_bytes())["plugins"][op]
        return f"install the plugin that has it, by the lock beside the file {package}"
    names = registry.names()
    return suggest(op, names, "operators") + ("" if nearest(op, names) else ", or install the plugin that has it")


def _report_unknown_keys(node: Node, error: SchemaError, path: Path_, problems: Problems, definitions: slips.Schema) -> None:
    known = _keys(error)
    for key, value in _parts(error)[2].items():
        if key not in known:
            at = node.child(key) or node
            place = slips.meant(key, error.schema, definitions, value) if isinstance(error.schema, Mapping) else None
            hint = _unknown_hint(key, value, known, path) if place is None else f"write `{_written(place, value)}`"
            problems.at(at.key, (*path, key), f"unknown key `{key}`", hint)


def _unknown_hint(key: str, value: Any, known: Sequence[str], path: Path_) -> str:
    """Return what may be meant by a key: one like it, part of a number, a key with its value, another operator's."""
    if value is None and key.isdecimal():
        return f"write decimals with a point, as in `0.{key}`"
    if close := next((hint for name in known if (hint := _close(name, {key: value}))), ""):
        return close
    whose = [] if nearest(key, known) or len(path) != 2 or path[0] != "steps" else _owners(key)
    return suggest(key, known, "keys") + (f"; `{key}` is a field of {', '.join(whose)}" if whose else "")


def _close(missing: str, value: Mapping[str, Any]) -> str:
    """Return what to write where a key without a space behind its colon, `op:load`, is why one is missing."""
    found = next((key for key, held in value.items() if held is None and key.startswith(f"{missing}:")), None)
    return f"write `{missing}: {found.removeprefix(missing + ':')}`, with a space behind the colon" if found else ""


def _owners(key: str) -> list[str]:
    return [name for name in registry.BUILT_IN if key in registry.operator(name).params_type.model_fields]


def _written(place: str, value: Any) -> str:
    """Return a value at a place in one line of YAML: `sampling: {temperature: 1}`."""
    *outer, last = place.split(".")
    text = f"{last}: {_shown(value)}"
    for name in reversed(outer):
        text = f"{name}: {{{text}}}"
    return text


def _keys(error: SchemaError) -> list[str]:
    """Return the keys that an object may have here, over all the members of a union."""
    if error.validator == "additionalProperties":
        return list(error.schema.get("properties", {})) if isinstance(error.schema, Mapping) else []
    found: dict[str, None] = {}
    for inner in error.context or ():
        if inner.validator == "additionalProperties" and not inner.relative_path:
            found.update(dict.fromkeys(_keys(inner)))
    return list(found)


def _allowed(value: Any, allowed: Sequence[Any]) -> str:
    texts = [item if isinstance(item, str) else json.dumps(item) for item in allowed]
    hint = suggest(value, texts, "allowed") if isinstance(value, str) else ""
    listed = "allowed: " + ", ".join(texts)
    return f"{hint} {listed}" if hint.startswith("did you mean") else listed


def _expected(error: SchemaError) -> str:
    """Return what a value may be, over all the members of a union."""
    kinds: dict[str, None] = {}
    for inner in [error, *(error.context or ())]:
        if inner.relative_path and inner is not error:
            continue
        if inner.validator == "type":
            names = [bound] if isinstance(bound := _parts(inner)[1], str) else bound
            kinds.update({KIND_NAMES.get(name, name): None for name in names})
        elif inner.validator in ("enum", "const"):
            values = _parts(inner)[1] if inner.validator == "enum" else [_parts(inner)[1]]
            kinds.update({f"`{value}`": None for value in values})
    words = list(kinds)
    if len(words) > 1 and "null" in words:
        words.remove("null")
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words) or "another value"


def _type_hint(error: SchemaError, value: Any, path: Path_) -> str:
    expected = _expected(error)
    if len(path) == 2 and path[0] in _ENTRIES:
        return _ENTRIES[path[0]]
    if len(path) == 1 and path[0] in _ENTRIES and isinstance(value, list):
        return "write each as `NAME: {...}`, without dashes"
    if hint := _mapping_hint(error, value, alone=expected == "a mapping"):
        return hint
    if isinstance(value, str):
        if "true or false" in expected and value.lower() in ("yes", "no", "on", "off"):
            return f"write `{'true' if value.lower() in ('yes', 'on') else 'false'}`"
        if "number" in expected:
            return "write the number without quotes" if _is_number(value) else "write a number"
        choices = [inner.validator_value for inner in error.context or () if inner.validator in ("enum", "const")]
        names = [str(name) for names in choices for name in (names if isinstance(names, list) else [names])]
        if names:
            return suggest(value, names, "allowed")
        if "a list" in expected:
            return f"write `[{_plainly(value)}]`"
    if expected == "text" and not isinstance(value, (list, dict)):
        return "put it in quotes"
    if expected == "text" and isinstance(value, list) and len(value) == 1:
        return f"write `{value[0]}`, without brackets"
    if path[-1:] == ("input",) and isinstance(value, list):
        return "name one step; `op: mix` joins several"
    return ""


def _mapping_hint(error: SchemaError, value: Any, *, alone: bool) -> str:
    """Return what to write in place of a value that may, or if `alone` must, be a mapping; empty where nothing is near it."""
    here = [error, *(inner for inner in error.context or () if not inner.relative_path)]
    groups = (inner.schema for inner in here if inner.validator == "type" and _parts(inner)[1] == "object")
    group = next((schema for schema in groups if isinstance(schema, Mapping)), None)
    if group is None:
        return ""
    fields, each = group.get("properties", {}), group.get("additionalProperties")
    if isinstance(value, list) and value and isinstance(each, Mapping) and all(isinstance(item, str) for item in value):
        of_numbers = any(option.get("type") == "number" for option in each.get("anyOf", ()))
        return f"write `{{{value[0]}: 1}}`" if of_numbers else f"write `{{NAME: {value[0]}}}`" if "x-ref" in each else ""
    if isinstance(value, str):
        for name, field in fields.items():
            if any(option.get("const") == value for option in field.get("anyOf", ())):
                return f"write `{{{name}: {value}}}`"
        if "pattern" in fields and alone:
            return f"write `{{pattern: {_shown(value)}}}`"
    if value is True and alone and fields and not group.get("required"):
        return "write `{}` for it as it is by itself"
    return suggest("", list(fields), "its keys") if fields and alone else ""


def _plainly(value: str) -> str:
    """Return a text as YAML has it within brackets: a word as it stands, all else in quotes."""
    return value if re.fullmatch(r"[A-Za-z_][\w@./-]*", value) and scalar(value) == value else _shown(value)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _bound(rule: Any, bound: Any) -> str:
    if rule in _BOUNDS:
        return f"must be {_BOUNDS[rule]} {bound:g}"
    return {
        "minLength": "must not be empty" if bound == 1 else f"must have at least {bound} characters",
        "maxLength": f"must have at most {bound} characters",
        "minItems": f"needs at least {bound} {'entry' if bound == 1 else 'entries'}",
        "maxItems": f"takes at most {bound} {'entry' if bound == 1 else 'entries'}",
        "minProperties": f"needs at least {bound} {'entry' if bound == 1 else 'entries'}",
        "maxProperties": f"takes at most {bound} {'entry' if bound == 1 else 'entries'}",
        "uniqueItems": "must not repeat an entry",
        "pattern": f"must match {bound}",
    }.get(str(rule), f"breaks the rule {rule}: {bound}")


def _bound_hint(rule: Any, bound: Any) -> str:
    if rule == "pattern" and bound.startswith("^[A-Z_]"):
        return "give the name of an environment variable, never the secret itself"
    if rule == "pattern" and bound.startswith("^[A-Za-z_]"):
        return _NAME_HINT
    return f"write {_BOUNDS[rule]} {bound:g}" if rule in _BOUNDS else ""


def _field(path: Path_) -> str:
    """Return the name of the field at a path: `stop[0]` rather than `[0]`."""
    names = [str(part) if isinstance(part, str) else f"[{part}]" for part in path]
    last = next((index for index in range(len(path) - 1, -1, -1) if isinstance(path[index], str)), 0)
    return "".join(names[last:]) or "the spec"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
