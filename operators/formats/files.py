"""Records of local files with the place each came from: jsonl, json, csv, tsv, parquet and lines of text, plain or packed.

Knows no format of dialogues. A record that can't be read is yielded with its error: the caller decides what becomes of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import IO, Any, Literal

from caiflow.engine.errors import WrongValue
from caiflow.engine.identity import quick_record, quick_records
from caiflow.operators.formats.columnar import by_column, is_conversation, rows_of_columns
from caiflow.operators.formats.opening import (
    LARGEST_DOCUMENT,
    LONGEST_LINE,
    Line,
    blocks_of_lines,
    inner_name,
    numbered_lines,
    open_bytes,
    open_utf8,
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
_QUESTIONS = ("prompt", "instruction", "question", "query")
_ANSWERS = ("answers", "responses", "completions", "candidates", "outputs", "generations")
_MARKS: Mapping[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("a gzip file", "let its name end in `.gz`"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "let its name end in `.zst`"),
    b"PK\x03\x04": ("a zip file, or an office document", "let its name end in `.zip`, or save the sheet as CSV"),
    b"PAR1": ("a parquet file", "let its name end in `.parquet`"),
    b"ARROW1": ("an Arrow file", "write it as parquet"),
    b"\x89PNG": ("an image", "name the file with the data"),
    b"\xff\xd8\xff": ("an image", "name the file with the data"),
    b"%PDF-": ("a PDF", "name the file with the data"),
    b"SQLite f": ("a SQLite database", "write the table that is meant as CSV"),
}
"""How files begin that are no texts: what each is, and what to do."""
_CHUNK = 1 << 20
_POINTER = b"version https://git-lfs.github.com/spec/"


def has_data_suffix(name: str) -> bool:
    """Return whether `name` ends as a data file's name does, packed or not."""
    return Path(plain_name(name)).suffix.lower() in SUFFIXES


def kind_of(path: Path) -> Kind:
    """Return how the file at `path` is written, by its name; a `.json` or `.jsonl` by whether it begins as an array.

    Raises:
        ValueError: the name has no known suffix.
    """
    suffix = Path(inner_name(path)).suffix
    if suffix not in SUFFIXES:
        known = f"use {', '.join(SUFFIXES)}, or any of these + .gz, .zst or .zip"
        hint = "save the sheet as CSV" if suffix in (".xlsx", ".xls", ".ods") else known
        raise WrongValue(f"{path.name}: unknown kind of file, got suffix {suffix!r}", hint)
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
        kind = kind_of(path)
        if kind != "parquet":
            _refuse_binary(path)
        yield from readers[kind](path)
    except UnicodeDecodeError as error:
        hint = "write it in UTF-8, as `iconv -f cp1252 -t utf-8` does from Windows' encoding"
        raise WrongValue(f"{path.name}: can't be read: it isn't {error.encoding.upper()} ({error.reason})", hint) from error
    except (EOFError, OSError) as error:  # a bad gzip file is an OSError
        raise ValueError(f"{path.name}: can't be read: {error}") from error


def is_pointer(path: Path) -> bool:
    """Return whether the file only says where Git LFS has the data."""
    refuse_irregular(path)
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _refuse_binary(path: Path) -> None:
    """Raise for a file that isn't the text that its name says.

    Raises:
        ValueError: it begins as another kind of file does.
    """
    with open_bytes(path) as file:
        head = file.read(8)
    for mark, (kind, hint) in _MARKS.items():
        if head.startswith(mark):
            raise WrongValue(f"{path.name}: {kind}, by its first bytes", hint)


def _json_kind(path: Path) -> Kind:
    """Tell lines from documents: an array begins with `[`, and objects of a line each are whole on theirs.

    In a `.jsonl` lines may be broken; it has objects over several lines where the first one is such.
    """
    with open_utf8(path) as file:
        head = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return "json"
    first, *more = head.split(b"\n", 1)
    if not inner_name(path).endswith(".json"):
        return "json" if first.strip() == b"{" and more and _begins_whole(head) else "jsonl"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "json"
    return "jsonl" if more and more[0].strip() else "json"


def _begins_whole(head: bytes) -> bool:
    """Return whether a text begins with a whole value."""
    try:
        json.JSONDecoder().raw_decode(head.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return True


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
    for first, raws in blocks_of_lines(path):
        if (records := quick_records(raws)) is not None:
            yield from map(Line if record.are_objects else record, count(first), records)
        else:
            yield from _line_by_line(record, first, raws)


def _line_by_line(record: _Records, first: int, raws: Sequence[bytes]) -> Iterator[Line]:
    for place, raw in enumerate(raws, first):
        if (data := quick_record(raw)) is not None:
            yield record(place, data)
            continue
        text = raw.rstrip()  # the line end is no part of the record, nor of the columns counted in it
        if not text:
            continue
        try:
            yield record(place, json.loads(text.removeprefix(b"\xef\xbb\xbf")))
        except (ValueError, RecursionError) as error:
            yield Line(place, None, f"not JSON: {_reason(error)}", text.decode("utf-8", "replace"))


def _json(path: Path) -> Iterator[Line]:
    with io.TextIOWrapper(open_utf8(path), encoding="utf-8-sig", newline="") as file:
        head = file.read(_CHUNK)
        start = len(head) - len(head.lstrip())
        if head[start : start + 1] == "[":
            yield from _items(path.name, head[start + 1 :], file, 1 + head[:start].count("\n"))
            return
        text = _whole(path.name, head + file.read(LARGEST_DOCUMENT))
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):  # one after the other, as jq writes
                yield from _items(path.name, text, file, 1, until="")
                return
            raise ValueError(f"{path.name}:{getattr(error, 'lineno', 1)}: not JSON: {_reason(error)}") from error
    yield from _object(path.name, document)


def _items(name: str, buffer: str, file: IO[str], line: int, until: str = "]") -> Iterator[Line]:
    """Yield values that commas or blanks divide, holding one and one chunk at a time: until `]`, or until the file ends.

    Raises:
        ValueError: it breaks off, or more than blanks follows `]`.
    """
    decode, record, ended = json.JSONDecoder().raw_decode, _Records(), False
    while True:
        body = buffer.lstrip(", \t\r\n")
        line += buffer[: len(buffer) - len(body)].count("\n")
        if body.startswith(until) if until else ended and not body:
            if until and any(map(str.strip, chain([body[1:]], iter(partial(file.read, _CHUNK), "")))):
                told = f"{name}:{line}: more follows after the array"
                raise WrongValue(told, 'write one array, or a record a line, such as {"messages": [...]}')
            return
        try:
            item, end = decode(body)
            whole = ended or end < len(body)
        except RecursionError as error:
            raise ValueError(f"{name}:{line}: {_reason(error)}") from error
        except ValueError as error:
            if ended:
                line += body[: getattr(error, "pos", 0)].count("\n")
                what = "the array" if until else "it"
                raise ValueError(f"{name}:{line}: {what} breaks off here: {getattr(error, 'msg', error)}") from error
            whole = False
        if whole:
            yield record(line, item)
            line, buffer = line + body[:end].count("\n"), body[end:]
            continue
        if len(body) > LONGEST_LINE:
            raise WrongValue(f"{name}:{line}: an item of more than {LONGEST_LINE >> 20} MiB", "write one record an item")
        more = file.read(max(_CHUNK, len(body)))
        buffer, ended = body + more, not more


def _object(name: str, document: Any) -> Iterator[Line]:
    """Yield the rows of one object: its only list of objects, or its values where all are objects, or itself.

    A conversation is one row, and so is a question with its answers. An object of columns is turned into the rows of these.

    Raises:
        ValueError: it is several lists of rows.
    """
    record = _Records()
    if not isinstance(document, dict):
        yield record(1, document)
        return
    columns = by_column(document)
    lists = {field: value for field, value in document.items() if isinstance(value, list) and value and _is_object(value[0])}
    if columns:
        rows = rows_of_columns(columns)
    elif lists and (any(map(is_conversation, lists.values())) or _is_question(document, lists)):
        rows = [document]
    elif all(map(_is_row, lists.get("rows", [None]))):
        rows = [item["row"] for item in lists["rows"]]
    elif len(lists) == 1:
        (rows,) = lists.values()
    elif len(lists) == len(document) > 1:
        told = f"{len(lists)} lists of rows ({', '.join(lists)})"
        raise WrongValue(f"{name}: {told}", "write the one that is meant to a file of its own")
    elif document and all(map(_is_object, document.values())):
        rows = [{"key": key, **value} for key, value in document.items()]
    else:
        rows = [document]
    yield from (record(place, row) for place, row in enumerate(rows, 1))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_row(item: Any) -> bool:
    """Return whether an item is a row as the hub's viewer hands it out."""
    return isinstance(item, dict) and isinstance(item.get("row"), dict)


def _is_question(document: Mapping[str, Any], lists: Collection[str]) -> bool:
    """Return whether an object is one question with a list of answers."""
    return any(isinstance(document.get(name), str) for name in _QUESTIONS) and any(name in lists for name in _ANSWERS)


class _Records:
    """Makes lines of JSON values: objects are records, and where the first value is a text, texts are prompts."""

    def __init__(self) -> None:
        self._texts: bool | None = None

    @property
    def are_objects(self) -> bool:
        """Whether they are known to be objects."""
        return self._texts is False

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
