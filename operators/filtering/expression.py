"""Expressions over columns that a spec may hold, in Python's syntax; nothing of them is ever executed as such.

    p_chosen < 0.6 or (words(response) > 200 and not contains(lower(response), "sorry"))

Columns by name; numbers, texts, True, False, None; `and or not`, comparisons, `in [..]`, `is None`, `+ - * / %`, and the
functions in FUNCTIONS. Anything else is refused while the spec is checked, and so is what a column's type doesn't allow (by
`expression_types`). `expression_polars` computes them.

What is computed from a missing value (NaN and 0 / 0 are some, too) is missing, and a comparison with one is false (`!=` and
`not in` as well), but for those with None, which ask for it: `topic is None`, `topic in ["home", None]`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from caiflow.engine.errors import WrongValue, nearest

LONGEST = 2000
"""Longest expression, in characters."""
_DEEPEST = 32

Kind = Literal["text", "number", "flag", "list", "conversation"]


class Function(NamedTuple):
    """A function of the language: what it gives, its least and most arguments, and the kinds that each may be."""

    meaning: str
    least: int
    most: int
    takes: tuple[Kind, ...]
    gives: Kind


FUNCTIONS: Mapping[str, Function] = {
    "length": Function("characters of a text, or items of a list", 1, 1, ("text", "list", "conversation"), "number"),
    "words": Function("words of a text, as spaces divide it", 1, 1, ("text",), "number"),
    "turns": Function("messages of a conversation", 1, 1, ("conversation",), "number"),
    "last": Function("content of a conversation's last message", 1, 1, ("conversation",), "text"),
    "lower": Function("a text in lower case", 1, 1, ("text",), "text"),
    "strip": Function("a text without spaces around it", 1, 1, ("text",), "text"),
    "contains": Function("whether a text has another one in it", 2, 2, ("text",), "flag"),
    "startswith": Function("whether a text begins with another one", 2, 2, ("text",), "flag"),
    "endswith": Function("whether a text ends with another one", 2, 2, ("text",), "flag"),
    "abs": Function("a number without its sign", 1, 1, ("number",), "number"),
    "min": Function("the least of some numbers", 2, 8, ("number",), "number"),
    "max": Function("the greatest of some numbers", 2, 8, ("number",), "number"),
}
_OTHERWISE = {"null": "None", "true": "True", "false": "False"}
"""Words of other languages, and what stands for them here."""
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod)


class ExpressionError(WrongValue):
    """An expression says something that isn't part of the language; the text names it and what would do."""


class Expression(NamedTuple):
    """A checked expression: its text, its tree, and the columns it names."""

    text: str
    tree: ast.expr
    columns: tuple[str, ...]


def parse(text: str) -> Expression:
    """Return a checked expression; evaluates nothing and imports nothing heavy.

    Raises:
        ExpressionError: too long, not an expression, or something that isn't in the language.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"an expression has at most {LONGEST} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        foreign = re.search(r"[^=!<>]=[^=]|&&|\|\||!(?!=)", text)
        hint = "write `==` to compare, and `and`, `or`, `not` in words" if foreign else ""
        raise ExpressionError(f"not an expression: {reason or type(error).__name__}, got {text[:80]!r}", hint) from error
    columns: dict[str, None] = {}
    _check(tree, columns, 0)
    if not isinstance(tree, (ast.BoolOp, ast.Compare, ast.UnaryOp, ast.Name, ast.Call)):
        raise ExpressionError(f"the whole must be true or false, got {text!r}", "compare it with something")
    return Expression(text, tree, tuple(columns))


def is_value(node: ast.expr) -> bool:
    """Return whether a part of a tree is a plain value, such as 3, -3, "text" or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant)


def _check(node: ast.AST, columns: dict[str, None], depth: int) -> None:
    if depth > _DEEPEST:
        raise ExpressionError(f"nested more than {_DEEPEST} deep", "split it into several rules")
    match node:
        case ast.Name(id=name):
            if name in _OTHERWISE:
                raise ExpressionError(f"no column `{name}`", f"write {_OTHERWISE[name]}")
            columns[name] = None
            return
        case ast.Constant(value=value):
            if value is not None and type(value) not in (int, float, str, bool):
                raise ExpressionError(f"a value must be a number, a text, True, False or None, got {value!r}")
            return
        case ast.Call():
            _check_call(node)
            inner: list[ast.AST] = list(node.args)
        case ast.Compare():
            _check_compare(node)
            inner = [node.left, *node.comparators]
        case ast.BoolOp():
            inner = list(node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            inner = [node.operand]
        case ast.BinOp() if isinstance(node.op, ARITHMETIC):
            inner = [node.left, node.right]
        case ast.List() | ast.Tuple():
            inner = list(node.elts)
        case _:
            raise ExpressionError(
                f"`{ast.unparse(node)}` isn't allowed", f"use columns, values, comparisons, {', '.join(FUNCTIONS)}"
            )
    for child in inner:
        if isinstance(child, (ast.List, ast.Tuple)) and not isinstance(node, ast.Compare):
            raise ExpressionError(f"a list may only follow `in`, got `{ast.unparse(node)}`")
        _check(child, columns, depth + 1)


def _check_call(node: ast.Call) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in FUNCTIONS:
        near = nearest(name, FUNCTIONS)
        hint = f"did you mean {near}?" if near else f"the functions are {', '.join(FUNCTIONS)}"
        raise ExpressionError(f"no function `{name}`", hint)
    least, most = FUNCTIONS[name].least, FUNCTIONS[name].most
    if node.keywords or any(isinstance(item, ast.Starred) for item in node.args) or not least <= len(node.args) <= most:
        takes = str(least) if least == most else f"{least} to {most}"
        raise ExpressionError(f"`{name}` takes {takes} arguments, got `{ast.unparse(node)}`")


def _check_compare(node: ast.Compare) -> None:
    for op, right in zip(node.ops, node.comparators, strict=True):
        listed = isinstance(right, (ast.List, ast.Tuple))
        if isinstance(op, (ast.In, ast.NotIn)):
            if not listed or not all(map(is_value, right.elts)):  # type: ignore[attr-defined]
                raise ExpressionError(f"`in` takes a list of values, got `{ast.unparse(node)}`", "for texts use contains(a, b)")
        elif isinstance(op, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise ExpressionError(f"`is` is for None only, got `{ast.unparse(node)}`")
        elif listed or isinstance(node.left, (ast.List, ast.Tuple)):
            raise ExpressionError(f"a list may only follow `in`, got `{ast.unparse(node)}`")
