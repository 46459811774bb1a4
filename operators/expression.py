"""Expressions over columns that a spec may hold, compiled from Python's syntax into polars; nothing of them is ever executed.

    p_chosen < 0.6 or (words(response) > 200 and not contains(lower(response), "sorry"))

Columns by name; numbers, texts, True, False, None; `and or not`, comparisons, `in [..]`, `is None`, `+ - * / %`, and the
functions in FUNCTIONS. Anything else is refused while the spec is checked. A row for which the result is null counts as false.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from caiflow.engine.names import nearest
from caiflow.engine.operator import ColumnType

if TYPE_CHECKING:
    import polars as pl

LONGEST = 2000
"""Longest expression, in characters."""
_DEEPEST = 32

FUNCTIONS: Mapping[str, tuple[str, int, int]] = {
    "length": ("characters of a text, or items of a list", 1, 1),
    "words": ("words of a text, as spaces divide it", 1, 1),
    "turns": ("messages of a conversation", 1, 1),
    "last": ("content of a conversation's last message", 1, 1),
    "lower": ("a text in lower case", 1, 1),
    "strip": ("a text without spaces around it", 1, 1),
    "contains": ("whether a text has another one in it", 2, 2),
    "startswith": ("whether a text begins with another one", 2, 2),
    "endswith": ("whether a text ends with another one", 2, 2),
    "abs": ("a number without its sign", 1, 1),
    "min": ("the least of some numbers", 2, 8),
    "max": ("the greatest of some numbers", 2, 8),
}
"""Each function's meaning and its least and most arguments."""

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


class ExpressionError(ValueError):
    """An expression says something that isn't part of the language; the text names it and what would do."""


class Expression(NamedTuple):
    """A checked expression: its text, its tree, and the columns it names."""

    text: str
    tree: ast.expr
    columns: tuple[str, ...]

    def check_types(self, types: Mapping[str, ColumnType | None]) -> None:
        """Check that what is done with each column suits its type; what isn't known suits anything.

        Raises:
            ExpressionError: it doesn't; the text says what to write instead.
        """
        whole = _kind(self.tree, types)
        if whole not in ("flag", None):
            raise ExpressionError(f"the whole must be true or false, got {_KINDS[whole]}; compare it with something")

    def polars(self) -> pl.Expr:
        """Return the polars expression, of type boolean, never null.

        Raises:
            TypeError: the result can't be true or false.
        """
        return _Compiler().value(self.tree).fill_null(False)


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
        raise ExpressionError(f"not an expression: {reason or type(error).__name__}, got {text[:80]!r}") from error
    columns: dict[str, None] = {}
    _check(tree, columns, 0)
    if not isinstance(tree, (ast.BoolOp, ast.Compare, ast.UnaryOp, ast.Name, ast.Call)):
        raise ExpressionError(f"the whole must be true or false, got {text!r}; compare it with something")
    return Expression(text, tree, tuple(columns))


def _check(node: ast.AST, columns: dict[str, None], depth: int) -> None:
    if depth > _DEEPEST:
        raise ExpressionError(f"nested more than {_DEEPEST} deep; split it into several rules")
    match node:
        case ast.Name(id=name):
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
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            inner = [node.left, node.right]
        case ast.List() | ast.Tuple():
            inner = list(node.elts)
        case _:
            raise ExpressionError(
                f"`{ast.unparse(node)}` isn't allowed; use columns, values, comparisons, {', '.join(FUNCTIONS)}"
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
        raise ExpressionError(f"no function `{name}`; {hint}")
    _, least, most = FUNCTIONS[name]
    if node.keywords or any(isinstance(item, ast.Starred) for item in node.args) or not least <= len(node.args) <= most:
        takes = str(least) if least == most else f"{least} to {most}"
        raise ExpressionError(f"`{name}` takes {takes} arguments, got `{ast.unparse(node)}`")


def _check_compare(node: ast.Compare) -> None:
    for op, right in zip(node.ops, node.comparators, strict=True):
        listed = isinstance(right, (ast.List, ast.Tuple))
        if isinstance(op, (ast.In, ast.NotIn)):
            if not listed or not all(isinstance(item, ast.Constant) for item in right.elts):  # type: ignore[attr-defined]
                raise ExpressionError(f"`in` takes a list of values, got `{ast.unparse(node)}`; for texts use contains(a, b)")
        elif isinstance(op, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise ExpressionError(f"`is` is for None only, got `{ast.unparse(node)}`")
        elif listed or isinstance(node.left, (ast.List, ast.Tuple)):
            raise ExpressionError(f"a list may only follow `in`, got `{ast.unparse(node)}`")


Kind = Literal["text", "number", "flag", "list", "conversation"]
_KINDS: Mapping[Kind, str] = {
    "text": "a text",
    "number": "a number",
    "flag": "true or false",
    "list": "a list",
    "conversation": "a conversation",
}
_COLUMNS: Mapping[ColumnType, Kind] = {
    "text": "text",
    "number": "number",
    "integer": "number",
    "flag": "flag",
    "texts": "list",
    "numbers": "list",
    "conversations": "list",
    "messages": "conversation",
}
_TAKES: Mapping[str, tuple[tuple[Kind, ...], Kind]] = {
    "length": (("text", "list", "conversation"), "number"),
    "words": (("text",), "number"),
    "turns": (("conversation",), "number"),
    "last": (("conversation",), "text"),
    "lower": (("text",), "text"),
    "strip": (("text",), "text"),
    "contains": (("text",), "flag"),
    "startswith": (("text",), "flag"),
    "endswith": (("text",), "flag"),
    "abs": (("number",), "number"),
    "min": (("number",), "number"),
    "max": (("number",), "number"),
}
"""What each function takes, and what it gives."""


def _kind(node: ast.expr, types: Mapping[str, ColumnType | None]) -> Kind | None:
    """Return what a checked expression gives; None where that isn't known.

    Raises:
        ExpressionError: a part gets what it can't take.
    """

    def takes(what: str, item: ast.expr, *kinds: Kind) -> None:
        found = _kind(item, types)
        if found is None or found in kinds:
            return
        text = ast.unparse(item)
        hint = "; compare it with something" if "flag" in kinds else ""
        if found == "conversation" and "text" in kinds:
            hint = f"; write `last({text})` for its last message"
        raise ExpressionError(f"{what} takes {' or '.join(_KINDS[k] for k in kinds)}, and `{text}` is {_KINDS[found]}{hint}")

    match node:
        case ast.Name(id=name):
            known = types.get(name)
            return _COLUMNS.get(known) if known is not None else None
        case ast.Constant(value=value):
            return _constant(value)
        case ast.BoolOp(values=values):
            for item in values:
                takes("`and` or `or`", item, "flag")
            return "flag"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            takes("`not`", operand, "flag")
            return "flag"
        case ast.UnaryOp(operand=operand):
            takes("`-`", operand, "number")
            return "number"
        case ast.BinOp(left=left, right=right):
            for item in (left, right):
                takes(f"`{ast.unparse(node)}`", item, "number", "flag")
            return "number"
        case ast.Call(func=ast.Name(id=name), args=args):
            kinds, given = _TAKES[name]
            for item in args:
                takes(f"`{name}`", item, *kinds)
            return given
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for op, one, other in zip(ops, [left, *comparators], comparators, strict=False):
                _check_pair(op, one, other, types)
            return "flag"
    return None


def _constant(value: object) -> Kind | None:
    if isinstance(value, bool):
        return "flag"
    return "text" if isinstance(value, str) else "number" if isinstance(value, (int, float)) else None


def _check_pair(op: ast.cmpop, one: ast.expr, other: ast.expr, types: Mapping[str, ColumnType | None]) -> None:
    """Raise ExpressionError where two sides of a comparison can't be compared."""
    left = _kind(one, types)
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(other, (ast.List, ast.Tuple)):
        right = {_kind(item, types) for item in other.elts} - {None}
    else:
        right = {_kind(other, types)} - {None}
    for found in right:
        if left is not None and left != found and {left, found} != {"number", "flag"}:
            said = f"`{ast.unparse(one)}` is {_KINDS[left]} and `{ast.unparse(other)}` {_KINDS[found] if found else ''}"
            raise ExpressionError(f"{said}; compare like with like, as in `words(last(prompt)) > 3 and topic == 'home'`")


class _Compiler:
    """Builds polars expressions from a checked tree."""

    def value(self, node: ast.expr) -> pl.Expr:
        import polars as pl

        match node:
            case ast.Name(id=name):
                return pl.col(name)
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
                return _method(self.value(left), _ARITHMETIC[type(op)], self.value(right))
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
            found = value.is_in([item.value for item in right.elts if isinstance(item, ast.Constant)])
            return found if isinstance(op, ast.In) else ~found
        if isinstance(right, ast.Constant) and right.value is None:
            return value.is_null() if isinstance(op, (ast.Is, ast.Eq)) else value.is_not_null()
        return _method(value, _COMPARE[type(op)], self.value(right))


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
        return result

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
