"""From records to rows: each gets its uid and its columns, or a reason why it can't be a row.

Owns the rule for uids and for columns that a source brings along. Never opens files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.llm.base import Message
from caiflow.operators.formats.dialogue import (
    Turns,
    are_transcripts,
    is_transcript,
    parse_messages,
    parse_transcript,
)
from caiflow.operators.formats.named.fields import Record
from caiflow.operators.formats.named.layout import Format, Take
from caiflow.operators.formats.opening import Line
from caiflow.operators.formats.parse import FORMATS, detect
from caiflow.operators.formats.plain.prompts import quick_prompts
from caiflow.operators.formats.plain.seen import Seen
from caiflow.operators.formats.plain.transcripts import quick_pairs
from caiflow.operators.formats.plain.written import records_as_json, shown, writable
from caiflow.operators.formats.shapes import CANONICAL, MESSAGES, Shape, shape_of
from caiflow.operators.formats.survey import BadRow, ByColumn, by_column, joined
from caiflow.operators.formats.templates import rendered

if TYPE_CHECKING:
    from caiflow.operators.formats.source import Source

Row = dict[str, Any]
_DETECTED_BY = 20
_AT_ONCE = 64  # records that are read together: as many as stay in the cache of a core meanwhile
_LOOKED_INTO = 8  # of a source's files, before a run: the others are as these, or told of when they are read
_PROMPTS = ("prompt", "init_prompt")


class _Misnamed(ValueError):
    """A record doesn't have the fields that a parameter counts on."""

    def __init__(self, reason: str, *parameter: str) -> None:
        super().__init__(reason)
        self.parameter = parameter


class Head(NamedTuple):
    """What the first records of a source tell: a row of each kind they have, whether they are all, their fields and number.

    `alike` has the number of records of each row's kind.
    """

    rows: list[Row | BadRow]
    whole: bool
    fields: Collection[str] = ()
    number: int = 0
    alike: Sequence[int] = ()


class Parser:
    """Turns records into rows; holds what makes their uids unique, so use one per reading.

    `format` is the records' format and `why` says why, once some are read.
    `uid_field` names a field that has the uids; otherwise they follow from the record, and among equal ones from
    its place, so that a file that is renamed, moved or compressed keeps them.
    `template` makes the prompt of a record's fields. `take` says what of a record's several answers.
    """

    def __init__(
        self,
        format_name: str = "auto",
        turns: Turns = "all",
        rename: Mapping[str, str] | None = None,
        uid_field: str | None = None,
        template: str | None = None,
        take: Take = "best",
    ) -> None:
        self.turns = turns
        self.rename = rename or {}
        self.uid_field = uid_field
        self.template = template
        self.take = take
        self.format = None if format_name == "auto" else FORMATS[format_name]
        self.why = "the step says so"
        self._transcripts: frozenset[str] | None = None
        self._given = Seen()
        self._contents = Seen()
        self._again: Counter[str] = Counter()

    @property
    def format_name(self) -> str:
        """The name of the format, `auto` before any record is read."""
        return self.format.name if self.format else "auto"

    @property
    def takes(self) -> Collection[str]:
        """The fields that the format uses up, none before any record is read."""
        return self.format.takes if self.format else ()

    def rows(self, source: Source, most: int | None = None) -> Iterator[Row | BadRow]:
        """Yield the rows and bad rows of the first `most` records: one of each, unless the format joins or unfolds them."""
        for group, layout in self._groups(source, most):
            yield from self._rows(group, layout, source)

    def batches(self, source: Source, size: int) -> Iterator[ByColumn]:
        """Yield what `rows` does, of about `size` records at a time, made by column as far as they can be."""
        layout, lines = self._begun(source, None)
        if self._is_usual(layout):
            read = self._pairs if layout is FORMATS["hh"] else self._prompts
            parts = (read(some, source) for some in iter(lambda: [*islice(lines, _AT_ONCE)], []))
            while some := [*islice(parts, max(1, size // _AT_ONCE))]:
                yield joined(some)
            return
        groups = layout.gather(lines, self._seen_in)
        while together := [*islice(groups, size)]:
            yield by_column([row for group in together for row in self._rows(group, layout, source)])

    def _is_usual(self, layout: Format) -> bool:
        """Return whether these are pairs of transcripts, or plain prompts, of which nothing else is wanted."""
        named = self.rename or self.template is not None or self.uid_field is not None
        known = layout is FORMATS["hh"] or (layout is FORMATS["prompt"] and not self._transcripts)
        return known and self.turns == "all" and not named

    def _pairs(self, lines: Sequence[Line], source: Source) -> ByColumn:
        """Return pairs of transcripts, all that are as usual at once."""
        found, others = quick_pairs([line.data for line in lines], self._content_uids)
        lost = 0
        for place in others:
            (row,) = self._rows([lines[place]], FORMATS["hh"], source)
            found = found.with_one(place - lost, row)
            lost += isinstance(row, BadRow)
        return found

    def _prompts(self, lines: Sequence[Line], source: Source) -> ByColumn:
        """Return prompts, at once where all are as usual."""
        found = quick_prompts([line.data for line in lines], self._content_uids)
        return found or by_column([row for line in lines for row in self._rows([line], FORMATS["prompt"], source)])

    def heads(self, sources: Sequence[Source], most: int) -> Head:
        """Return what the first `most` records of each of some sources tell together; only the first few are looked into."""
        found = [self.head(source, most) for source in sources[:_LOOKED_INTO]]
        rows, fields, alike = (
            chain.from_iterable(part) for part in zip(*((h.rows, h.fields, h.alike) for h in found), strict=True)
        )
        whole = len(found) == len(sources) and all(head.whole for head in found)
        return Head([*rows], whole, dict.fromkeys(fields), sum(head.number for head in found), [*alike])

    def head(self, source: Source, most: int) -> Head:
        """Return what the first `most` records tell.

        A record of plain values and conversations is passed over where one with the same fields, of the same types and with the
        same turns, made a row: so would this.
        """
        rows: list[Row | BadRow] = []
        fields: dict[str, None] = {}
        seen: dict[object, range] = {}
        alike: list[int] = []
        number = 0
        for group, layout in self._groups(source, most):
            number += len(group)
            look = tuple(_look(line) for line in group)
            if look in seen:
                for place in seen[look]:
                    alike[place] += 1
                continue
            found = self._rows(group, layout, source)
            if None not in look and not any(isinstance(row, BadRow) for row in found):
                seen[look] = range(len(rows), len(rows) + len(found))
            rows += found
            alike += [1] * len(found)
            fields |= dict.fromkeys(name for line in group for name in line.data or ())
        return Head(rows, number < most, fields, number, alike)

    def uses(self, source: Source, most: int, of: Collection[str] | None = None) -> Mapping[str, bool]:
        """Return each field of the first `most` records with whether a row would be another one, or none, without it.

        What is only carried along as a column isn't used. `of` names the fields to tell of as they are after `rename`.
        """
        found: dict[str, bool] = {}
        for group, layout in self._groups(source, most):
            made = self._made(group, layout)
            for name in dict.fromkeys(name for line in group for name in line.data or ()):
                if of is not None and self.rename.get(name, name) not in of:
                    continue
                less = [
                    line._replace(data={key: value for key, value in (line.data or {}).items() if key != name})
                    for line in group
                ]
                found[name] = found.get(name, False) or (made is not None and self._made(less, layout) != made)
        return found

    def _made(self, group: Sequence[Line], layout: Format) -> list[Mapping[str, Any]] | None:
        """Return what the format makes of a group, without what it carries along; None where it makes nothing."""
        try:
            records = [self._renamed(line.data or {}) for line in group]
            return [self._parsed_by(layout, record) for record in layout.shape(records, self.take)]
        except ValueError:
            return None

    def _groups(self, source: Source, most: int | None) -> Iterator[tuple[Sequence[Line], Format]]:
        """Yield the records of each row, and how they are laid out."""
        layout, lines = self._begun(source, most)
        for group in layout.gather(lines, self._seen_in):
            yield group, layout

    def _begun(self, source: Source, most: int | None) -> tuple[Format, Iterator[Line]]:
        """Return how the records are laid out, and all of them, once the first ones are read; an empty source says nothing."""
        lines = islice(source.lines(), most)
        head = list(islice(lines, _DETECTED_BY))
        if not head:
            return self.format or FORMATS["table"], lines
        asked = {} if self.template is None else {"prompt": self.template}
        records = [{**self._renamed(line.data), **asked} for line in head if line.data is not None]
        if self.format is None:
            self.format, self.why = detect(records)
        if self._transcripts is None:
            named = [name for name in _PROMPTS if name in self.format.takes]
            self._transcripts = frozenset(name for name in named if are_transcripts(record.get(name) for record in records))
        return self.format, chain(head, lines)

    def _seen_in(self, line: Line) -> Record:
        """Return the record of a line as it is compared with others."""
        record = self._renamed(line.data or {})
        if self.template is not None:
            with suppress(ValueError):  # told once the record is read
                return {**record, "prompt": rendered(self.template, record)}
        return record

    def _rows(self, group: Sequence[Line], layout: Format, source: Source) -> list[Row | BadRow]:
        """Return the rows of records that belong together; all or none of them are bad."""
        given = [line.data for line in group if line.data is not None]
        if len(given) < len(group):
            broken = next(line for line in group if line.data is None)
            return [BadRow(source.place(broken), broken.error, broken.text)]
        try:
            return [*self._parsed(given, layout)]
        except ValueError as error:
            parameter = error.parameter if isinstance(error, _Misnamed) else ()
            text = writable(shown(given[0] if len(given) == 1 else given))
            return [BadRow(source.place(group[0]), str(error), text, parameter)]

    def _parsed(self, given: Sequence[Record], layout: Format) -> Iterator[Row]:
        """Yield the rows of a group of records; one record is known by its own content, whatever is made of it.

        Raises:
            ValueError: there is none.
        """
        for record in given if self.rename else ():
            self._refuse_collision(record)
        records = [self._renamed(record) for record in given] if self.rename else given
        texts = records_as_json(records)
        shaped = layout.shape(records, self.take)
        text = texts[0] if len(texts) == 1 else records_as_json(shaped[:1])[0]
        for place, record in enumerate(shaped):
            uid = self._uid(record, text, place)
            fields = self._parsed_by(layout, record)
            yield {"uid": uid, **fields, **_carried(record, layout.takes, fields)}

    def _parsed_by(self, layout: Format, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the format makes of a record, with the template's text as its prompt's only turn beside a system turn.

        Raises:
            ValueError: the format makes nothing of it, or a conversation, which no template can replace.
        """
        if self.template is None:
            return layout.parse(self._in_turns(record), self.turns)
        asked = rendered(self.template, record)
        fields = layout.parse({**record, "prompt": asked}, self.turns)
        given = [turn for turn in fields.get("prompt", ()) if turn["role"] != "user"]
        if "messages" in fields or any(turn["role"] != "system" for turn in given):
            raise ValueError("the record has a conversation, whose prompt a template can't replace")
        return {**fields, "prompt": [*given, Message(role="user", content=asked)]}

    def _in_turns(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the record with the turns of its transcripts, where the file's prompts are some."""
        if not self._transcripts:
            return record
        found = {name: record[name] for name in self._transcripts if is_transcript(record.get(name))}
        return {**record, **{name: parse_transcript(text) for name, text in found.items()}} if found else record

    def _renamed(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {self.rename.get(name, name): value for name, value in record.items()} if self.rename else record

    def _refuse_collision(self, record: Mapping[str, Any]) -> None:
        taken = {name for name in record if name not in self.rename} if self.rename else set()
        for old, new in self.rename.items():
            if old in record and new in taken:
                raise _Misnamed(f"`rename` puts `{old}` into `{new}`, which the record has already", "rename", old)
            taken |= {new} if old in record else set()

    def _uid(self, record: Mapping[str, Any], text: bytes, place: int) -> str:
        if self.uid_field is not None:
            return self._given_uid(record, place)
        return self._content_uids([text])[0]

    def _content_uids(self, texts: Sequence[bytes]) -> list[str]:
        """Return the uids of records with this JSON."""
        digests = [blake2b(text, digest_size=10).digest() for text in texts]
        uids = [digest.hex() for digest in digests]
        for place in self._contents.add(digests):
            self._again[uids[place]] += 1
            again = f"{uids[place]}\x1f{self._again[uids[place]]}".encode()
            uids[place] = blake2b(again, digest_size=10).hexdigest()
        return uids

    def _given_uid(self, record: Mapping[str, Any], place: int) -> str:
        value = record.get(self.uid_field or "")
        if value is None or value == "":
            raise _Misnamed(f"no `{self.uid_field}` to identify the row by", "uid")
        uid = f"{value}.{place}" if place else str(value)
        if self._given.add([blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=16).digest()]):
            raise ValueError(f"`{self.uid_field}` {uid!r} identifies another row already")
        return uid


def _look(line: Line) -> tuple[tuple[str, object], ...] | None:
    """Return the fields of a record with flags, the shapes of plain values and the roles of turns; None of any other.

    A text that may hold turns is such another.
    """
    if line.data is None:
        return None
    found: list[tuple[str, object]] = []
    for name, value in line.data.items():
        if isinstance(value, str):
            if value.lstrip()[:1] == "[" or is_transcript(value):
                return None
            found.append((name, ("text", bool(value.strip()))))
        elif not isinstance(value, (dict, list)):
            found.append((name, value if isinstance(value, bool) else shape_of(value)))
        elif isinstance(value, list) and value and all(map(_is_turn, value)):
            found.append((name, tuple(turn["role"] for turn in value)))
        else:
            return None
    return tuple(found)


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        return False
    return isinstance(value["role"], str) and isinstance(value["content"], str)


def _carried(record: Mapping[str, Any], taken: frozenset[str], fields: Mapping[str, Any]) -> Row:
    """Return the source's other fields; one that only bears the name of a caiflow column gets `source_` before it, or twice."""
    carried: Row = {}
    for name, value in record.items():
        if name in taken:
            continue
        if name not in CANONICAL:
            carried[name] = value
        elif name != "uid" and name not in fields and _is_canonical(value, CANONICAL[name]):
            carried[name] = parse_messages(value) if CANONICAL[name] == MESSAGES and value is not None else value
        else:
            free = f"source_{name}"
            carried[free if free not in record else f"source_{free}"] = value
    return carried


def _is_canonical(value: Any, shape: Shape) -> bool:
    if value is None:
        return True
    if shape == MESSAGES:
        try:
            parse_messages(value)
        except ValueError:
            return False
        return True
    return isinstance(value, str) if shape == "text" else isinstance(value, (int, float)) and not isinstance(value, bool)
