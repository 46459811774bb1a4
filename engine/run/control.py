"""How a run is held up from outside: signals that end it, and what `caiflow ctl` asks of it. Owns no process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caiflow.engine.store.controls import CONTROL, Controls, read_controls
from caiflow.engine.store.journal import Journal


class Control:
    """What is asked of a run, looked for whenever its driver has a moment. An earlier run of its folder had its own."""

    def __init__(self, run_dir: Path, journal: Journal) -> None:
        self.asked = Controls()
        self._run_dir, self._journal = run_dir, journal
        with suppress(FileNotFoundError):
            (run_dir / CONTROL).unlink()

    def look(self) -> Controls:
        """Return what is asked now; anything new is told."""
        asked = read_controls(self._run_dir)
        if asked != self.asked:
            self.asked = asked
            self._journal.emit("control", **asked.as_json(), text=asked.told())
        return asked


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; a second one of either stops at once."""
    interrupted = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
