"""Records of local files with the place each came from: jsonl, json, csv, tsv, parquet and lines of text, plain or packed.

Knows no format of dialogues. A record that can't be read is yielded with its error: the caller decides what becomes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.opening import (
    LARGEST_DOCUMENT,
    LONGEST_LINE,
    Line,
    inner_name,
    numbered_lines,
    open_bytes,
    open_text,
    plain_name,
    refuse_irregular,
)
from caiflow.operators.formats.tables import Csv, read_csv, read_parquet

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]

SUFFIXES: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_CHUNK = 1 << 20
_POINTER = b"version https://git-lfs.github.com/spec/"


def has_data_suffix(name: str) -> bool:
    """Return whether `name` ends as a data file's name does, packed or not."""
    return Path(plain_name(name)).suffix in SUFFIXES


def kind_of(path: Path) -> Kind:
    """Return how the file at `path` is written, by its name; a `.json` or `.jsonl` by whether it begins as an array.

    Raises:
        ValueError: the name has no known suffix.
    """
    suffix = Path(inner_name(path)).suffix
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise WrongValue(
            f"{path.name}: unknown kind of file, got suffix {suffix!r}", f"use {known}, or any of these + .gz, .zst or .zip"
        )
    kind = SUFFIXES[suffix]
    return _json_kind(path) if kind in ("json", "jsonl") else kind


def read_lines(path: Path, csv: Csv = Csv()) -> Iterator[Line]:
    """Yield the records of a file in order, in bounded memory (except a json object, which is read whole).

    Raises:
        ValueError: an unknown suffix, or the file can't be read further (a json array that breaks off, a truncated gzip).
    """
    readers: Mapping[Kind, Callable[[Path], Iterator[Line]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": lambda path: read_csv(path, csv),
        "tsv": lambda path: read_csv(path, csv),
        "parquet": read_parquet,
        "text": _text,
    }
    if is_pointer(path):
        raise WrongValue(f"{path.name}: a Git LFS pointer, not the data that it stands for", "fetch the file: `git lfs pull`")
    try:
        yield from readers[kind_of(path)](path)
    except (EOFError, OSError) as error:  # a bad gzip file is an OSError
        raise ValueError(f"{path.name}: can't be read: {error}") from error


def is_pointer(path: Path) -> bool:
    """Return whether the file only says where Git LFS has the data."""
    refuse_irregular(path)
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _json_kind(path: Path) -> Kind:
    """Tell lines from one document: an array begins with `[`, and in a `.json` lines are objects that are whole on theirs."""
    with open_bytes(path) as file:
        head = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return "json"
    if not inner_name(path).endswith(".json"):
        return "jsonl"
    first, *more = head.split(b"\n", 1)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "json"
    return "jsonl" if more and more[0].strip() else "json"


def _text(path: Path) -> Iterator[Line]:
    """Yield each line that isn't blank as a prompt."""
    for place, raw in numbered_lines(path):
        try:
            text = raw.removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Line(place, None, f"not UTF-8: {error.reason} at byte {error.start}", raw.decode("utf-8", "replace"))
            continue
        if text.strip():
            yield Line(place, {"prompt": text})


def _jsonl(path: Path) -> Iterator[Line]:
    record = _Records()
    for place, raw in numbered_lines(path):
        text = raw.rstrip()  # the line end is no part of the record, nor of the columns counted in it
        if not text:
            continue
        try:
            yield record(place, json.loads(text.removeprefix(b"\xef\xbb\xbf")))
        except (ValueError, RecursionError) as error:
            yield Line(place, None, f"not JSON: {_reason(error)}", text.decode("utf-8", "replace"))


def _json(path: Path) -> Iterator[Line]:
    with open_text(path) as file:
        head = file.read(_CHUNK)
        start = len(head) - len(head.lstrip())
        if head[start : start + 1] == "[":
            yield from _array(path.name, head[start + 1 :], file, 1 + head[:start].count("\n"))
            return
        try:
            document = json.loads(_whole(path.name, head + file.read(LARGEST_DOCUMENT)))
        except WrongValue:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}:{getattr(error, 'lineno', 1)}: not JSON: {_reason(error)}") from error
    yield from _object(document)


def _array(name: str, buffer: str, file: IO[str], line: int) -> Iterator[Line]:
    """Yield the items of an array whose `[` has been read, holding one item and one chunk at a time."""
    decode, record, ended = json.JSONDecoder().raw_decode, _Records(), False
    while True:
        body = buffer.lstrip(", \t\r\n")
        line += buffer[: len(buffer) - len(body)].count("\n")
        if body.startswith("]"):
            return
        try:
            item, end = decode(body)
            whole = ended or end < len(body)
        except RecursionError as error:
            raise ValueError(f"{name}:{line}: {_reason(error)}") from error
        except ValueError as error:
            if ended:
                line += body[: getattr(error, "pos", 0)].count("\n")
                raise ValueError(f"{name}:{line}: the array breaks off here: {getattr(error, 'msg', error)}") from error
            whole = False
        if whole:
            yield record(line, item)
            line, buffer = line + body[:end].count("\n"), body[end:]
            continue
        if len(body) > LONGEST_LINE:
            raise WrongValue(f"{name}:{line}: an item of more than {LONGEST_LINE >> 20} MiB", "write one record an item")
        more = file.read(max(_CHUNK, len(body)))
        buffer, ended = body + more, not more


def _object(document: Any) -> Iterator[Line]:
    """Yield the rows of one object: its only list of objects, or its values where all are objects, or itself.

    A conversation is one row. An object of columns, each with its values by the rows' numbers, is turned into these rows.
    """
    record = _Records()
    if not isinstance(document, dict):
        yield record(1, document)
        return
    columns = _by_number(document)
    lists = [value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if columns:
        numbers = dict.fromkeys(number for values in columns.values() for number in values)
        rows = ({name: values.get(number) for name, values in columns.items()} for number in numbers)
        yield from (record(place, row) for place, row in enumerate(rows, 1))
    elif len(lists) == 1 and not _is_conversation(lists[0]):
        yield from (record(place, item) for place, item in enumerate(lists[0], 1))
    elif document and all(isinstance(value, dict) for value in document.values()):
        yield from (record(place, {"key": name, **value}) for place, (name, value) in enumerate(document.items(), 1))
    else:
        yield record(1, document)


def _by_number(document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the columns of what pandas' `to_json` writes: `{column: {row number: value}}`, or as lists; nothing of others."""
    if document.keys() == {"columns", "index", "data"} and all(isinstance(part, list) for part in document.values()):
        rows = [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]
        return {name: {str(number): row.get(name) for number, row in enumerate(rows)} for name in document["columns"]}
    numbered = all(isinstance(values, dict) and values and all(map(str.isdecimal, values)) for values in document.values())
    return document if numbered else {}


def _is_conversation(items: list[Any]) -> bool:
    return all(
        isinstance(item, dict) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys()) for item in items
    )


class _Records:
    """Makes lines of JSON values: objects are records, and where the first value is a text, texts are prompts."""

    def __init__(self) -> None:
        self._texts: bool | None = None

    def __call__(self, place: int, data: Any) -> Line:
        """Return the line of a value."""
        if self._texts is None:
            self._texts = isinstance(data, str)
        if self._texts and isinstance(data, str):
            return Line(place, {"prompt": data})
        if not self._texts and isinstance(data, dict):
            return Line(place, data)
        wanted = "a text, as the first is" if self._texts else "an object with named fields"
        return Line(place, None, f"expected {wanted}, got {type(data).__name__}", json.dumps(data))


def _whole(name: str, text: str) -> str:
    """Return the text of a document, once it is known to be all of it.

    Raises:
        ValueError: there is more.
    """
    if len(text) >= LARGEST_DOCUMENT:
        raise WrongValue(f"{name}: one document of more than {LARGEST_DOCUMENT >> 20} MiB", "write it as JSON lines")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)
