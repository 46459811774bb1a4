"""What the values of a parameter model mean: which name a step, which a file, which columns, and which change the output.

Walks a validated model beside its type annotations and reports each text whose type carries a mark (`x-ref`, `x-path`,
`x-column`, `x-expression`, see `operator.py`; `x-principles`). Knows no operator, and never looks at a file.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from caiflow.engine.identity import plain

KINDS = ("x-ref", "x-path", "x-column", "x-expression", "x-principles")


class Mark(NamedTuple):
    """The text `value` at `path` is marked `kind: meaning`; with `key`, the text is the mapping key that ends the path."""

    path: tuple[str | int, ...]
    value: str
    kind: str
    meaning: Any
    key: bool = False


def marks(params: BaseModel, *kinds: str) -> Iterator[Mark]:
    """Yield the marked texts of a model in field order, of the given kinds or of all."""
    for mark in _model(params, ()):
        if not kinds or mark.kind in kinds:
            yield mark


def marks_as_written(kind: type[BaseModel], given: Mapping[str, Any], *kinds: str) -> Iterator[Mark]:
    """Yield the marked texts of values that a model refused, as far as they have the shape of its fields."""
    for mark in _walk(kind, {}, given, ()):
        if not kinds or mark.kind in kinds:
            yield mark


def _model(model: BaseModel, path: tuple[str | int, ...]) -> Iterator[Mark]:
    for name, key, kind, extra in _marked_fields(type(model)):
        value = getattr(model, name)
        if value is not None:
            yield from _walk(kind, extra, value, (*path, key))


@cache
def _marked_fields(model: type[BaseModel]) -> tuple[tuple[str, str, Any, Mapping[str, Any]], ...]:
    """Return (name, key in the file, type, marks) of the fields below which there can be a mark."""
    return tuple(
        (name, field.alias or name, field.annotation, _extra(field))
        for name, field in model.model_fields.items()
        if any(kind in KINDS for kind in _extra(field)) or _can_hold_marks(field.annotation)
    )


def _can_hold_marks(kind: Any) -> bool:
    if isinstance(kind, type):
        return _is_model(kind) and bool(_marked_fields(kind))
    if get_origin(kind) is Annotated and any(name in KINDS for note in get_args(kind)[1:] for name in _extra(note)):
        return True
    return any(map(_can_hold_marks, get_args(kind)))


def _walk(kind: Any, extra: Mapping[str, Any], value: Any, path: tuple[str | int, ...]) -> Iterator[Mark]:
    while get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        for note in notes:
            extra = {**extra, **_extra(note)}
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        for option in arguments:
            if _fits(option, value):
                yield from _walk(option, extra, value, path)
                return
    elif isinstance(value, BaseModel):
        yield from _model(value, path)
    elif _is_model(kind) and isinstance(value, Mapping):
        for _, key, inner, marked in _marked_fields(kind):
            if key in value:
                yield from _walk(inner, marked, value[key], (*path, key))
    elif isinstance(value, str):
        yield from (Mark(path, value, name, extra[name]) for name in KINDS if name in extra)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for name, item in value.items():
            if not (isinstance(item, BaseModel | Mapping) and _of_plain_values(arguments[0])):
                yield from (
                    Mark((*path, name), found.value, found.kind, found.meaning, key=True)
                    for found in _walk(arguments[0], {}, name, ())
                )
            yield from _walk(arguments[1], extra, item, (*path, name))
    elif isinstance(value, (list, tuple)) and arguments:
        fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
        for index, item in enumerate(value):
            yield from _walk(arguments[index if fixed else 0], extra, item, (*path, index))


def _of_plain_values(key: Any) -> bool:
    """Return whether the marks of a mapping's keys are those of keys with plain values, and a group's key is a name."""
    return any(_extra(note).get("x-plain") for note in get_args(key)[1:])


def _extra(note: Any) -> Mapping[str, Any]:
    extra = note.json_schema_extra if isinstance(note, FieldInfo) else None
    return extra if isinstance(extra, Mapping) else {}


def _fits(kind: Any, value: Any) -> bool:
    """Return whether a validated value can have come from this member of a union."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in get_args(kind))
    if kind is Any:
        return True
    if isinstance(value, (list, tuple)) and get_args(kind) and origin in (list, tuple):
        return all(_fits(get_args(kind)[0], item) for item in value)
    return isinstance(value, origin or kind) or (_is_model(kind) and isinstance(value, Mapping))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def identity_params(params: BaseModel) -> dict[str, Any]:
    """Return the parameters that change the output, as plain values.

    Left out are fields that only affect speed, paths, and names of steps and models: the contents behind those count instead.
    A mapping whose keys are such names becomes the list of its values in the written order, since an operator may use it.
    """
    found = list(marks(params, "x-ref", "x-path"))
    keyed = {mark.path for mark in found if mark.key}
    gone = {mark.path for mark in found if not mark.key and mark.value}
    kept: dict[str, Any] = plain(_kept(params, (), keyed, gone))
    return kept


_Places = set[tuple[str | int, ...]]


def _kept(value: Any, at: tuple[str | int, ...], keyed: _Places, gone: _Places) -> Any:
    """Return `value` without what is `gone`: fields go, items of lists and mappings leave a null behind."""
    if isinstance(value, BaseModel):
        names = {info.alias or name: name for name, info in type(value).model_fields.items() if not _speed(info)}
        fields = {shown: getattr(value, name) for shown, name in names.items() if (*at, shown) not in gone}
        return {shown: _kept(item, (*at, shown), keyed, gone) for shown, item in fields.items()}
    if at in gone:
        return None
    if isinstance(value, Mapping):
        kept = {name: _kept(item, (*at, name), keyed, gone) for name, item in value.items()}
        return list(kept.values()) if any((*at, name) in keyed for name in value) else kept
    if isinstance(value, (list, tuple)):
        return [_kept(item, (*at, index), keyed, gone) for index, item in enumerate(value)]
    return value


def _speed(info: FieldInfo) -> bool:
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("x-speed"))
