"""A training that is ended from within once it has saved checkpoints, as one that is cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Stop(Exception):
    """Ends a training from within."""


def cut_off(work: Path, begin: Callable[[Callable[..., None]], Any], checkpoints: int = 1) -> None:
    """Begin a training with what it is to call as it gets on, which ends it once so many checkpoints are whole in `work`."""

    def stop(*_: Any, **__: Any) -> None:
        if len(list(work.glob("checkpoints/*/complete"))) == checkpoints:
            raise Stop

    with pytest.raises(Stop):
        begin(stop)
