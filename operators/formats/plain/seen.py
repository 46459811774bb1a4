"""A set of digests that takes little more memory than these. Holds nothing else."""

from __future__ import annotations

_HEAD = 2
"""Bytes of a digest that say in which of its buckets it is."""


class Seen:
    """Digests of one length: ten bytes each take about twelve, of which a set of Python's would take a hundred."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}

    def add(self, digest: bytes) -> bool:
        """Take one more; return whether it is new."""
        head, rest = digest[:_HEAD], digest[_HEAD:]
        bucket = self._buckets.get(head)
        if bucket is None:
            self._buckets[head] = bytearray(rest)
            return True
        place = bucket.find(rest)
        while place >= 0 and place % len(rest):  # the end of one and the beginning of the next
            place = bucket.find(rest, place + 1)
        if place < 0:
            bucket += rest
        return place < 0
