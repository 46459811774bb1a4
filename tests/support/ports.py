"""A port of loopback for a server that must be told one; a server of the test's own asks for port 0 instead."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
