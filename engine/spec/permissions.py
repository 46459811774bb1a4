"""What a user allows for good, whatever spec asks for it: their file `allow.yaml`, read and added to.

    api_keys: {JUDGE_KEY: [api.example.com]}   # keys, by the variable that holds each, and the servers that may be sent them
    hosts: ["10.0.0.5:8000"]                   # servers in private networks that may be asked
    paths: [~/data]                            # folders and files that specs may read

Owns that file, and decides nothing: what is refused without it is the business of `reach` and of the plan's `consent`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.errors import PlanError
from caiflow.engine.machine import home
from caiflow.engine.store.disk import write_atomic

_HEAD = "# What caiflow may do for any spec: see docs/how-to/strangers-specs.md\n"
_FORM = "write `api_keys: {VARIABLE: [HOST]}`, `hosts: [HOST]` and `paths: [FOLDER]`, each only where needed"


class KeySent(NamedTuple):
    """The environment variable `variable` would be sent to `host` (with its port where the address has one)."""

    variable: str
    host: str

    def __str__(self) -> str:
        return f"{self.variable}={self.host}"


class Permissions(NamedTuple):
    """What one user allows."""

    keys: frozenset[KeySent] = frozenset()
    hosts: frozenset[str] = frozenset()
    paths: tuple[Path, ...] = ()


def permissions_file() -> Path:
    """Return where the user's file is: `allow.yaml` in $XDG_CONFIG_HOME/caiflow (default ~/.config/caiflow)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or home() / ".config") / "caiflow" / "allow.yaml"


def permissions() -> Permissions:
    """Return what the user's file allows; nothing where there is none.

    Raises:
        PlanError: it can't be read, or says what isn't known.
    """
    import yaml

    path = permissions_file()
    if not path.is_file():
        return Permissions()
    try:
        return _parsed(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: can't be read: {error}", _FORM) from error


def remember(allowed: KeySent | str) -> None:
    """Add a key with its server, or a host, to the user's file."""
    import yaml

    held = permissions()
    keys, hosts = set(held.keys), set(held.hosts)
    keys.add(allowed) if isinstance(allowed, KeySent) else hosts.add(allowed)
    listed: dict[str, list[str]] = {}
    for variable, host in sorted(keys):
        listed.setdefault(variable, []).append(host)
    kept = {"api_keys": listed, "hosts": sorted(hosts), "paths": [str(place) for place in held.paths]}
    write_atomic(permissions_file(), _HEAD + yaml.safe_dump({name: value for name, value in kept.items() if value}))


def _parsed(held: Any) -> Permissions:
    if not isinstance(held, Mapping) or (unknown := sorted(held.keys() - {"api_keys", "hosts", "paths"})):
        raise ValueError(f"unknown key {unknown[0]!r}" if isinstance(held, Mapping) else "it isn't a mapping")
    keys = {KeySent(str(name), host.lower()) for name, given in held.get("api_keys", {}).items() for host in _texts(given)}
    paths = [Path(text).expanduser() for text in _texts(held.get("paths", []))]
    if loose := [str(path) for path in paths if not path.is_absolute()]:
        raise ValueError(f"a path there starts at / or ~, got {loose[0]!r}")
    return Permissions(frozenset(keys), frozenset(host.lower() for host in _texts(held.get("hosts", []))), tuple(paths))


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a list of texts is expected, got {given!r}"[:200])
    return texts
