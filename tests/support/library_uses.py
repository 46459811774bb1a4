"""What our source uses of another library, found in it: names, attributes, calls with their arguments, methods overridden.

Reads syntax trees and imports nothing. A use is followed from an imported name, from what is annotated with one, from what
one returns or holds, as far as the library's own sources (library_sources.py) tell its type.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.library_sources import Found, Library


class Use(NamedTuple):
    """Where (file:line) our source uses `what` (a dotted name), and what is wrong with that; empty where it is right."""

    where: str
    what: str
    wrong: str = ""


def uses(folders: Sequence[Path], library: Library) -> list[Use]:
    """Return each use of the library in the Python files below the folders, held against the library's sources."""
    found: list[Use] = []
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if library.name in text:
                found += _File(path, ast.parse(text), library).found
    return found


class _File:
    """The uses in one file; names are told by scope, those of a function on top of those around it."""

    def __init__(self, path: Path, tree: ast.Module, library: Library) -> None:
        self._path, self._library = path, library
        self.found: list[Use] = []
        self._selves: dict[str, Found] = {}
        self._block(tree.body, {})

    def _block(self, body: Sequence[ast.stmt], names: dict[str, Found]) -> None:
        for statement in body:
            self._statement(statement, names)

    def _statement(self, node: ast.stmt, names: dict[str, Found]) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, names)
        elif isinstance(node, ast.ClassDef):
            self._class(node, names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node, names)
        else:
            self._expressions(node, names)
            self._assign(node, names)
            for field in ("body", "orelse", "finalbody"):
                self._block(getattr(node, field, []), names)
            for handler in getattr(node, "handlers", []):
                if handler.type is not None:
                    self._visit(handler.type, names)
                self._block(handler.body, names)

    def _import(self, node: ast.Import | ast.ImportFrom, names: dict[str, Found]) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                module, name = node.module or "", alias.name
                if node.level or module.partition(".")[0] != self._library.name:
                    continue
                found, what = self._library.find(module, name), f"{module}.{name}"
            else:
                if alias.name.partition(".")[0] != self._library.name:
                    continue
                what = alias.name
                found = self._library.module(alias.name)
            self._note(node, what, "" if found else f"the library has no {what}")
            if found:
                local = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else self._library.name)
                names[local] = found if alias.asname or isinstance(node, ast.ImportFrom) else self._library.root

    def _class(self, node: ast.ClassDef, names: dict[str, Found]) -> None:
        bases = [found for base in node.bases if (found := self._visit(base, names))]
        self._selves = {}
        inner = dict(names)
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and bases and self._is_called(bases[0], method.name):
                theirs = [self._library.member(base, method.name) for base in bases]
                parent = next((one for one in theirs if one is not None), None)
                if parent is not None:
                    wrong = self._library.overrides(parent, method)
                    self._note(method, f"{bases[0].name}.{method.name} (overridden)", wrong)
        self._block(sorted(node.body, key=lambda one: getattr(one, "name", "") != "__init__"), inner)
        self._selves = {}
        names.pop(node.name, None)

    def _is_called(self, base: Found, name: str) -> bool:
        """Say whether the library calls a method of ours by the name of one of its own."""
        return self._library.makes_itself(base) if name == "__init__" else not name.startswith("__")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, names: dict[str, Found]) -> None:
        inner = dict(names)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            inner.pop(argument.arg, None)
            if argument.annotation is not None and (held := self._annotated(argument.annotation, names)):
                inner[argument.arg] = held
        self._block(node.body, inner)

    def _annotated(self, node: ast.expr, names: dict[str, Found]) -> Found | None:
        """Return what a value annotated so is, where the annotation names something of the library."""
        found = None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("list", "Sequence"):
            held = self._annotated(node.slice, names)
            return held.many() if held else None
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left, names) or self._annotated(node.right, names)
        if isinstance(node, (ast.Name, ast.Attribute)):
            found = self._peek(node, names)
        return found.instance() if found and isinstance(found.node, ast.ClassDef) else None

    def _assign(self, node: ast.stmt, names: dict[str, Found]) -> None:
        pairs: list[tuple[ast.expr, Found | None]] = []
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = list(self._pairs(node.targets[0], node.value, names))
        elif isinstance(node, ast.AnnAssign):
            pairs = [(node.target, self._annotated(node.annotation, names))]
        elif isinstance(node, ast.For):
            held = self._peek(node.iter, names)
            pairs = [(node.target, held.one() if held else None)]
        for target, held in pairs:
            if isinstance(target, ast.Name):
                if held is None:
                    names.pop(target.id, None)
                else:
                    names[target.id] = held
            elif (
                isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self" and held
            ):
                self._selves[target.attr] = held

    def _pairs(self, target: ast.expr, value: ast.expr, names: dict[str, Found]) -> Iterator[tuple[ast.expr, Found | None]]:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                yield one, self._peek(other, names)
        elif isinstance(target, ast.Tuple) and len(target.elts) == 1:
            held = self._peek(value, names)
            yield target.elts[0], held.one() if held else None
        elif isinstance(target, ast.Tuple):
            for one in target.elts:
                yield one, None
        else:
            yield target, self._peek(value, names)

    def _expressions(self, node: ast.stmt, names: dict[str, Found]) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody", "handlers", "annotation"):
                continue
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.withitem):
                    self._visit(one.context_expr, names)
                elif isinstance(one, ast.expr):
                    self._visit(one, names)

    def _visit(self, node: ast.expr, names: dict[str, Found]) -> Found | None:
        """Note the uses in an expression and return what it is, where that is the library's."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            if _is_self(node.value):
                return self._selves.get(node.attr)
            return self._attribute(node, self._visit(node.value, names))
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.Subscript):
            self._visit(node.slice, names)
            held = self._visit(node.value, names)
            return held.one() if held else None
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self._comprehension(node, names)
        if isinstance(node, ast.IfExp):
            self._visit(node.test, names)
            whether, other = self._visit(node.body, names), self._visit(node.orelse, names)
            return whether or other
        if isinstance(node, ast.Lambda):
            self._visit(node.body, names)
            return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._visit(child, names)
        return None

    def _peek(self, node: ast.expr, names: dict[str, Found]) -> Found | None:
        """Return what an expression is, noting nothing."""
        kept = len(self.found)
        held = self._visit(node, names)
        del self.found[kept:]
        return held

    def _attribute(self, node: ast.Attribute, owner: Found | None) -> Found | None:
        if owner is None or owner.plural or node.attr.startswith("__"):
            return None
        member = self._library.member(owner, node.attr)
        closed = owner.node is not None and self._library.closed(owner)
        if member is None and not closed:
            return None
        self._note(node, f"{owner.name}.{node.attr}", "" if member else f"{owner.name} has no {node.attr}")
        return member

    def _call(self, node: ast.Call, names: dict[str, Found]) -> Found | None:
        for argument in node.args:
            self._visit(argument.value if isinstance(argument, ast.Starred) else argument, names)
        for keyword in node.keywords:
            self._visit(keyword.value, names)
        called = self._visit(node.func, names)
        if called is None or called.plural:
            return None
        given = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        splat = any(isinstance(one, ast.Starred) for one in node.args) or len(given) < len(node.keywords)
        wrong = self._library.refuses(called, len(node.args), given, splat=splat)
        if wrong is not None:
            self._note(node, f"{called.name}({', '.join(['*'] * len(node.args) + given)})", wrong)
        return self._library.returned(called)

    def _comprehension(self, node: ast.expr, names: dict[str, Found]) -> None:
        inner = dict(names)
        for generator in node.generators:  # type: ignore[attr-defined]
            held = self._visit(generator.iter, inner)
            if isinstance(generator.target, ast.Name):
                inner.pop(generator.target.id, None)
                if held and held.one():
                    inner[generator.target.id] = held.one()  # type: ignore[assignment]
            for condition in generator.ifs:
                self._visit(condition, inner)
        for part in ("elt", "key", "value"):
            if (value := getattr(node, part, None)) is not None:
                self._visit(value, inner)

    def _note(self, node: ast.AST, what: str, wrong: str) -> None:
        self.found.append(Use(f"{self._path}:{node.lineno}", what, wrong))  # type: ignore[attr-defined]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
