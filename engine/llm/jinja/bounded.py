"""Jinja under a bound: a template that anybody wrote ends soon and stays small, or is refused in words.

Owns how much a template may do in one rendering: steps (turns of loops, calls) and characters that it makes or looks through.
Jinja's own sandbox keeps it from the machine. Knows nothing of what templates are for.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 100_000
"""Turns of loops and calls in one rendering."""
MOST_CHARACTERS = 20_000_000
"""Characters made or looked through in one rendering."""
LONGEST = 1_000_000
"""Characters of a template."""
_MOST_NUMBER = 100_000
_WIDTH = re.compile(r"\{[^{}]*(?:\d{4}|\{)|%(?:\(\w*\))?[-+ #0-9.]*(?:\d{4}|\*)")
_ITEM = 40
"""What an item of a list counts for, in characters: looking at one takes about as long."""
_GROWING = {"join", "replace", "indent", "wordwrap", "urlize", "format", "xmlattr"}


class _Spent(threading.local):
    """What the rendering that goes on in this thread has done."""

    steps = 0
    characters = 0


_spent = _Spent()


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which each thing that takes time or memory counts, before it is done."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        said = options.pop("finalize", None)
        super().__init__(finalize=(lambda value: measured(said(value))) if said else measured, **options)
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.globals.pop("lipsum")
        self.filters |= {"counted": _counted, "measured": measured, "concatenated": _concatenated}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST:
            raise SecurityError(f"the template has {len(source):,} characters, at most {LONGEST:,} are read")
        try:
            tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        except RecursionError:
            raise SecurityError("the template is nested too deep") from None
        return tree

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return how a text is filled in, where `value` does that; none of its fields is wide."""
        made = super().wrap_str_format(value)
        if made is not None:
            _check_widths(value.__self__)
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out an operation once its result is known to be small."""
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        elif operator == "**" and not (_small(left, 1000) and _small(right, 100)):
            raise SecurityError("a power is too large to be worked out")
        elif operator == "*":
            _check_product(left, right)
        elif operator == "+":
            measured((left, right))
        return measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as its parent has it
        """Call what the template calls, counted."""
        _step(1)
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_growth(name, owner, (*args, *kwargs.values()))
        return measured(super().call(__context, __obj, *args, **kwargs))


@contextmanager
def bounded() -> Iterator[None]:
    """Begin a rendering's count; what the template asks beyond it raises Jinja's SecurityError."""
    _spent.steps = _spent.characters = 0
    yield


def measured(value: Any) -> Any:
    """Return the value once its characters and items have been counted."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str | bytes):
            _characters(len(one))
        elif isinstance(one, Mapping):
            _characters(_ITEM * (1 + len(one)))
            stack.extend(one.keys())
            stack.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            _characters(_ITEM * (1 + len(one)))
            stack.extend(one)
        elif isinstance(one, int) and one.bit_length() > 10_000:
            raise SecurityError("a number of the template is too large")
    return value


class _Counting(NodeTransformer):
    """Puts a count into each loop, and a measure before what joins and compares texts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's names
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        written += sum(len(str(constant.value)) for constant in node.find_all(nodes.Const))
        self.generic_visit(node)
        node.iter = _filter(node.iter, "counted", nodes.Const(written))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "concatenated")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for operand in node.ops:
            if operand.op in ("eq", "ne", "in", "notin", "lt", "lteq", "gt", "gteq"):
                operand.expr = _filter(operand.expr, "measured")
        return node


def _filter(node: nodes.Node, name: str, *given: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(given), [], None, None, lineno=node.lineno)


def _counted(value: Any, written: int) -> Any:
    """Return what a loop goes through, its turns counted, and the `written` characters of each."""
    if isinstance(value, Undefined):
        return value
    items = value if isinstance(value, list | tuple | str) else list(value)
    _step(len(items))
    _characters(written * len(items))
    return items


def _concatenated(parts: Iterable[Any]) -> str:
    return "".join(str(measured(part)) for part in parts)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with what goes into it and comes out of it counted."""

    @wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        _step(1)
        given = [*(arg for arg in args if not hasattr(arg, "environment") and not hasattr(arg, "filters")), *kwargs.values()]
        _check_growth(name, given[0] if given else "", given[1:])
        for value in given:
            measured(value)
        return measured(function(*args, **kwargs))

    return within


def _check_growth(name: str, text: Any, given: Iterable[Any]) -> None:
    """Refuse a call whose result may be far larger than what goes in."""
    rest = list(given)
    for number in rest:
        if isinstance(number, int) and not _small(number, _MOST_NUMBER):
            raise SecurityError(f"`{name}` is given too large a number, {str(number)[:20]}")
    if name in ("format", "format_map", "__mod__", "__format__"):
        _check_widths(str(measured(text)))
    if name in _GROWING:
        places = len(text) if hasattr(text, "__len__") else MOST_STEPS
        many = max((len(part) for part in rest if hasattr(part, "__len__")), default=1)
        _characters(places * many if isinstance(text, str) or name == "join" else places)


def _check_widths(text: str) -> None:
    if _WIDTH.search(text):
        raise SecurityError("a text to be filled in asks for a width of thousands")


def _check_product(left: Any, right: Any) -> None:
    for text, times in ((left, right), (right, left)):
        if hasattr(text, "__len__") and isinstance(times, int):
            _characters(len(text) * max(0, times))


def _small(number: Any, most: int) -> bool:
    return isinstance(number, int | float) and abs(number) <= most


def _step(number: int) -> None:
    _spent.steps += number
    if _spent.steps > MOST_STEPS:
        raise SecurityError(f"the template takes more than {MOST_STEPS:,} steps")


def _characters(number: int) -> None:
    _spent.characters += number
    if _spent.characters > MOST_CHARACTERS:
        raise SecurityError(f"the template makes or reads more than {MOST_CHARACTERS:,} characters")
