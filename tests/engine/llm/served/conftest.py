"""A server that misbehaves as it is told, for the tests of engines that ask one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.bad_server import BadServer, bad_server


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as state:
        yield state
