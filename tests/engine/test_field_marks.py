"""What the values of a parameter model mean, wherever they stand in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from caiflow.engine.field_marks import Mark, marks, marks_as_written
from caiflow.engine.operator import ColumnName, ModelRef, ModelRefOrName, Params, RowsRef, Strict

File = Annotated[str, Field(json_schema_extra={"x-path": "file"})]


class Inner(Strict):
    """A group."""

    column: ColumnName | None = None
    judge: ModelRef | None = None


class Outer(Params):
    """Every way to hold a mark."""

    one: RowsRef
    maybe: ModelRef | None = None
    many: tuple[RowsRef, ...] = ()
    pair: tuple[RowsRef, ModelRef] | None = None
    parts: dict[RowsRef, float] = Field(default_factory=dict)
    named: dict[str, ModelRef] = Field(default_factory=dict)
    inner: Inner | None = None
    rules: list[Literal["plain"] | Inner] = Field(default_factory=list)
    files: tuple[str, ...] = Field(default=(), json_schema_extra={"x-path": "file"})
    either: Literal["all"] | File = "all"
    column: ColumnName = "response"
    mixed: dict[ModelRefOrName, float | Inner] = Field(default_factory=dict)


def test_marks_are_found_wherever_they_stand() -> None:
    outer = Outer.model_validate(
        {
            "one": "a", "maybe": "m", "many": ["b", "c"], "pair": ["d", "n"], "parts": {"e": 1}, "named": {"x": "o"},
            "inner": {"column": "text"}, "rules": ["plain", {"judge": "p"}], "files": ["f.txt"], "either": "g.txt",
            "mixed": {"q": 1, "any": {"judge": "r"}},
        }
    )  # fmt: skip
    assert list(marks(outer)) == [
        Mark(("one",), "a", "x-ref", "rows"),
        Mark(("maybe",), "m", "x-ref", "model"),
        Mark(("many", 0), "b", "x-ref", "rows"),
        Mark(("many", 1), "c", "x-ref", "rows"),
        Mark(("pair", 0), "d", "x-ref", "rows"),
        Mark(("pair", 1), "n", "x-ref", "model"),
        Mark(("parts", "e"), "e", "x-ref", "rows", key=True),
        Mark(("named", "x"), "o", "x-ref", "model"),
        Mark(("inner", "column"), "text", "x-column", True),
        Mark(("rules", 1, "judge"), "p", "x-ref", "model"),
        Mark(("files", 0), "f.txt", "x-path", "file"),
        Mark(("either",), "g.txt", "x-path", "file"),
        Mark(("column",), "response", "x-column", True),
        Mark(("mixed", "q"), "q", "x-ref", "model", key=True),
        Mark(("mixed", "any", "judge"), "r", "x-ref", "model"),
    ]


def test_defaults_that_are_no_reference_carry_no_mark() -> None:
    assert [mark.value for mark in marks(Outer(one="a"), "x-ref", "x-path")] == ["a"]


def test_what_a_model_refuses_is_read_as_far_as_it_goes() -> None:
    given = {
        "one": 3,
        "many": ["b", None],
        "parts": {"e": "much"},
        "inner": {"column": "text", "other": 1},
        "rules": [{"judge": "p"}],
        "mixed": {"q": "much", "any": {"judge": "r", "other": 1}},
    }
    assert [(mark.path, mark.value) for mark in marks_as_written(Outer, given)] == [
        (("many", 0), "b"),
        (("parts", "e"), "e"),
        (("inner", "column"), "text"),
        (("rules", 0, "judge"), "p"),
        (("mixed", "q"), "q"),
        (("mixed", "any", "judge"), "r"),
    ]
