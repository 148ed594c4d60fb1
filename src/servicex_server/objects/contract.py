"""What an object store does for the service: keep results by key, and stream them out.

Workers never hold its credentials: they are given one URL to upload one object to.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime

UNFINISHED = ".part-"
"""How the name of a file begins that a worker is still writing into a folder of results."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the disk that results are on: what is used, by whatever it is, and what is free."""

    used: int
    free: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key, its size in bytes, when it was written and a tag of its content."""

    key: str
    size: int
    modified: datetime
    etag: str


class ObjectStore(ABC):
    """Results by key. Keys are relative, ``/`` separates folders."""

    @abstractmethod
    def upload_url(self, key: str, *, seconds: float) -> str:
        """Return where a worker may write one object: ``file://`` or a presigned PUT.

        Parameters
        ----------
        key
            The object.
        seconds
            How long the URL has to work.
        """

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object; None if there is none."""

    @abstractmethod
    def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive) of an object, in pieces.

        Raises
        ------
        NotFoundError
            There is no such object; on the first piece.
        """

    @abstractmethod
    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""

    @abstractmethod
    async def disk(self) -> Disk | None:
        """Return how full the disk is; None if the store is not on a disk of this machine."""

    @abstractmethod
    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects below a folder, by key."""
