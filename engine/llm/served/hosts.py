"""Which machine a server's address means: this one, one in a private network, or one that anybody can reach.

Looks a name up only where it is asked to. Sends nothing, and decides nothing: see the plan's `consent`, and `pinned`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def host_of(address: str) -> str:
    """Return the host in a server's address, with its port where it names one, without a name and password."""
    return urlsplit(address).netloc.rpartition("@")[2].lower()


def is_here(host: str) -> bool:
    """Return whether the host is this machine by its loopback address or name, in their usual spelling."""
    name = _name(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def private_address(host: str, *, look_up: bool) -> str:
    """Return the address in no public network that a host stands for; empty where there is none, or it is this machine's own.

    Addresses of every spelling that the system takes count: `0xa000001`, `10.1`, `[::ffff:10.0.0.1]`. With `look_up` a name
    is resolved; one that can't be is of no network.
    """
    name = _name(host)
    found = [*_literal(name)] or [*(looked_up(name) if look_up else ())]
    return next((str(address) for address in found if is_private(address)), "")


def name_of(host: str) -> str:
    """Return the name in a host that must be looked up; empty for an address, and for this machine."""
    name = _name(host)
    return "" if is_here(host) or any(_literal(name)) else name


def proxied(address: str) -> bool:
    """Return whether the environment has a proxy for what is asked of an address."""
    parts, proxies = urlsplit(address), getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname or "")


def is_private(address: Address) -> bool:
    """Return whether an address is in no public network, and not this machine's own."""
    return not _is_loopback(address) and not _is_public(address)


def _name(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").rstrip(".")


def _literal(name: str) -> Iterator[Address]:
    with suppress(ValueError):
        yield ipaddress.ip_address(name)
        return
    with suppress(OSError, ValueError):
        yield ipaddress.IPv4Address(socket.inet_aton(name))


def looked_up(name: str) -> Iterator[Address]:
    """Yield the addresses that the system knows for a name; none where it knows none."""
    with suppress(OSError, UnicodeError, ValueError):
        for *_, place in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            yield ipaddress.ip_address(str(place[0]).partition("%")[0])


def _is_loopback(address: Address) -> bool:
    return all(found.is_loopback for found in _within(address))


def _is_public(address: Address) -> bool:
    return all(found.is_global and not found.is_multicast for found in _within(address))


def _within(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address carries, or the address itself where it carries none."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    carried: list[Address] = [found for found in (address.ipv4_mapped, address.sixtofour) if found]
    carried += address.teredo or ()
    if address in _NAT64:
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return carried or [address]
