"""Bringing a run's sealed artifacts to the bucket beside the run's work, one after the other.

Owns the thread that does, and what couldn't be sent. Fetches nothing, and knows no step but by name.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from caiflow.engine.errors import CaiflowError

if TYPE_CHECKING:
    from caiflow.engine.store.artifacts import Artifact
    from caiflow.engine.store.bucket import Bucket
    from caiflow.engine.store.journal import Journal

_POLL_S = 0.2


class Sending:
    """What a run sends to a bucket; nothing where there is none. An `interrupted` run neither sends nor fetches on."""

    def __init__(self, bucket: Bucket | None, journal: Journal, interrupted: threading.Event) -> None:
        self._bucket = bucket
        self._journal = journal
        self._interrupted = interrupted
        self._ended = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[str, Artifact] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="caiflow-sending", daemon=True)
        self._unsent: dict[str, str] = {}

    def begin(self) -> None:
        """Look whether the bucket can be written to, before anything is made, and begin to send.

        Raises:
            StoreError: it can't.
        """
        if self._bucket is not None:
            self._bucket.told = lambda text: self._journal.emit("log", text=text)
            self._bucket.stopped = lambda: self._interrupted.is_set() or self._ended.is_set()
            self._bucket.check()
            self._thread.start()

    def close(self) -> None:
        """Send no more."""
        self._ended.set()
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def add(self, step: str, artifact: Artifact) -> None:
        """Send an artifact that the bucket doesn't have, unless some of its rows failed for a reason that may pass."""
        if self._bucket is not None and not artifact.may_pass:
            self._unsent[step] = "not begun"
            self._waiting.put((step, artifact))

    def finish(self) -> bool:
        """Wait until all is sent, or the run is interrupted; return whether all is, and tell what isn't."""
        self._waiting.put(None)
        while self._thread.is_alive() and not self._interrupted.is_set():
            self._thread.join(_POLL_S)
        for step, why in dict(self._unsent).items():
            text = f"isn't in {self._bucket} yet: {why}; it is kept in the store, and the next run of the spec sends it"
            self._journal.emit("log", step=step, text=text)
        return not self._unsent

    def _send_all(self) -> None:
        assert self._bucket is not None
        while (item := self._waiting.get()) is not None:
            step, artifact = item
            try:
                if not self._bucket.has(artifact):
                    self._bucket.send(artifact)
                del self._unsent[step]
            except KeyboardInterrupt:
                return
            except (CaiflowError, OSError) as error:
                self._unsent[step] = str(error)
