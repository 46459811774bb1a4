"""How often Python looks for garbage while rows stream.

A flow holds some thousand rows whose objects are all in use, and makes next to no cycles: at Python's usual pace the collector
walks over them every 700 new objects and finds nothing, a quarter of all the time.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 50_000
"""New objects after which it looks: some tens of megabytes at the most."""
_lock = threading.Lock()
_usual: list[tuple[int, int, int]] = []
"""What was set before, once for each flow of this process."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for garbage seldom, and never again in what was there before; as it was once the last flow has ended."""
    with _lock:
        if not _usual:
            gc.freeze()
        _usual.append(gc.get_threshold() if not _usual else _usual[0])
        gc.set_threshold(OBJECTS, *_usual[0][1:])
    try:
        yield
    finally:
        with _lock:
            before = _usual.pop()
            if not _usual:
                gc.set_threshold(*before)
                gc.unfreeze()
