"""Which variants of a test are left to `make test-all`: one of each real part stays in `make test`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few_at_once(variants: Iterable[Any], *stay: Any) -> list[Any]:
    """Return the parameters of a test, all but those that `stay` marked as too long together for `make test`."""
    return [pytest.param(*_values(v), marks=[] if v in stay else [pytest.mark.soak]) for v in variants]


def _values(variant: Any) -> tuple[Any, ...]:
    return variant if isinstance(variant, tuple) else (variant,)
