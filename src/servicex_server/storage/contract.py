"""The contract of an object store: it stores results by key, and streams them.

Workers do not get the credentials of the store, but one URL for the upload of one object.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime

UNFINISHED = ".part-"
"""Prefix of the name of a file that a worker is still writing to a folder of results."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Used and free bytes of the disk of the results; other files count as used too."""

    used: int
    free: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key, size in bytes, time of the last write, and a tag of its content."""

    key: str
    size: int
    modified: datetime
    etag: str


class ObjectStore(ABC):
    """Stores results by key. Keys are relative, and ``/`` separates folders."""

    @abstractmethod
    def upload_url(self, key: str, *, seconds: float) -> str:
        """Return the URL at which a worker may write one object: ``file://`` or a presigned PUT.

        Parameters
        ----------
        key
            The object.
        seconds
            How long the URL has to be valid.
        """

    @abstractmethod
    def download_url(self, key: str, *, seconds: float) -> str:
        """Return the URL at which a worker may read one object: ``file://`` or a presigned GET.

        Parameters
        ----------
        key
            The object.
        seconds
            How long the URL has to be valid.
        """

    @abstractmethod
    async def put(self, key: str, content: bytes) -> None:
        """Write a small object.

        Raises
        ------
        StoreUnavailableError
            The store does not answer, or refuses the service.
        """

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo | None:
        """Return the metadata of an object; None if it does not exist.

        Raises
        ------
        StoreUnavailableError
            The store does not answer, or refuses the service.
        """

    @abstractmethod
    def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive) of an object, in pieces.

        Raises
        ------
        NotFoundError
            The object does not exist; raised at the first piece.
        StoreUnavailableError
            The store does not answer, or refuses the service; raised at any piece.
        """

    @abstractmethod
    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys that do not exist are ignored.

        Raises
        ------
        StoreUnavailableError
            The store does not answer, or refuses the service.
        """

    @abstractmethod
    async def probe(self) -> None:
        """Write, read and delete a small object.

        Raises
        ------
        StoreUnavailableError
            The store does not do this now; the message says what it answered.
        """

    @abstractmethod
    async def disk(self) -> Disk | None:
        """Return the usage of the disk; None if the store is not on a disk of this machine."""

    @abstractmethod
    async def folders(self) -> list[str]:
        """Return the names of the folders at the top, sorted.

        Raises
        ------
        StoreUnavailableError
            The store does not answer, or refuses the service.
        """

    @abstractmethod
    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects below a folder, sorted by key.

        Raises
        ------
        StoreUnavailableError
            The store does not answer, or refuses the service.
        """
