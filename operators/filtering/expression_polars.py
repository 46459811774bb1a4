"""Expressions computed: each part of a checked tree becomes the polars expression that means the same."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from caiflow.operators.filtering.expression import Expression, ExpressionError

if TYPE_CHECKING:
    import polars as pl

_COMPARE: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_ARITHMETIC: Mapping[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.Mod: "mod",
}


def compiled(expression: Expression, floats: Collection[str] = ()) -> pl.Expr:
    """Return the polars expression, of type boolean, never null: a row for which the result is null counts as false.

    `floats` are the columns that may hold NaN, which is as a missing value; to polars it is greater than any number.

    Raises:
        TypeError: the result can't be true or false.
    """
    return _Compiler(floats).value(expression.tree).fill_null(False)


class _Compiler:
    """Builds polars expressions from a checked tree."""

    def __init__(self, floats: Collection[str]) -> None:
        self._floats = floats

    def value(self, node: ast.expr) -> pl.Expr:
        import polars as pl

        match node:
            case ast.Name(id=name):
                return pl.col(name).fill_nan(None) if name in self._floats else pl.col(name)
            case ast.Constant(value=value):
                return pl.lit(value)
            case ast.BoolOp(op=op, values=values):
                parts = [self.value(item) for item in values]
                return pl.all_horizontal(parts) if isinstance(op, ast.And) else pl.any_horizontal(parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.value(operand).fill_null(False)
            case ast.UnaryOp(operand=operand):
                return -self.value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                made = _method(self.value(left), _ARITHMETIC[type(op)], self.value(right))
                return made if isinstance(op, ast.Add) else made.fill_nan(None)  # 0 / 0
            case ast.Call(func=ast.Name(id=name), args=args):
                return _FUNCTIONS[name](*map(self.value, args))
            case ast.Compare():
                return self.compared(node)
        raise ExpressionError(f"`{ast.unparse(node)}` isn't allowed")

    def compared(self, node: ast.Compare) -> pl.Expr:
        """Return a chain of comparisons: `1 < x < 5` is `1 < x and x < 5`."""
        import polars as pl

        lefts = [node.left, *node.comparators]
        pairs = zip(lefts, node.ops, node.comparators, strict=False)
        return pl.all_horizontal([self.pair(left, op, right) for left, op, right in pairs])

    def pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pl.Expr:
        """Return one comparison."""
        value = self.value(left)
        if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, (ast.List, ast.Tuple)):
            found = self.among(value, right.elts)
            return found if isinstance(op, ast.In) else ~found
        if _is_none(left) and isinstance(op, (ast.Eq, ast.NotEq)):
            value, right = self.value(right), left
        if _is_none(right):
            return value.is_null() if isinstance(op, (ast.Is, ast.Eq)) else value.is_not_null()
        return _method(value, _COMPARE[type(op)], self.value(right))

    def among(self, value: pl.Expr, items: Sequence[ast.expr]) -> pl.Expr:
        """Return whether a value is one of some; None among them stands for a missing one."""
        import polars as pl

        plain = [item for item in items if not _is_none(item)]
        found = pl.any_horizontal([value == self.value(item) for item in plain]) if plain else value.is_null() & False
        return found if len(plain) == len(items) else found.fill_null(False) | value.is_null()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _method(left: pl.Expr, name: str, right: pl.Expr) -> pl.Expr:
    result: pl.Expr = getattr(left, name)(right)
    return result


def _length(value: pl.Expr) -> pl.Expr:
    import polars as pl

    def measure(series: pl.Series) -> pl.Series:
        return series.list.len().cast(pl.Int64) if isinstance(series.dtype, pl.List) else series.str.len_chars().cast(pl.Int64)

    return value.map_batches(measure, return_dtype=pl.Int64, is_elementwise=True)


def _words(value: pl.Expr) -> pl.Expr:
    import polars as pl

    return value.str.count_matches(r"\S+").cast(pl.Int64)


def _horizontal(name: str) -> Callable[..., pl.Expr]:
    def build(*values: pl.Expr) -> pl.Expr:
        import polars as pl

        result: pl.Expr = getattr(pl, name)(*values)
        return pl.when(pl.all_horizontal([value.is_not_null() for value in values])).then(result)

    return build


_FUNCTIONS: Mapping[str, Callable[..., pl.Expr]] = {
    "length": _length,
    "words": _words,
    "turns": lambda value: value.list.len().cast(int),
    "last": lambda value: value.list.last().struct.field("content"),
    "lower": lambda value: value.str.to_lowercase(),
    "strip": lambda value: value.str.strip_chars(),
    "contains": lambda value, part: value.str.contains(part, literal=True),
    "startswith": lambda value, part: value.str.starts_with(part),
    "endswith": lambda value, part: value.str.ends_with(part),
    "abs": lambda value: value.abs(),
    "min": _horizontal("min_horizontal"),
    "max": _horizontal("max_horizontal"),
}
