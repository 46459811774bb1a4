"""`load`: rows from a file, a hub data set or the bundled example, in whatever format they are, in caiflow's columns.

Owns the rows' uids, the choice among rows (split, sample, limit) and what becomes of rows that can't be read. The formats
themselves are in `caiflow.operators.formats`. Never asks a model, and imports nothing heavy to say which columns there are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from caiflow.engine.errors import Finding, WrongValue, finding, suggest
from caiflow.engine.operator import Expected, Job, TableOperator
from caiflow.engine.rows.columns import Columns, ColumnType, Gap, Turns
from caiflow.engine.rows.tool_use import TOOL_USE
from caiflow.operators.formats.opening import inner_name
from caiflow.operators.formats.params import LoadParams
from caiflow.operators.formats.parse import FORMATS, overlooked, uncompared
from caiflow.operators.formats.passes import Drawn, Piece, Pieces, sampled, side, written
from caiflow.operators.formats.rows import Head, Parser, Row
from caiflow.operators.formats.shapes import CANONICAL, column_type
from caiflow.operators.formats.source import BUNDLED, FileSource, resolve
from caiflow.operators.formats.survey import BadRow, ByColumn, Survey, by_column
from caiflow.operators.formats.tables import Csv

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import RowsWriter
    from caiflow.operators.formats.source import Source

_MEND = "mend it, or set `on_bad_row: quarantine`"
_SNIFFED = 40
_SMALL_BYTES, _SMALL_ROWS = 1 << 18, 2000
_COUNTED_BYTES = 1 << 24  # of local files, whose rows a plan counts: a moment of reading
_BATCH = 1024
_HUB_FIELDS = frozenset({"revision", "subset", "folder", "hub_split"})


class Look(NamedTuple):
    """What a step makes of the first records of its source, before any run."""

    source: str
    format: str
    because: str
    used: list[str]
    kept: list[str]
    left_out: list[str]
    notes: list[str]
    rows: list[Row]
    bad: list[dict[str, str]]


class Load(TableOperator[LoadParams]):
    """Load rows from a file, a hub data set or the bundled example, in any of the formats that dialogues come in."""

    name = "load"
    version = 4
    raised_for: ClassVar[Mapping[int, str]] = {3: "rows are named by what is in them, no longer by their file's name too"}
    params_type = LoadParams

    def __reduce__(self) -> tuple[Any, ...]:
        """Have it made again with what pins its sources, once that is known: a worker reads what was planned, or says no.

        A bundled file is looked for anew: another node may have the package elsewhere.
        """
        pins = ("_contents",) if self.params.source.startswith(BUNDLED) else ("_contents", "_from")
        return *super().__reduce__(), {name: vars(self)[name] for name in pins if name in vars(self)}

    def columns(self, _inputs: Mapping[str, Columns]) -> Columns:
        """Return the columns seen in the first records of a local file; others are only known once they are read."""
        head = self._head if isinstance(self._head, Head) else Head([], True)
        survey = Survey()
        good = [row for row in head.rows if not isinstance(row, BadRow)]
        survey.learn(by_column(good))
        layouts = set(map(frozenset, good))
        types: dict[str, ColumnType | None] = {"uid": "text"}
        # what later rows have decides about the source's own columns: their types are left open
        types |= {
            name: column_type(shape) if head.whole or name in CANONICAL else None for name, shape in survey.shapes.items()
        }
        columns = Columns(types, open=not layouts or (len(layouts) > 1 and not head.whole), turns=self._turns(head))
        columns = replace(columns, gaps=_gaps(good)) if head.whole else columns
        return columns.sifted() if self.params.split or self.params.sample or self.params.limit else columns

    def _turns(self, head: Head) -> dict[str, Turns]:
        """Return what the first records tell of the conversations in each column; further records may have what these lack."""
        good = [(row, alike) for row, alike in zip(head.rows, head.alike, strict=True) if not isinstance(row, BadRow)]
        found: dict[str, Turns] = {}
        for name in ("prompt", "messages") if good else ():
            rows, kinds = 0, Counter[str]()
            for row, alike in good:
                said = [turn["role"] for turn in row.get(name) or ()]
                rows += alike
                for kind in {*said, *(["earlier"] if "assistant" in said[:-1] else [])}:
                    kinds[kind] += alike
            counts = [kinds[kind] for kind in ("system", "earlier", "tool")]
            found[name] = Turns(rows, *(counts if head.whole else [count or None for count in counts]))
        return found

    def expects(self, _inputs: Mapping[str, Expected]) -> Expected | None:
        """Return the rows of local files, counted as they will be loaded; of others the bound that the step sets."""
        most = min((bound for bound in (self.params.sample, self.params.limit) if bound is not None), default=None)
        local = [source.path for source in self._from if isinstance(source, FileSource)]
        if len(local) == len(self._from) and sum(path.stat().st_size for path in local) <= _COUNTED_BYTES:
            try:
                rows = sum(not isinstance(row, BadRow) for row in self._limited(self._readable()))
            except ValueError:
                return None  # the run will say which row it is
            return Expected(rows if most is None else min(rows, most), exact=True)
        return None if most is None else Expected(most)

    def check(self) -> Iterator[Finding]:
        """Yield what can be told from the parameters and the first records of a local file."""
        first = next(iter(self._from), FileSource(Path(self.params.source)))  # a pattern may have no file
        if isinstance(first, FileSource):
            yield from self._check_file(first)
        if isinstance(self._head, Finding):
            yield self._head
        elif self._head.rows:
            found = [*self._check_names(self._head)]
            yield from found or self._check_rows(self._head)  # a wrong name explains why rows are bad
        elif [isinstance(one, FileSource) and one.path.is_file() for one in self._from] == [True]:
            yield Finding(("source",), f"{self.params.source} has no rows", 'a line of it is a row, such as {"prompt": "..."}')

    def remarks(self) -> Iterator[Finding]:
        """Yield data sets that can't be looked at, since they aren't here and can't be fetched; suites that aren't pinned."""
        hub = [source for source in self._from if not isinstance(source, FileSource)]
        yield from dict.fromkeys(told for source in hub for told in source.remarks())

    def _check_file(self, file: FileSource) -> Iterator[Finding]:
        given = self.params.source
        for name in sorted(self.params.model_fields_set & _HUB_FIELDS):
            yield Finding((name,), f"`{name}` is for hub data sets, and {given!r} is a file", f"remove `{name}`")
        if self.params.csv != Csv() and file.path.is_file() and Path(inner_name(file.path)).suffix not in (".csv", ".tsv"):
            yield Finding(("csv",), f"`csv` says how a table is written, and {given!r} isn't one", "remove `csv`")
        yield from file.amiss(given)

    def _check_names(self, head: Head) -> Iterator[Finding]:
        """Yield what is named in `rename` and `split`, and none of the first records has."""
        for name in self.params.rename if len(self._from) == 1 else ():
            if name not in head.fields:
                whose = "no record" if head.whole else f"none of the first {head.number} records"
                yield Finding(
                    ("rename", name), f"{whose} of {self.params.source} has `{name}`", suggest(name, head.fields, "fields")
                )
        columns = dict.fromkeys(column for row in head.rows if not isinstance(row, BadRow) for column in row)
        split = self.params.split
        if columns and split is not None and split.column not in columns:
            yield Finding(("split", "by"), f"no column `{split.column}` to split by", suggest(split.column, columns, "columns"))

    def _check_rows(self, head: Head) -> Iterator[Finding]:
        """Yield why the first records are no rows: where none is, or where one that isn't fails the step."""
        bad = [row for row in head.rows if isinstance(row, BadRow)]
        if len(bad) < len(head.rows):
            if bad and self.params.on_bad_row == "fail" and self.params.limit is None:
                yield Finding(bad[0].parameter or ("source",), f"{_counted(bad, head)}: {bad[0].reason}", _MEND)
            return
        blamed = next((row for row in bad if row.parameter), bad[0])
        where = blamed.parameter or ("source" if self.params.format == "auto" else "format",)
        is_text = isinstance(first := self._from[0], FileSource) and first.is_text
        unread = "write it in UTF-8, one record a line" if is_text else "write what can't be read as text"
        hint = f"the formats are {', '.join(FORMATS)}" if head.fields else unread
        if line := self._line_for_lack(bad[0].reason):
            hint = f"write `{line}`"
        if where == ("uid",):
            hint = suggest(str(self.params.uid), [self.params.rename.get(name, name) for name in head.fields], "fields")
        elif blamed.parameter:
            hint = "give it a name that no other field has"
        how = "can be loaded" if blamed.parameter else f"reads as {self.params.format}"
        yield Finding(where, f"no row of {self.params.source} {how}: {blamed.reason}", hint)

    def identity(self) -> Mapping[str, Any]:
        """Return what pins the source's content, and the seed where rows are drawn."""
        seed = {} if self.params.sample is None else {"seed": self.context.seed}
        found = self._contents
        return {"content": found[0] if len(found) == 1 else found, **seed}

    @cached_property
    def _contents(self) -> list[str]:
        """What pins each source, found once: what is read later has to be the same."""
        return [source.content() for source in self._from]

    def sources(self) -> Mapping[str, Path | str]:
        """Return the files, or the hub id with the commit it stands for."""
        found = self._from
        pinned = [source.path if isinstance(source, FileSource) else f"{source.repo}@{source.commit}" for source in found]
        return {"source" if len(found) == 1 else f"source.{place}": source for place, source in enumerate(pinned)}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Read the source for its columns' types and the sample, and write what was read.

        Raises:
            ValueError: a row that can't be read, with its file and line; no row is left; or the source was changed meanwhile.
        """
        for source in self._from:
            if not isinstance(source, FileSource):
                source.fetch(partial(_tell, job))
        survey, pieces = Survey(), Pieces(job.out_dir)
        drawn = Drawn(self.params.sample, self.context.seed) if self.params.sample else None
        for found in self._batches():
            rows = survey.see(found)
            pieces.add(Piece(rows, found.bad))
            if drawn is not None:
                for uid in rows.uids():
                    drawn.offer(uid)
        if "_contents" in vars(self) and self._contents != [source.content() for source in self._from]:
            raise WrongValue(f"{self.params.source}: it has changed since the run was planned", "run again")
        counts = written(pieces if drawn is None else sampled(pieces, drawn, self.params.limit), survey, out)
        out.metrics.update(counts, **self._told(survey))
        if job.log is not None:
            job.log(note="; ".join([f"read as {self._reading.format_name}", *out.metrics.get("notes", ())]))
        if not counts["rows"]:
            bad = f", but {counts['bad_rows']} that can't be read" if counts["bad_rows"] else ""
            raise WrongValue(f"{self.params.source}: it has no row to load{bad}", "check the file, and `split` and `format`")

    def line_for(self, column: str) -> str:
        """Return the line of this step that would give its rows a column; empty where the source has none like it."""
        if not isinstance(self._first, FileSource) or isinstance(self._head, Finding):
            return ""
        return self._line_of(self._parser(), self._first, column)

    def _line_for_lack(self, reason: str) -> str:
        """Return the line that would give the records the field that they lack; empty where that isn't what is wrong."""
        lacking = re.match(r"no `(prompt|chosen|rejected)`", reason)
        if lacking is None:
            return ""
        return self._line_of(Parser("table", rename=self.params.rename), self._first or self._from[0], lacking[1])

    def _line_of(self, parser: Parser, source: Source, column: str) -> str:
        from caiflow.operators.formats.likeness import line_for

        rows = [row for row in parser.rows(source, _SNIFFED) if not isinstance(row, BadRow)]
        return line_for(column, rows, self.params.rename)

    def look(self, limit: int) -> Look:
        """Return the first `limit` rows with what they are made of; the bad ones among the records that tell it are named.

        Raises:
            ValueError: the source can't be read.
        """
        source = self._first
        if source is None:
            raise WrongValue(f"{self.params.source}: no file has such a name", "check the pattern")
        parser, survey = self._parser(), Survey()
        found = list(parser.rows(source, _SMALL_ROWS))
        good = [row for row in found if not isinstance(row, BadRow)]
        survey.learn(by_column(good))
        uses = self._parser().uses(source, _SNIFFED)
        used = [name for name, needed in uses.items() if needed or name == self.params.uid]
        notes = self._notes([name for name, shape in survey.shapes.items() if shape != "null"], parser.format_name)
        if (
            parser.format_name == "table"
            and self.params.format == "auto"
            and (line := self._line_of(self._parser(), source, "prompt"))
        ):
            notes = notes or [f"no column is a prompt; to make one: `{line}`"]
        bad = [{"place": row.place, "reason": row.reason} for row in found if isinstance(row, BadRow)]
        left_out = [name for name in uses if name not in used and self.params.rename.get(name, name) in parser.takes]
        kept = [name for name in uses if name not in (*used, *left_out)]
        return Look(self.params.source, parser.format_name, parser.why, used, kept, left_out, notes, good[:limit], bad[:limit])

    def _told(self, survey: Survey) -> dict[str, Any]:
        """Return for the record which format was taken and why, and which columns seem to say something that no model sees."""
        said = [name for name, shape in survey.shapes.items() if shape != "null"]
        notes = self._notes(said, self._reading.format_name)
        found = {"format": self._reading.format_name, "format_because": self._reading.why}
        return {**found, "notes": notes} if notes else found

    def _notes(self, columns: Collection[str], format_name: str) -> list[str]:
        """Return what to say of columns that look as if they belonged to a prompt or an answer, and went into none."""
        pairs = uncompared(columns) if self.params.format == "auto" and "chosen" not in columns else []
        noted = {} if format_name == "table" else overlooked(columns, format_name)
        if TOOL_USE in columns:
            noted = {name: note for name, note in noted.items() if name != "tools"}
        used = self._used(noted) if noted else ()
        return [*pairs, *(note for name, note in noted.items() if name not in used)]

    def _used(self, names: Collection[str]) -> Collection[str]:
        """Return those of some columns of which something is made in the first records."""
        uses = self._parser().uses(self._first or self._from[0], _SMALL_ROWS, names)
        return {self.params.rename.get(name, name) for name, needed in uses.items() if needed}

    def _limited(self, rows: Iterable[Row | BadRow]) -> Iterable[Row | BadRow]:
        return rows if self.params.sample else _limited(rows, self.params.limit)

    def _readable(self) -> Iterator[Row | BadRow]:
        """Yield the rows on this step's side of the split, and the bad ones.

        Raises:
            ValueError: a bad row, unless those are set aside.
        """
        self._reading = self._parser()
        return self._passed(chain.from_iterable(map(self._reading.rows, self._from)))

    def _batches(self) -> Iterator[ByColumn]:
        """Yield what `_limited` does of `_readable`, some at a time."""
        if self.params.split or self.params.limit:
            rows = iter(self._limited(self._readable()))
            yield from map(by_column, iter(lambda: list(islice(rows, _BATCH)), []))
            return
        self._reading = self._parser()
        for batch in chain.from_iterable(self._reading.batches(source, _BATCH) for source in self._from):
            list(self._passed(row for _, row in batch.bad))
            yield batch

    def _passed(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        split = self.params.split
        for row in rows:
            if isinstance(row, BadRow):
                if self.params.on_bad_row == "fail":
                    raise WrongValue(f"{row.place}: {row.reason}, got {row.text[:80]!r}", _MEND)
                yield row
            elif split is None or side(row, split) == split.part:
                yield row

    @cached_property
    def _head(self) -> Head | Finding:
        """What the first records of local files tell, or why they can't be read; nothing of other sources."""
        files = [source for source in self._from if isinstance(source, FileSource) and source.path.is_file()]
        if not files:
            return Head([], True)
        try:
            small = sum(file.path.stat().st_size for file in files) <= _SMALL_BYTES
            return self._parser().heads(files, _SMALL_ROWS if small else _SNIFFED)
        except (ValueError, OSError) as error:
            unreadable = finding(error, ("source",))
            return unreadable._replace(hint=unreadable.hint or "name a file that can be read")

    @cached_property
    def _first(self) -> Source | None:
        """The first source that has a record, as far as local files tell: an empty one tells nothing."""
        telling = (one for one in self._from if not isinstance(one, FileSource) or not one.is_empty)
        return next(telling, None) or next(iter(self._from), None)

    @cached_property
    def _from(self) -> list[Source]:
        """What is read; found once, so that all who ask, a worker too, have the same commit of a data set on the hub."""
        fields = self.params
        hub = {"revision": fields.revision, "subset": fields.subset, "folder": fields.folder, "split": fields.hub_split}
        return resolve(fields.source, self.context.base_dir, hub, fields.csv)

    def _parser(self) -> Parser:
        given = self.params
        return Parser(given.format, given.turns, given.rename, given.uid, given.prompt, given.take)


def _tell(job: Job, doing: str) -> None:
    if job.log is not None:
        job.log(doing=doing)


def _gaps(rows: Sequence[Row]) -> dict[str, Gap]:
    """Return the columns in which some of the rows, or all, have nothing; a conversation has something once it is answered."""
    known = [name for name in CANONICAL if any(name in row for row in rows)]
    lacking = Counter(name for name in known for row in rows if _is_nothing(name, row.get(name)))
    return {name: "all" if number == len(rows) else "some" for name, number in lacking.items()}


def _is_nothing(name: str, value: Any) -> bool:
    return value is None or (name == "messages" and not (value and value[-1]["role"] == "assistant"))


def _counted(bad: Sequence[BadRow], head: Head) -> str:
    """Return where the first of the bad rows is, and how many there are."""
    of = f"the {head.number} records" if head.whole else f"the first {head.number} records"
    return f"{bad[0].place} ({len(bad)} of {of} can't be read)"


def _limited(rows: Iterable[Row | BadRow], limit: int | None) -> Iterator[Row | BadRow]:
    """Yield until `limit` good rows have been, and the bad ones among them."""
    left = limit
    for row in rows:
        yield row
        if left is not None and not isinstance(row, BadRow):
            left -= 1
            if not left:
                return
