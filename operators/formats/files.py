"""Records of local files with the place each came from: jsonl, json, csv, tsv, parquet and lines of text, plain or gzipped.

Knows no format of dialogues. A record that can't be read is yielded with its error: the caller decides what becomes of it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from caiflow.engine.errors import WrongValue

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
_WIDEST_CELL = 1 << 28
_POINTER = b"version https://git-lfs.github.com/spec/"


class Line(NamedTuple):
    """One record as read: `place` is its line (its number in parquet), `data` its fields, or `error` why it has none."""

    place: int
    data: Mapping[str, Any] | None
    error: str = ""
    text: str = ""


def has_data_suffix(name: str) -> bool:
    """Return whether `name` ends as a data file's name does, with or without `.gz`."""
    return Path(name.removesuffix(".gz")).suffix in SUFFIXES


def kind_of(path: Path) -> Kind:
    """Return how the file at `path` is written, by its name; a `.json` or `.jsonl` by whether it begins as an array.

    Raises:
        ValueError: the name has no known suffix.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise WrongValue(f"{path.name}: unknown kind of file, got suffix {suffix!r}", f"use {known}, or any of these + .gz")
    kind = SUFFIXES[suffix]
    return _json_kind(path) if kind in ("json", "jsonl") else kind


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the records of a file in order, in bounded memory (except a json object, which is read whole).

    Raises:
        ValueError: an unknown suffix, or the file can't be read further (a json array that breaks off, a truncated gzip).
    """
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet, "text": _text}
    if is_pointer(path):
        raise WrongValue(f"{path.name}: a Git LFS pointer, not the data that it stands for", "fetch the file: `git lfs pull`")
    try:
        yield from readers[kind_of(path)](path)
    except (EOFError, OSError) as error:  # a bad gzip file is an OSError
        raise ValueError(f"{path.name}: can't be read: {error}") from error


def is_pointer(path: Path) -> bool:
    """Return whether the file only says where Git LFS has the data."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _open(path: Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("rb")
    import gzip

    return cast(IO[bytes], gzip.open(path))


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _json_kind(path: Path) -> Kind:
    """Tell lines from one document: an array begins with `[`, and in a `.json` lines are objects that are whole on theirs."""
    with _open(path) as file:
        head = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return "json"
    if not path.name.removesuffix(".gz").endswith(".json"):
        return "jsonl"
    first, *more = head.split(b"\n", 1)
    try:
        json.loads(first)
    except ValueError:
        return "json"
    return "jsonl" if more and more[0].strip() else "json"


def _text(path: Path) -> Iterator[Line]:
    """Yield each line that isn't blank as a prompt."""
    with _open(path) as file:
        for place, raw in enumerate(file, 1):
            try:
                text = raw.removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Line(place, None, f"not UTF-8: {error.reason} at byte {error.start}", raw.decode("utf-8", "replace"))
                continue
            if text.strip():
                yield Line(place, {"prompt": text})


def _jsonl(path: Path) -> Iterator[Line]:
    record = _Records()
    with _open(path) as file:
        for place, raw in enumerate(file, 1):
            text = raw.rstrip()  # the line end is no part of the record, nor of the columns counted in it
            if not text:
                continue
            try:
                yield record(place, json.loads(text.removeprefix(b"\xef\xbb\xbf")))
            except ValueError as error:
                yield Line(place, None, f"not JSON: {_reason(error)}", text.decode("utf-8", "replace"))


def _json(path: Path) -> Iterator[Line]:
    with _open_text(path) as file:
        head = file.read(_CHUNK)
        start = len(head) - len(head.lstrip())
        if head[start : start + 1] == "[":
            yield from _array(path.name, head[start + 1 :], file, 1 + head[:start].count("\n"))
            return
        try:
            document = json.loads(head + file.read())
        except ValueError as error:
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
        except ValueError as error:
            if ended:
                line += body[: getattr(error, "pos", 0)].count("\n")
                raise ValueError(f"{name}:{line}: the array breaks off here: {getattr(error, 'msg', error)}") from error
            whole = False
        if whole:
            yield record(line, item)
            line, buffer = line + body[:end].count("\n"), body[end:]
            continue
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


def _csv(path: Path) -> Iterator[Line]:
    import csv

    csv.field_size_limit(_WIDEST_CELL)
    separator = _separator(path)
    with _open_text(path) as file:
        rows = csv.reader(file, delimiter=separator, strict=True)
        names: list[str] = []
        place = 1
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise WrongValue(
                    f"{path.name}:{place}: can't be read further: it isn't UTF-8 ({error.reason})",
                    f"write it as such: `iconv -f latin1 -t utf-8 {path.name}`, or -f utf-16 where Excel wrote it",
                ) from error
            except csv.Error as error:
                raise ValueError(f"{path.name}:{place}: can't be read further: {error}") from error
            if place == 1:
                names = _names(f"{path.name}:{place}", cells)
            elif cells and len(cells) != len(names):
                text = separator.join(cells)
                yield Line(place, None, f"expected {len(names)} cells, got {len(cells)}", text)
            elif cells:
                yield Line(place, dict(zip(names, cells, strict=True)))
            place = rows.line_num + 1


def _separator(path: Path) -> str:
    """Return what stands between a table's cells: as its name says, unless its names of columns have another sign alone."""
    expected = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    with _open(path) as file:
        names = file.readline(_CHUNK)
    if expected.encode() in names or b'"' in names:
        return expected
    return next((sign for sign in (";", "\t", "|", ",") if sign.encode() in names), expected)


def _names(place: str, cells: list[str]) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        ValueError: two columns have one name.
    """
    for name, times in Counter(cells).items():
        if times > 1:
            which = f"are named `{name}`" if name else "have no name"
            raise WrongValue(f"{place}: {times} columns {which}", "give each column its own name")
    return cells


def _parquet(path: Path) -> Iterator[Line]:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name}: not a parquet file: {error}") from error
    place, binary = 0, any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in file.schema_arrow.types)
    for batch in file.iter_batches(1024):
        for data in batch.to_pylist():
            place += 1
            yield Line(place, {name: _decoded(value) for name, value in data.items()} if binary else data)


def _decoded(value: Any) -> Any:
    """Return bytes as the text that they are, where they are one."""
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value


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


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)
