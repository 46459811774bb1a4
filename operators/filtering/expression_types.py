"""Whether an expression suits the types of the columns it names, as far as these are known before the run."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from caiflow.engine.rows.columns import ColumnType
from caiflow.operators.filtering.expression import FUNCTIONS, Expression, ExpressionError, Kind

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


def check_types(expression: Expression, types: Mapping[str, ColumnType | None]) -> None:
    """Check that what is done with each column suits its type; what isn't known suits anything.

    Raises:
        ExpressionError: it doesn't; the text says what to write instead.
    """
    whole = _kind(expression.tree, types)
    if whole not in ("flag", None):
        raise ExpressionError(f"the whole must be true or false, got {_KINDS[whole]}", "compare it with something")


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
        hint = "compare it with something" if "flag" in kinds else ""
        if found == "conversation" and "text" in kinds:
            hint = f"write `last({text})` for its last message"
        raise ExpressionError(f"{what} takes {' or '.join(_KINDS[k] for k in kinds)}, and `{text}` is {_KINDS[found]}", hint)

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
            for item in args:
                takes(f"`{name}`", item, *FUNCTIONS[name].takes)
            return FUNCTIONS[name].gives
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
            raise ExpressionError(said, "compare like with like, as in `words(last(prompt)) > 3 and topic == 'home'`")
