"""A set of digests that takes little more memory than these. Holds nothing else."""

from __future__ import annotations

from collections.abc import Iterable

_HEAD = 2
"""Bytes of a digest that say in which of its buckets it is."""


class Seen:
    """Digests of one length: ten bytes each take about twelve, of which a set of Python's would take a hundred."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}

    def add(self, digests: Iterable[bytes]) -> list[int]:
        """Take more; return the places among them of those that aren't new."""
        again, buckets = [], self._buckets
        for at, digest in enumerate(digests):
            head, rest = digest[:_HEAD], digest[_HEAD:]
            bucket = buckets.get(head)
            if bucket is None:
                buckets[head] = bytearray(rest)
                continue
            place = bucket.find(rest)
            while place >= 0 and place % len(rest):  # the end of one and the beginning of the next
                place = bucket.find(rest, place + 1)
            if place < 0:
                bucket += rest
            else:
                again.append(at)
        return again
