"""Expressions: what they mean, and everything they refuse."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.rows.columns import ColumnType
from caiflow.operators.filtering.expression import ExpressionError, parse
from caiflow.operators.filtering.expression_polars import compiled
from caiflow.operators.filtering.expression_types import check_types

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "last one"}]
FRAME = pl.DataFrame(
    {
        "text": ["Sorry, no.", "plain", None],
        "n": [1, 5, None],
        "x": [0.5, -2.0, 3.0],
        "flag": [True, False, None],
        "prompt": [TURNS, TURNS[:1], None],
    }
)


def truth(text: str) -> list[bool]:
    return FRAME.select(compiled(parse(text)).alias("is")).to_series().to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n > 1", [False, True, False]),
        ("0 < n <= 1", [True, False, False]),
        ("n * 2 + 1 == 3", [True, False, False]),
        ("n % 2 == 1 and n / 2 > 1", [False, True, False]),
        ("-x > 1", [False, True, False]),
        ("abs(x) == 2 or x > 2", [False, True, True]),
        ("max(x, n) == 5", [False, True, False]),
        ("not n > 1", [True, False, True]),
        ("text is None", [False, False, True]),
        ("text is not None", [True, True, False]),
        ("text == 'plain'", [False, True, False]),
        ("text in ['plain', 'other']", [False, True, False]),
        ("n not in [5]", [True, False, False]),
        ("n in [5, None]", [False, True, True]),
        ("n not in [5, None]", [True, False, False]),
        ("n in [None]", [False, False, True]),
        ("x in [-2, 3]", [False, True, True]),
        ("n in [1.0, 7.5]", [True, False, False]),
        ("n != 1", [False, True, False]),
        ("None != n", [True, True, False]),
        ("None == n", [False, False, True]),
        ("max(x, n) > 0", [True, True, False]),
        ("min(x, n) < 1", [True, True, False]),
        ("contains(lower(text), 'sorry')", [True, False, False]),
        ("startswith(text, 'Sorry') or endswith(text, 'ain')", [True, True, False]),
        ("length(text) == 5", [False, True, False]),
        ("words(text) == 2", [True, False, False]),
        ("turns(prompt) == 2", [True, False, False]),
        ("last(prompt) == 'last one'", [True, False, False]),
        ("length(prompt) == 1", [False, True, False]),
        ("flag", [True, False, False]),
        ("not flag", [False, True, True]),
        ("contains(text, '.')", [True, False, False]),
    ],
)
def test_meaning(text: str, expected: list[bool]) -> None:
    assert truth(text) == expected


def test_columns_are_those_named() -> None:
    assert parse("lower(a) == b and not c > a").columns == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('true')", "no function `__import__\\('os'\\).system`"),
        ("text.upper() == 'A'", "no function `text.upper`"),
        ("text.real > 1", "`text.real` isn't allowed"),
        ("n[0] > 1", "isn't allowed"),
        ("(lambda: 1)() > 0", "no function"),
        ("[n for n in x] == 1", "isn't allowed"),
        ("n ** 9999 > 1", "isn't allowed"),
        ("(n := 3) > 1", "isn't allowed"),
        ("f'{n}' == 'a'", "isn't allowed"),
        ("n if x else flag", "isn't allowed"),
        ("b'x' == text", "a value must be"),
        ("1j == n", "a value must be"),
        ("lenght(text) > 1", "no function `lenght`; did you mean length?"),
        ("length() > 1", "`length` takes 1 arguments"),
        ("length(*text) > 1", "`length` takes 1 arguments"),
        ("contains(text, part='x')", "`contains` takes 2 arguments"),
        ("'a' in text", "for texts use contains"),
        ("text in [n]", "`in` takes a list of values"),
        ("n == [1]", "a list may only follow `in`"),
        ("length([1]) > 0", "a list may only follow `in`"),
        ("n is 1", "`is` is for None only"),
        ("n + 1", "must be true or false"),
        ("'text'", "must be true or false"),
        ("n >", "not an expression"),
        ("n = 1", "not an expression: .*; write `==` to compare"),
        ("n == 1 && x == 2", "write `==` to compare, and `and`"),
        ("n == null", "no column `null`; write None"),
        ("flag == true", "no column `true`; write True"),
        ("import os", "not an expression"),
        ("", "not an expression"),
        ("n > 1\x00", "not an expression"),
        ("(" * 300 + "n" + ")" * 300, "not an expression"),
        ("not " * 200 + "flag", "deep"),
        ("n > " + "1" * 3000, "at most 2000 characters"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_refused_or_compiled_quickly(text: str) -> None:
    start = time.process_time()  # of this process alone: other work on the machine doesn't count
    with contextlib.suppress(ExpressionError):
        compiled(parse(text))
    assert time.process_time() - start < 1


@given(st.lists(st.tuples(st.integers(-100, 100), st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_arithmetic_is_that_of_python(pairs: list[tuple[int, float]]) -> None:
    frame = pl.DataFrame({"a": [a for a, _ in pairs], "b": [b for _, b in pairs]})
    found = frame.select(compiled(parse("a - b * 2 < abs(a) + min(a, b) or a % 7 == 3"))).to_series().to_list()
    expected: list[Any] = [a - b * 2 < abs(a) + min(a, b) or a % 7 == 3 for a, b in pairs]
    assert found == expected


TYPES: dict[str, ColumnType | None] = {
    "prompt": "messages",
    "response": "text",
    "responses": "texts",
    "p_chosen": "number",
    "good": "flag",
    "open": None,
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("turns(prompt)", "the whole must be true or false, got a number"),
        ("response", "the whole must be true or false, got a text"),
        ("words(prompt) > 8", "`words` takes a text, and `prompt` is a conversation; write `last(prompt)`"),
        ("contains(prompt, 'bank')", "write `last(prompt)` for its last message"),
        ("turns(prompt) > 'a'", "`turns(prompt)` is a number and `'a'` a text; compare like with like"),
        ("good and p_chosen", "`and` or `or` takes true or false, and `p_chosen` is a number; compare it"),
        ("not response", "`not` takes true or false, and `response` is a text"),
        ("response in ['a', 3]", "`response` is a text and `['a', 3]` a number"),
        ("-response < 3", "`-` takes a number, and `response` is a text"),
        ("lower(responses) == 'a'", "`lower` takes a text, and `responses` is a list"),
    ],
)
def test_what_a_column_is_not_made_for_is_refused(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        check_types(parse(text), TYPES)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "good or not good",
        "p_chosen < 0.6 or (words(response) > 200 and not contains(lower(response), 'sorry'))",
        "1 < length(prompt) <= 3 and length(responses) + 1 == 3",
        "response is None or response in ['a', 'b'] or p_chosen == None",
        "open and words(open) > 3 and open > 2",
        "min(p_chosen, 1) == 1 and good == True",
        "unknown == 3",
    ],
)
def test_what_suits_the_columns_passes(text: str) -> None:
    check_types(parse(text), TYPES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 0", [False, False, True]),
        ("x < 2", [False, False, True]),
        ("x != 1", [False, False, False]),
        ("not x > 0", [True, True, False]),
        ("x is None", [True, True, False]),
        ("x in [1.0, None]", [True, True, True]),
        ("max(x, 0) >= 0", [False, False, True]),
        ("n / n > 0", [False, True, True]),
        ("x * 2 + n > 3", [False, False, True]),
        ("n / 0 > 9", [False, True, True]),
    ],
)
def test_nan_is_as_a_missing_value(text: str, expected: list[bool]) -> None:
    frame = pl.DataFrame({"x": [float("nan"), None, 1.0], "n": [0, 1, 2]})
    assert frame.select(compiled(parse(text), ["x"]).alias("is")).to_series().to_list() == expected
