"""What keeps the start of a command short; nothing here changes what a command does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

_LOADER = "pydantic.plugin._loader"


class _NoPlugins(ModuleType):
    """Stands in for pydantic's search for its plugins, of which nothing here uses any.

    The search is made through importlib.metadata, which imports the standard library's e-mail, zip and network modules: a tenth
    of the time of `caiflow validate`. Asked for anything but that search, it gives way to the real module.
    """

    def get_plugins(self) -> Iterable[object]:
        """Return no plugins, as pydantic does where PYDANTIC_DISABLE_PLUGINS is set."""
        return ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_LOADER) is self:
            del sys.modules[_LOADER]
        return getattr(import_module(_LOADER), name)


def begin() -> None:
    """Call before anything is imported: switch off garbage collection, since starting makes none, and pydantic's plugins."""
    gc.disable()  # commands that go on for long turn it on again
    sys.modules.setdefault(_LOADER, _NoPlugins(_LOADER))


def end() -> None:
    """Call when a command is done: where garbage collection stayed off, what is left needs none either."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
