"""Connections to the addresses that were looked at, and to no others.

A name may lead elsewhere a moment after it was looked up. So a server's name is looked up here, what it stands for is held
against what a spec may ask (`hosts`), and the connection is made to that very address, under the server's name. A server that
its user named by hand is asked as the system finds it, through a proxy too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

import httpx

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.served.hosts import Address, host_of, is_private, looked_up, name_of, proxied

_UNPACKED = ("", "identity", "gzip", "deflate")
"""Encodings that unpack piece by piece to at most a thousand times their size."""
_LOOKED_UP_S = 60.0
"""How long what a name stands for is taken as known."""


class Pin:
    """The addresses of one name; each was looked at before it is given."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._addresses: list[Address] = []
        self._until = 0.0

    @property
    def known(self) -> bool:
        """Whether the name was looked up lately."""
        return time.monotonic() < self._until

    def look_up(self) -> None:
        """Find out what the name stands for; where that can't be told now, what it stood for before is kept.

        Raises:
            EngineError: it leads into a private network.
        """
        found = sorted(set(looked_up(self._name)), key=lambda address: (address.version, int(address)))
        for address in found:
            if is_private(address):
                raise EngineError(
                    f"{self._name} leads to {address}, in a private network, which it didn't when the run began",
                    f"say --allow-host {self._name} if it may be asked there",
                    kind="refused",
                )
        if found:
            self._addresses, self._until = found, time.monotonic() + _LOOKED_UP_S

    def ways(self, request: httpx.Request) -> Iterator[httpx.Request]:
        """Yield the request to each address; one that is asked for another has failed, and comes last from then on.

        Raises:
            httpx.ConnectError: the name stands for nothing.
        """
        if not self._addresses:
            raise httpx.ConnectError(f"the name {self._name} can't be looked up", request=request)
        for address in tuple(self._addresses):
            yield httpx.Request(
                request.method,
                request.url.copy_with(host=str(address)),
                headers=request.headers,  # `Host` is the name's
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": self._name},
            )
            self._addresses.remove(address)
            self._addresses.append(address)


class _Pinned(httpx.HTTPTransport):
    def __init__(self, pin: Pin) -> None:
        super().__init__()
        self._pin = pin

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._pin.look_up()
        failed: httpx.TransportError | None = None
        for way in self._pin.ways(request):
            try:
                return super().handle_request(way)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
        assert failed is not None
        raise failed


class _PinnedAsync(httpx.AsyncHTTPTransport):
    def __init__(self, pin: Pin, limits: httpx.Limits) -> None:
        super().__init__(limits=limits)
        self._pin = pin

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._pin.known:
            await asyncio.to_thread(self._pin.look_up)
        failed: httpx.TransportError | None = None
        for way in self._pin.ways(request):
            try:
                return await super().handle_async_request(way)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
        assert failed is not None
        raise failed


def refuse_packed(response: httpx.Response) -> None:
    """Refuse an answer that is packed so that a small part of it may unpack to any size, before any of it is read.

    Raises:
        httpx.DecodingError: it is.
    """
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed not in _UNPACKED:
        raise httpx.DecodingError(f"its answer is packed as {packed!r}, use gzip or none", request=response.request)


async def _refuse_packed(response: httpx.Response) -> None:
    refuse_packed(response)


def pinned(address: str, *, by_hand: bool) -> httpx.HTTPTransport | None:
    """Return the way to a server for single calls; None where it is found as the system finds it.

    Raises:
        EngineError: as `pin_of`.
    """
    pin = pin_of(address, by_hand=by_hand)
    return _Pinned(pin) if pin else None


def pinned_async(address: str, limits: httpx.Limits, *, by_hand: bool) -> httpx.AsyncHTTPTransport | None:
    """Return the way to a server for many calls at once; None where it is found as the system finds it.

    Raises:
        EngineError: as `pin_of`.
    """
    pin = pin_of(address, by_hand=by_hand)
    return _PinnedAsync(pin, limits) if pin else None


def client_of(
    address: str, headers: Mapping[str, str], most_calls: int, timeout_s: float, *, by_hand: bool
) -> httpx.AsyncClient:
    """Return a client for paths below an address that keeps as many connections as it makes calls at once.

    Raises:
        EngineError: as `pin_of`.
    """
    limits = httpx.Limits(max_connections=most_calls, max_keepalive_connections=most_calls)
    timeout = httpx.Timeout(timeout_s, pool=None)
    way = pinned_async(address, limits, by_hand=by_hand)
    hooks = {"response": [_refuse_packed]}
    return httpx.AsyncClient(
        base_url=f"{address}/", headers=headers, limits=limits, timeout=timeout, transport=way, event_hooks=hooks
    )


def pin_of(address: str, *, by_hand: bool) -> Pin | None:
    """Return the pin of a server's name; None for addresses, this machine, and servers that their user named `by_hand`.

    Raises:
        EngineError: a proxy looks the name up, so where it leads can't be told.
    """
    host = host_of(address)
    name = name_of(host)
    if by_hand or not name:
        return None
    if proxied(address):
        raise EngineError(
            f"{host} is asked through a proxy, which alone knows where that name leads",
            f"say --allow-host {host} if it may be asked",
            kind="load",
        )
    return Pin(name)
