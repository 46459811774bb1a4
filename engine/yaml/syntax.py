"""What a syntax error of YAML means, in words: where the mistake was made, and what to write there. Never reads YAML."""

from __future__ import annotations

from typing import Any, NamedTuple

_CLOSING = {"[": "]", "{": "}"}


class Told(NamedTuple):
    """A syntax error: the place (line and column from 0), what is wrong, and what to do."""

    line: int
    column: int
    message: str
    hint: str


def told(error: Any, text: str) -> Told:
    """Return what a marked error of the parser says of a text; where it found out isn't always where the mistake is."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    said = " ".join(filter(None, (error.context, error.problem)))
    if here[column : column + 1] == "\t":
        return Told(line, column, "there is a tab, and YAML is indented by spaces", "replace tabs by spaces")
    if context is None:
        return Told(line, column, said, _hint(said))
    if "quoted scalar" in said and "end of stream" in said:
        return Told(context.line, context.column, "the quote that begins here doesn't end", "close it, or leave it out")
    if "a block mapping" in said and here[:column].strip() == "":
        return _misplaced(lines, line, column, context) or Told(line, column, said, _hint(said))
    if "a flow" in said and context.line < len(lines):
        opened = lines[context.line][context.column : context.column + 1]
        where = f"the `{opened}` of line {context.line + 1}, column {context.column + 1}, isn't closed by here"
        hint = (
            f"check the brackets: close it with `{_CLOSING.get(opened)}`, divide entries by commas, quote texts that hold marks"
        )
        return Told(line, column, where, hint) if opened in _CLOSING else Told(line, column, said, _hint(said))
    return Told(line, column, said, _hint(said))


def _misplaced(lines: list[str], line: int, column: int, begun: Any) -> Told | None:
    """Tell of a line that stands neither at its level nor below it; None where something else is wrong with it."""
    if column == begun.column:
        dash = lines[line][column : column + 2] == "- " if line < len(lines) else False
        return Told(line, column, "an entry of a list stands among keys", "remove the `- ` before it") if dash else None
    above = range(min(line, len(lines)) - 1, -1, -1)
    before = next((place for place in above if lines[place].strip() and lines[place].lstrip()[0] != "#"), line)
    level = f"its level, from line {begun.line + 1} on, in column {begun.column + 1}"
    message = f"this line begins in column {column + 1}, and {level}"
    return Told(line, column, message, f"indent the lines of one level alike: this one, or line {before + 1} before it")


def _hint(said: str) -> str:
    if "start any token" in said:
        return "quote the text, or replace tabs by spaces"
    if "mapping values are not allowed" in said:
        return "quote a text that holds `: `, and check the indentation"
    if "could not find expected ':'" in said:
        return "write `KEY: VALUE`, with a colon and a space"
    return "check the indentation, the brackets and the quotes around here"
