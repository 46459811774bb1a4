"""Tables as records: values with separators between them, and parquet.

Owns how such a table is told from another, and the line to write where it can't be. Never knows what its columns mean.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, field_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import Strict
from caiflow.operators.formats.opening import Line, inner_name, is_utf16, open_bytes, open_text

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK, _BUFFERED = 1 << 20, 1 << 16
_WIDEST_CELL = 1 << 28
_UNTELLABLE = (ValueError, OverflowError, LookupError)  # of a text, a number, a time zone
_SAID = re.compile(r"sep=([^\r\n])[\r\n]*")
_QUOTED = re.compile(r'"[^"]*"')
_ONLY_CP1252 = re.compile(rb"[\x80-\x9f]")
"""Windows' quotes, dashes and the like, where Latin-1 has signs that nobody writes."""
_QUOTING: Mapping[str, Mapping[str, Any]] = {
    "double": {},
    "backslash": {"doublequote": False, "escapechar": "\\"},
    "none": {"quoting": csv.QUOTE_NONE},
}


class Csv(Strict):
    """How a table of texts is written, where that can't be told from it."""

    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """The sign between two cells; by default a comma (in `.tsv` a tab), or what stands alone between the columns' names."""
    encoding: str = "utf-8"
    """The name of its encoding, such as `latin1` or `utf-16`."""
    quote: Literal["double", "backslash", "none"] = "double"
    """How a quoted cell has a quote: twice (`""`), after a backslash (`\\"`); or `none`: no cell is quoted."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise WrongValue(f"no encoding {value!r}", "such as utf-8, latin1, cp1252 or utf-16") from None
        return value


def read_csv(path: Path, how: Csv) -> Iterator[Line]:
    """Yield the rows of a table of texts, by the names in its first line.

    Raises:
        ValueError: it can't be read further; the text has the line to write where one helps.
    """
    csv.field_size_limit(_WIDEST_CELL)
    place = 1
    names: Sequence[str] | None = None
    try:
        if how == Csv() and is_utf16(path):
            how = how.model_copy(update={"encoding": "utf-16"})
        separator, above = _separator(path, how)
        with open_text(path, _with_mark(how.encoding)) as file:
            place += sum(1 for _ in islice(file, above))
            rows = csv.reader(file, delimiter=separator, strict=True, **_QUOTING[how.quote])
            for cells in rows:
                if names is None:
                    names = _names(f"{path.name}:{place}", cells) if cells else None  # a blank line has no names
                elif cells and len(cells) != len(names):
                    text = separator.join(cells)
                    yield Line(place, None, f"expected {len(names)} cells, got {len(cells)}", text)
                elif cells:
                    yield Line(place, dict(zip(names, cells, strict=True)))
                place = above + rows.line_num + 1
    except UnicodeError as error:
        raise WrongValue(f"{path.name}:{place}: can't be read further: {_undecoded(error)}", _encoding(path, how)) from error
    except csv.Error as error:
        hint = 'where it writes a quote as \\": `csv: {quote: backslash}`' if "\\" in _line(path, how, place) else ""
        raise WrongValue(f"{path.name}:{place}: can't be read further: {error}", hint) from error


def _with_mark(encoding: str) -> str:
    """Return the encoding that passes over a mark of UTF-8 at the head."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _undecoded(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it isn't {error.encoding.upper()} ({error.reason})"
    return str(error)


def _encoding(path: Path, how: Csv) -> str:
    """Return the line to write for a table that isn't in the encoding it is read in."""
    with open_bytes(path) as file:
        windows = _ONLY_CP1252.search(file.read(_CHUNK))
    likely = "utf-16" if is_utf16(path) else "cp1252" if windows else "latin1"
    return f"say how it is written: `csv: {{encoding: {likely}}}`" if likely != how.encoding else "name its encoding in `csv`"


def _line(path: Path, how: Csv, place: int) -> str:
    with open_text(path, how.encoding) as file:
        return next((line for number, line in enumerate(file, 1) if number >= place), "")


def _separator(path: Path, how: Csv) -> tuple[str, int]:
    """Return what stands between a table's cells, and the number of lines above the columns' names.

    It is as the step says, or a first line `sep=;` (Excel's), or the file's name, or what alone stands between the names.
    """
    expected = "\t" if inner_name(path).endswith(".tsv") else ","
    with open_text(path, _with_mark(how.encoding)) as file:
        lines = enumerate(iter(partial(file.readline, _CHUNK), ""))
        above, names = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    said = _SAID.fullmatch(names)
    if said or how.separator:
        return how.separator or str(said and said[1]), above + 1 if said else above
    between = _QUOTED.sub("", names)
    if expected in between or '"' in between:
        return expected, above
    return next((sign for sign in (";", "\t", "|", ",") if sign in between), expected), above


def _names(place: str, cells: Sequence[str]) -> Sequence[str]:
    """Return the names of a table's columns.

    Raises:
        ValueError: two columns have one name.
    """
    for name, times in Counter(cells).items():
        if times > 1:
            which = f"are named `{name}`" if name else "have no name"
            raise WrongValue(f"{place}: {times} columns {which}", "give each column its own name")
    return cells


def read_parquet(path: Path) -> Iterator[Line]:
    """Yield the rows of a parquet file; bytes are texts where they are some. A page of each column is held.

    Raises:
        ValueError: it is no parquet file, or can't be read further.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = 0
    with contextlib.ExitStack() as opened:
        source: Path | IO[bytes] = path
        if path.suffix.lower() != ".parquet":  # it is read from its end: unpacked to a file that is gone once it is closed
            import shutil
            import tempfile

            source = cast(IO[bytes], opened.enter_context(tempfile.TemporaryFile()))
            with open_bytes(path) as packed:
                shutil.copyfileobj(packed, source, _CHUNK)
        try:
            file = opened.enter_context(pq.ParquetFile(source, buffer_size=_BUFFERED, pre_buffer=False))
        except pa.ArrowException as error:
            raise ValueError(f"{path.name}: not a parquet file: {error}") from error
        _names(path.name, file.schema_arrow.names)
        binary = any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in file.schema_arrow.types)
        try:
            for batch in file.iter_batches(1024):
                for line in _lines(batch, place + 1):
                    data = line.data if binary else None
                    yield line._replace(data={name: _decoded(value) for name, value in data.items()}) if data else line
                place += len(batch)
        except pa.ArrowException as error:
            raise WrongValue(
                f"{path.name}: can't be read further than row {place}: {error}", "write it anew, or as JSON lines"
            ) from error


def _lines(batch: pa.RecordBatch, place: int) -> Iterator[Line]:
    """Yield the rows of a batch; one with a value that Python has no room for, such as a date past 9999, can't be read."""
    try:
        yield from map(Line, count(place), batch.to_pylist())
    except _UNTELLABLE as error:
        if len(batch) == 1:
            yield _untold(batch, place, error)
            return
        for row in range(len(batch)):
            yield from _lines(batch.slice(row, 1), place + row)


def _untold(row: pa.RecordBatch, place: int, error: Exception) -> Line:
    """Return the line of a row that can't be told, with the first column that can't."""
    for name, values in zip(row.schema.names, row.columns, strict=True):
        try:
            values.to_pylist()
        except _UNTELLABLE as own:
            reason = f"`{name}` can't be read ({own}): write this column as text"
            return Line(place, None, reason, values.to_string(skip_new_lines=True))
    return Line(place, None, str(error))


def _decoded(value: Any) -> Any:
    """Return bytes as the text that they are, where they are one."""
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value
