"""The libraries' imports without what nobody here asks of them, which are a third to a half of the time that they take.

Owns what is left out. Whoever asks for it later has it: to the libraries it isn't installed only while they are imported.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata

UNASKED = ("bitsandbytes", "boto3", "mlflow", "scipy", "sklearn", "wandb")
"""What the libraries import where it is installed: quantised weights, a cloud, objects in pictures, drafts, curves."""
_ANSWER = ("transformers.utils.import_utils", "peft.import_utils", "trl.import_utils", "accelerate.utils.imports")
"""The modules that keep their answers whether something is installed."""
_SEVERAL = frozenset({"flash_attn"})
"""Packages that several distributions bring parts of."""
_ALL = metadata.packages_distributions
_LOCK = threading.RLock()


def import_lean(modules: Iterable[str]) -> None:
    """Import modules without what nobody asks of them; one that can't do without is imported as ever.

    Raises:
        ImportError: one can't be imported.
    """
    left = []
    with _lean():
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError:
                left.append(module)
    for module in left:
        importlib.import_module(module)


@contextmanager
def _lean() -> Iterator[None]:
    """Hide what isn't asked for, name distributions one by one, and look for no garbage among what stays."""
    with _LOCK:
        hidden, collects = [name for name in UNASKED if name not in sys.modules], gc.isenabled()
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
        metadata.packages_distributions = _Bringers
        gc.disable()
        try:
            yield
        finally:
            metadata.packages_distributions = _ALL
            for name in hidden:
                sys.modules.pop(name, None)
            for module in filter(None, map(sys.modules.get, _ANSWER)):
                for name, answer in list(vars(module).items()):
                    if name.lstrip("_").startswith("is_"):  # what they have read of their own files stays true
                        getattr(answer, "cache_clear", int)()
            if collects:
                gc.enable()


class _Bringers(Mapping[str, list[str]]):
    """The distributions that bring each package, of those alone that are asked about: to read all takes half a second."""

    def __getitem__(self, name: str) -> list[str]:
        if name in _SEVERAL:
            return self._all[name]
        if importlib.util.find_spec(name) is None:
            raise KeyError(name)
        try:
            return [metadata.distribution(name).name]
        except metadata.PackageNotFoundError:
            return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _all(self) -> Mapping[str, list[str]]:
        return _ALL()
