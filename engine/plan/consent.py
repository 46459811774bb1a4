"""What a spec asks of its user's trust before it may run: keys sent to servers, and engine arguments that may run code.

A spec names the variable that holds a key and the server that gets it, so whoever wrote it could have any secret of the machine
sent anywhere. Hence a variable goes to a host only after the user said so: on the command line, in answer to a question, or in
their own file (`spec.permissions`). Servers of this machine itself need no such word. Runs nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from caiflow.engine.errors import PlanError
from caiflow.engine.spec.permissions import KeySent, permissions, permissions_file

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import ModelEntry


def keys_sent(models: Mapping[str, ModelEntry]) -> dict[KeySent, str]:
    """Return the keys that would leave this machine, each with the first model that has it sent."""
    found: dict[KeySent, str] = {}
    for name, entry in models.items():
        if entry.api_key_env and (host := _host_beyond(entry)):
            found.setdefault(KeySent(entry.api_key_env, host), name)
    return found


def servers(models: Mapping[str, ModelEntry]) -> dict[str, list[str]]:
    """Return the servers beyond this machine that are asked, each with the models it answers for."""
    found: dict[str, list[str]] = {}
    for name, entry in models.items():
        if host := _host_beyond(entry):
            found.setdefault(host, []).append(name)
    return found


def parse_key_sent(text: str) -> KeySent:
    """Return what `VARIABLE=HOST` says.

    Raises:
        ValueError: it has another form.
    """
    variable, _, host = text.partition("=")
    if not variable or not host or "/" in host:
        raise ValueError(f"{text!r} isn't VARIABLE=HOST, such as JUDGE_KEY=api.example.com")
    return KeySent(variable, host.lower())


def refuse_unallowed(models: Mapping[str, ModelEntry], allowed: Collection[KeySent], *, trust_remote_code: bool) -> None:
    """Raise for what only the user's own word lets a spec do; `allowed` adds to the user's file.

    Raises:
        PlanError: an engine argument that may run code, or a key for a host that the user didn't name.
    """
    for name, entry in models.items():
        if entry.other_engine_args and not trust_remote_code:
            raise PlanError(
                f"models.{name}.other_engine_args: {', '.join(entry.other_engine_args)} may run code or read files here",
                "leave them out, or say --trust-remote-code if you trust this spec",
            )
    for key, name in unallowed(models, allowed).items():
        raise PlanError(
            f"models.{name}.api_key_env: the key in {key.variable} would be sent to {key.host}, which you haven't allowed",
            f"say --allow-env {key} if that is what you want; {permissions_file()} holds what you allow for good",
        )


def unallowed(models: Mapping[str, ModelEntry], allowed: Collection[KeySent] = ()) -> dict[KeySent, str]:
    """Return the keys that would be sent where the user didn't say they may, each with its model."""
    wanted = keys_sent(models)
    known = {*allowed, *permissions().keys} if wanted else set()
    return {key: name for key, name in wanted.items() if key not in known}


def _host_beyond(entry: ModelEntry) -> str:
    """Return the host that is asked, with its port and without a name and password; empty where nothing leaves this machine."""
    host = urlsplit(entry.address).netloc.rpartition("@")[2].lower()
    return "" if _is_here(host) else host


def _is_here(host: str) -> bool:
    """Return whether the host is this machine by its loopback address or name."""
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
