"""Reads many byte ranges of a file at once: coalesces near ranges, and keeps far ones apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

_NEAR = 32 << 10
"""Ranges with at most this many bytes between them are read as one range."""

_NEAR_BY_HTTP = 256 << 10
"""The same for HTTP, where each coalesced range is a request of its own."""

_LONGEST = 10 << 20
"""Most bytes of a coalesced range, so that one can be decompressed while others arrive."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file, within a coalesced range that was requested."""

    chunk: Any
    start: int
    stop: int

    def content(self) -> memoryview:
        """Return the bytes; wait until they have arrived."""
        data = memoryview(self.chunk.raw_data)
        return data[self.start - self.chunk.start : self.stop - self.chunk.start]


class RangeReader:
    """Requests byte ranges of one file, and coalesces those that are near each other.

    Parameters
    ----------
    url
        The URL of the file.
    """

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme if "://" in url else ""
        self._near = _NEAR_BY_HTTP if scheme in ("http", "https") else _NEAR
        self.remote = scheme not in ("", "file")
        """Whether it pays to request the next bytes while the present ones are computed on."""

    def ask(self, source: Any, places: Sequence[tuple[int, int]]) -> list[Place]:
        """Request ranges from uproot's source, all at once, and do not wait for the bytes.

        Parameters
        ----------
        source
            uproot's source of the open file.
        places
            The first byte of each range, and the one after its last.

        Returns
        -------
        The ranges in the order in which they were given.
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
