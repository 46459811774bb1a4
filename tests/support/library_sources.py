"""The definitions in a library's unpacked sources, found without importing it.

Follows imports from one of its modules to another, stars and blocks under TYPE_CHECKING included, members up through base
classes, and annotations to the classes they name. Knows nothing of what is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

_OPEN = ("__getattr__", "__getattribute__")
_PLURAL = ("list", "List", "Sequence", "tuple", "Tuple", "Iterable", "set")


@dataclass(frozen=True)
class Found:
    """A definition: its node in its module, or (None) a module; `held`: an instance of the class, `plural`: several of them."""

    name: str
    module: str
    node: ast.AST | None = None
    held: bool = False
    plural: bool = False

    def instance(self) -> Found:
        return replace(self, held=True)

    def many(self) -> Found:
        return replace(self, plural=True)

    def one(self) -> Found | None:
        return replace(self, plural=False) if self.plural else None


class Library:
    """A package below `folder`, by its name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder
        self.root = Found(name, name)

    def module(self, dotted: str) -> Found | None:
        """Return a module of that name."""
        return Found(dotted, dotted) if self._text(dotted) is not None else None

    @cache  # noqa: B019 - a library lives as long as its test
    def find(self, module: str, name: str) -> Found | None:
        """Return what `from module import name` gives."""
        return self._find(module, name, frozenset())

    def _find(self, module: str, name: str, seen: frozenset[tuple[str, str]]) -> Found | None:
        text = self._text(module)
        if (module, name) in seen or text is None:
            return None
        if name not in text and "import *" not in text:  # parsing takes far longer than looking
            return self.module(f"{module}.{name}")
        if module.endswith("_pb2"):  # protobuf makes what is named in the text when it is imported
            return Found(name, module, ast.Pass())
        seen |= {(module, name)}
        stars = []
        for node in self._top(module):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
                return Found(name, module, node)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in _targets(node):
                return self._assigned(module, name, node, seen)
            if isinstance(node, ast.ImportFrom):
                source = self._absolute(module, node)
                for alias in node.names:
                    if alias.name == "*":
                        stars.append(source)
                    elif (alias.asname or alias.name) == name:
                        found = self._find(source, alias.name, seen) or self.module(f"{source}.{alias.name}")
                        if found or source.partition(".")[0] != self.name:
                            return found or Found(name, source, ast.Pass())
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if (alias.asname or alias.name.partition(".")[0]) == name:
                        return self.module(alias.name) or Found(name, alias.name, ast.Pass())
        whole = self.module(f"{module}.{name}")
        return whole or next((found for star in stars if (found := self._find(star, name, seen))), None)

    def member(self, owner: Found, name: str) -> Found | None:
        """Return the attribute of a module, a class or an instance; what is known to be a value of unknown type too."""
        if owner.node is None:
            return self.find(owner.module, name)
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for kind in self._lineage(owner):
            assert isinstance(kind.node, ast.ClassDef)
            for node in _flat(kind.node.body):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                    method = Found(f"{owner.name}.{name}", kind.module, node)
                    return self._result(method) if _is_property(node) else method
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in _targets(node):
                    return self._value(kind, name, node)
            for method in kind.node.body:
                if isinstance(method, ast.FunctionDef):
                    for node in ast.walk(method):
                        if isinstance(node, (ast.Assign, ast.AnnAssign)) and f"self.{name}" in _targets(node):
                            return self._own(kind, name, method, node)
        return None

    def closed(self, owner: Found) -> bool:
        """Say whether all members of a class are known: every base is found, and none answers to any name."""
        if not isinstance(owner.node, ast.ClassDef):
            return False
        lineage = list(self._lineage(owner))
        known = {kind.node for kind in lineage}
        for kind in lineage:
            assert isinstance(kind.node, ast.ClassDef)
            if any(isinstance(one, ast.FunctionDef) and one.name in _OPEN for one in kind.node.body):
                return False
            for base in kind.node.bases:
                found = self._named(kind.module, base)
                if (found is None or found.node not in known) and _last(base) not in _PLAIN_BASES:
                    return False
        return True

    def refuses(self, called: Found, positional: int, keywords: Sequence[str], *, splat: bool) -> str | None:
        """Return why a call can't be made so, "" where it can, None where the signature isn't known."""
        signature = self._signature(called)
        if signature is None:
            return None
        names, only, any_positional, any_keyword, needed = signature
        unknown = [name for name in keywords if name not in (*names, *only)]
        if unknown and not any_keyword:
            return f"{called.name} takes no {', '.join(unknown)}"
        if positional > len(names) and not any_positional:
            return f"{called.name} takes {len(names)} positional arguments, got {positional}"
        missing = [name for name in needed if name not in names[:positional] and name not in keywords]
        return f"{called.name} wants {', '.join(missing)}" if missing and not splat else ""

    def overrides(self, theirs: Found, ours: ast.FunctionDef) -> str:
        """Return why our method can't stand in for theirs: it would be called with arguments that it doesn't take."""
        if not isinstance(theirs.node, ast.FunctionDef) or _is_static(theirs.node) != _is_static(ours):
            return ""
        theirs_names = [one.arg for one in theirs.node.args.args]
        mine = [one.arg for one in ours.args.args]
        if ours.args.vararg or ours.args.kwarg:
            return ""
        # an underscore before a name says that it isn't read; a library hands its own methods that by place
        same = [name.lstrip("_") for name in mine] == [name.lstrip("_") for name in theirs_names]
        return "" if same else f"{theirs.name} takes {theirs_names}, ours {mine}"

    def returned(self, called: Found) -> Found | None:
        """Return what a call gives."""
        if isinstance(called.node, ast.ClassDef):
            return None if called.held else called.instance()
        return self._result(called)

    def fields(self, module: str, name: str) -> set[str]:
        """Return the names of a class's annotated fields, its bases' included."""
        found = self.find(module, name)
        assert found is not None
        return {field for field, _ in self._annotated_fields(found)}

    def makes_itself(self, owner: Found) -> bool:
        """Say whether the library makes instances of what others derive from a class: it is an abstract one."""
        return isinstance(owner.node, ast.ClassDef) and any(
            isinstance(one, ast.FunctionDef) and any(_last(mark) == "abstractmethod" for mark in one.decorator_list)
            for one in owner.node.body
        )

    @cache  # noqa: B019 - a library lives as long as its test
    def _text(self, dotted: str) -> str | None:
        path = self.folder.joinpath(*dotted.split("."))
        for file in (path / "__init__.py", path.with_suffix(".py"), path / "__init__.pyi", path.with_suffix(".pyi")):
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return None

    @cache  # noqa: B019
    def _tree(self, dotted: str) -> ast.Module | None:
        text = self._text(dotted)
        return None if text is None else ast.parse(text)

    def _top(self, module: str) -> Iterator[ast.stmt]:
        tree = self._tree(module)
        assert tree is not None
        yield from _flat(tree.body)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".")
        is_package = self.folder.joinpath(*package, "__init__.py").is_file()
        package = package[: len(package) - node.level + (1 if is_package else 0)]
        return ".".join([*package, *([node.module] if node.module else [])])

    def _named(self, module: str, node: ast.expr) -> Found | None:
        """Return what an expression of names stands for in a module."""
        if isinstance(node, ast.Subscript):
            return self._named(module, node.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._named(module, ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.Name):
            return self.find(module, node.id)
        if isinstance(node, ast.Attribute) and (owner := self._named(module, node.value)):
            return self.member(owner, node.attr)
        return None

    def _type(self, module: str, node: ast.expr | None) -> Found | None:
        """Return an instance of the class that an annotation names, several where it names a sequence of it."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return self._type(module, node.left) or self._type(module, node.right)
        if isinstance(node, ast.Subscript) and _last(node.value) in _PLURAL:
            inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            held = self._type(module, inner)
            return held.many() if held else None
        if isinstance(node, ast.Subscript) and _last(node.value) in ("Optional", "ClassVar", "Final"):
            return self._type(module, node.slice)
        found = self._named(module, node) if isinstance(node, (ast.Name, ast.Attribute)) else None
        return found.instance() if found and isinstance(found.node, ast.ClassDef) else None

    def _assigned(self, module: str, name: str, node: ast.Assign | ast.AnnAssign, seen: frozenset[tuple[str, str]]) -> Found:
        if isinstance(node, ast.AnnAssign) and (held := self._type(module, node.annotation)):
            return held
        if isinstance(node.value, ast.Name) and (same := self._find(module, node.value.id, seen)):
            return same
        return Found(name, module, ast.Pass())

    def _value(self, kind: Found, name: str, node: ast.Assign | ast.AnnAssign) -> Found:
        held = self._type(kind.module, node.annotation) if isinstance(node, ast.AnnAssign) else None
        return held or Found(f"{kind.name}.{name}", kind.module, ast.Pass())

    def _own(self, kind: Found, name: str, method: ast.FunctionDef, node: ast.Assign | ast.AnnAssign) -> Found:
        """Return what `self.name` holds: by its annotation, that of the argument it is, or the class that makes it."""
        held = self._type(kind.module, node.annotation) if isinstance(node, ast.AnnAssign) else None
        if held is None and isinstance(node.value, ast.Name):
            arguments = {one.arg: one.annotation for one in (*method.args.args, *method.args.kwonlyargs)}
            held = self._type(kind.module, arguments.get(node.value.id))
        if held is None and isinstance(node.value, ast.Call) and (made := self._named(kind.module, node.value.func)):
            held = self.returned(made)
        return held or Found(f"{kind.name}.{name}", kind.module, ast.Pass())

    def _result(self, method: Found) -> Found | None:
        node = method.node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return None
        return self._type(method.module, node.returns) or Found(f"{method.name}()", method.module, ast.Pass())

    def _lineage(self, owner: Found) -> Iterator[Found]:
        seen, waiting = set(), [owner]
        while waiting:
            kind = waiting.pop(0)
            if kind.node in seen or not isinstance(kind.node, ast.ClassDef):
                continue
            seen.add(kind.node)
            yield kind
            waiting += [found for base in kind.node.bases if (found := self._named(kind.module, base))]

    def _annotated_fields(self, kind: Found) -> list[tuple[str, bool]]:
        """Return (name, whether it has a default) of the fields of a data class, bases first."""
        found: dict[str, bool] = {}
        for one in reversed(list(self._lineage(kind))):
            assert isinstance(one.node, ast.ClassDef)
            for node in one.node.body:
                if (
                    isinstance(node, ast.AnnAssign)
                    and isinstance(node.target, ast.Name)
                    and "ClassVar" not in ast.dump(node.annotation)
                ):
                    found[node.target.id] = node.value is not None
        return list(found.items())

    def _signature(self, called: Found) -> Signature | None:
        node = called.node
        if isinstance(node, ast.ClassDef) and not called.held:
            for name in ("__init__", "__new__"):
                if (made := self.member(called, name)) and isinstance(made.node, ast.FunctionDef):
                    return _parameters(made.node, bound=True)
            if not self.closed(called):
                return None
            fields = self._annotated_fields(called)
            return [name for name, _ in fields], [], False, False, [name for name, default in fields if not default]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if any(_last(one) not in _PLAIN_DECORATORS for one in node.decorator_list):
                return None
            return _parameters(node, bound="." in called.name and not _is_static(node))
        return None


Signature = tuple[list[str], list[str], bool, bool, list[str]]
"""Positional names, keyword-only names, whether there is *args, whether **kwargs, names without a default."""
_PLAIN_BASES = (
    "object",
    "ABC",
    "Protocol",
    "Generic",
    "NamedTuple",
    "Struct",
    "Enum",
    "IntEnum",
    "str",
    "RuntimeError",
    "Exception",
)
_PLAIN_DECORATORS = ("staticmethod", "classmethod", "abstractmethod", "property", "PublicAPI", "client_mode_hook", "override")


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> Signature:
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args)][1 if bound else 0 :]
    needed = names[: len(names) - len(given.defaults)] if len(given.defaults) <= len(names) else []
    only = [one.arg for one in given.kwonlyargs]
    needed = needed + [one for one, default in zip(only, given.kw_defaults, strict=True) if default is None]
    return names, only, given.vararg is not None, given.kwarg is not None, needed


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block and of the conditions and attempts in it."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _flat(node.body)
            yield from _flat(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _flat(node.body)
            for handler in node.handlers:
                yield from _flat(handler.body)
            yield from _flat(node.orelse)
        else:
            yield node


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    given = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [one for target in given for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [ast.unparse(one) for one in flat if isinstance(one, (ast.Name, ast.Attribute))]


def _last(node: ast.expr) -> str:
    if isinstance(node, (ast.Call, ast.Subscript)):
        return _last(node.func if isinstance(node, ast.Call) else node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in _last(one) for one in node.decorator_list)


def _is_static(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(_last(one) == "staticmethod" for one in node.decorator_list)
