"""What a spec asks of its user's trust before it may run: keys and private networks for servers, arguments that may run code.

A spec names the variable that holds a key and the server that gets it, so whoever wrote it could have any secret of the machine
sent anywhere, or have it speak to what only this machine reaches. Hence a variable goes to a host, and anything to a host in a
private network, only after the user said so: on the command line, in answer to a question, or in their own file
(`spec.permissions`). Servers of this machine itself need no such word. Runs nothing; looks names of hosts up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from caiflow.engine.errors import PlanError
from caiflow.engine.llm.served.hosts import host_of, is_here, name_of, private_address, proxied
from caiflow.engine.spec.layers import ByHand
from caiflow.engine.spec.permissions import KeySent, Permissions, permissions, permissions_file

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import ModelEntry
    from caiflow.engine.yaml.tree import Node


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


def parse_host(text: str) -> str:
    """Return the host that a text names, as `hosts` of the user's file has it.

    Raises:
        ValueError: it isn't a host.
    """
    if not text or "/" in text or "@" in text or "=" in text:
        raise ValueError(f"{text!r} isn't HOST or HOST:PORT, such as 10.0.0.5:8000")
    return text.lower()


def with_typed(models: Mapping[str, ModelEntry], source: Node, allowed: Permissions) -> Permissions:
    """Return what is allowed with the hosts that the user wrote by hand, as an option or in Python."""
    typed = set()
    for name, entry in models.items():
        node = source.get("models", name, "base_url" if entry.base_url else "source")
        if entry.address and node is not None and isinstance(node.at.file, ByHand):
            typed.add(host_of(entry.address))
    return allowed._replace(hosts=allowed.hosts | typed)


def refuse_unallowed(models: Mapping[str, ModelEntry], allowed: Permissions, *, trust_remote_code: bool) -> None:
    """Raise for what only the user's own word lets a spec do; `allowed` adds to the user's file.

    Raises:
        PlanError: an engine argument that may run code, or a key or a private network's host that the user didn't name.
    """
    for name, entry in models.items():
        if entry.other_engine_args and not trust_remote_code:
            raise PlanError(
                f"models.{name}.other_engine_args: {', '.join(entry.other_engine_args)} may run code or read files here",
                "leave them out, or say --trust-remote-code if you trust this spec",
            )
    for key, name in unallowed_keys(models, allowed).items():
        raise PlanError(
            f"models.{name}.api_key_env: the key in {key.variable} would be sent to {key.host}, which you haven't allowed",
            f"say --allow-env {key} if that is what you want; {permissions_file()} holds what you allow for good",
        )
    for host, (name, address) in unallowed_hosts(models, allowed).items():
        raise PlanError(
            f"models.{name}: {told_of(host, address)}, which a spec may ask only where you allow it",
            f"say --allow-host {host} if that is what you want; {permissions_file()} holds what you allow for good",
        )


def unallowed_keys(models: Mapping[str, ModelEntry], allowed: Permissions) -> dict[KeySent, str]:
    """Return the keys that would be sent where the user didn't say they may, each with its model."""
    wanted = keys_sent(models)
    known = allowed.keys | permissions().keys if wanted else frozenset()
    return {key: name for key, name in wanted.items() if key not in known}


def unallowed_hosts(
    models: Mapping[str, ModelEntry], allowed: Permissions, *, look_up: bool = True
) -> dict[str, tuple[str, str]]:
    """Return the hosts in private networks that the user didn't name, each with a model it answers for and its address there.

    The address is empty where a proxy looks the host's name up. An address that may be sent a key is named; a name that may be
    isn't: it can lead anywhere. Without `look_up` names of hosts are taken for public ones.
    """
    found = {}
    for entry_name, entry in models.items():
        host = _host_beyond(entry)
        if not host or host in found or host in _hosts(allowed):
            continue
        if look_up and name_of(host) and proxied(entry.address):
            found[host] = entry_name, ""
        elif address := private_address(host, look_up=look_up):
            found[host] = entry_name, address
    known = _hosts(permissions()) if found else set()
    return {host: told for host, told in found.items() if host not in known}


def told_of(host: str, address: str) -> str:
    """Return in words why a host needs its user's word."""
    if not address:
        return f"{host} is asked through a proxy, which alone knows where that name leads"
    return f"{host}{'' if address in host else f' ({address})'} is in a private network"


def named_by_hand(entry: ModelEntry, allowed: Permissions) -> bool:
    """Return whether the user named the server, so that it may be asked wherever its name leads."""
    return host_of(entry.address) in _hosts(allowed) | _hosts(permissions())


def _hosts(allowed: Permissions) -> set[str]:
    return {*allowed.hosts, *(key.host for key in allowed.keys if not name_of(key.host))}


def _host_beyond(entry: ModelEntry) -> str:
    """Return the host that is asked; empty where nothing leaves this machine."""
    host = host_of(entry.address)
    return "" if is_here(host) else host
