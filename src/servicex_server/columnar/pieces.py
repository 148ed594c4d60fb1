"""Asking for many places of a file at once: near ones in one piece, far ones left apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

_NEAR = 32 << 10
"""Bytes between two places that are rather read along than left out."""

_NEAR_BY_HTTP = 256 << 10
"""The same where every piece is a request of its own."""

_LONGEST = 10 << 20
"""Bytes after which a piece ends: there is something to decompress while others come."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes within a piece of the file that was asked for."""

    chunk: Any
    start: int
    stop: int

    def content(self) -> memoryview:
        """Return the bytes; waits until they are there."""
        data = memoryview(self.chunk.raw_data)
        return data[self.start - self.chunk.start : self.stop - self.chunk.start]


class Pieces:
    """Asks for places of one file.

    Parameters
    ----------
    url
        Of the file.
    """

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme if "://" in url else ""
        self._near = _NEAR_BY_HTTP if scheme in ("http", "https") else _NEAR
        self.remote = scheme not in ("", "file")
        """Whether it pays to ask for what is needed next while something is computed."""

    def ask(self, source: Any, places: Sequence[tuple[int, int]]) -> list[Place]:
        """Ask uproot's source of the file for places, all at once, and do not wait for them.

        Parameters
        ----------
        source
            Of the open file.
        places
            First byte, and the one after the last, of each.

        Returns
        -------
        The places in the order they were given.
        """
        if not places:
            return []
        order = sorted(range(len(places)), key=places.__getitem__)
        ranges: list[tuple[int, int]] = []
        members = [0] * len(places)
        low, high = places[order[0]]
        for at in order:
            start, stop = places[at]
            if start - high > self._near or stop - low > _LONGEST:
                ranges.append((low, high))
                low, high = start, stop
            high = max(high, stop)
            members[at] = len(ranges)
        ranges.append((low, high))
        chunks = source.chunks(ranges, Queue())
        return [
            Place(chunks[index], start, stop)
            for (start, stop), index in zip(places, members, strict=True)
        ]
