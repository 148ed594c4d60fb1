"""Replicas of CMS files from CMS Rucio, where a block of DBS is a dataset in the scope ``cms``.

DBS does not know replicas, and the redirector finds one when a file is opened. So Rucio only helps
to read nearby replicas: without it, files are read through the redirector.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import closing
from logging import getLogger
from threading import Lock
from typing import ClassVar, Self, TypeAlias

from servicex_server.concurrency import iterate_in_thread, run_in_daemon_thread
from servicex_server.errors import ServiceXError
from servicex_server.finders.rucio_client import RucioOptions
from servicex_server.finders.rucio_session import Did, RucioSession
from servicex_server.model import BadReplica, Replica

log = getLogger(__name__)

SCOPE = "cms"

PATIENCE = 3
"""Failed blocks in a row after which a look-up stops asking Rucio."""

ReplicasByFile: TypeAlias = Mapping[str, tuple[Replica, ...]]
"""Replicas by the logical file names."""


class CmsRucioOptions(RucioOptions):
    """The options of CMS Rucio."""

    setting: ClassVar[str] = "finders.dbs.rucio"


class ReplicaPrefetch:
    """Reads the replicas of blocks from Rucio in several threads, ahead of their use.

    Parameters
    ----------
    options
        The options of Rucio. With None, all replicas are unknown.
    blocks
        The names of the blocks, in the order of their use.
    at_once
        The number of threads; each has its own session.
    """

    def __init__(
        self, options: CmsRucioOptions | None, blocks: Sequence[str], *, at_once: int
    ) -> None:
        self._options = options
        self._blocks = blocks
        self._at_once = at_once
        self._sessions: list[RucioSession] = []
        self._streams: list[AsyncGenerator[ReplicasByFile, None]] = []
        self._lock = Lock()
        self._left = PATIENCE
        self._nowhere: list[str] = []

    async def __aenter__(self) -> Self:
        for start in range(min(self._at_once, len(self._blocks))):
            if self._options is None:
                break
            session = RucioSession(self._options)
            self._sessions.append(session)
            answers = self._read_ahead(session, self._blocks[start :: self._at_once])
            self._streams.append(iterate_in_thread(answers, stop=session.abort, ahead=1))
        return self

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.gather(*(stream.aclose() for stream in self._streams))
        if self._nowhere:
            log.warning(
                "Rucio has no replicas of %d of %d blocks, such as %s: they are read through the "
                "redirector",
                len(self._nowhere),
                len(self._blocks),
                self._nowhere[0],
            )

    async def of(self, number: int) -> ReplicasByFile:
        """Return the replicas of the files of a block; call it for all blocks in their order."""
        return await anext(self._streams[number % self._at_once]) if self._streams else {}

    def abort(self) -> None:
        """Abort the sessions of all threads."""
        for session in self._sessions:
            session.abort()

    def _read_ahead(
        self, session: RucioSession, blocks: Sequence[str]
    ) -> Generator[ReplicasByFile, None, None]:
        with closing(session):
            for block in blocks:
                yield self._replicas_of(session, block) if self._left else {}

    def _replicas_of(self, session: RucioSession, block: str) -> ReplicasByFile:
        try:
            found = session.replicas_of([Did(SCOPE, block)])
        except ServiceXError as error:
            if not session.aborted:
                self._failed(block, error)
            return {}
        with self._lock:
            if self._left:
                self._left = PATIENCE
            if not found:
                self._nowhere.append(block)
        return {did.name: replicas for did, replicas in found.items()}

    def _failed(self, block: str, error: ServiceXError) -> None:
        """Log an error; stop asking Rucio if it is not retryable, or the last of several."""
        with self._lock:
            if not self._left:
                return
            self._left = self._left - 1 if error.retryable else 0
            which = block if self._left else f"{block} and of all further blocks"
        log.warning("%s; files of %s are read through the redirector", error, which)


async def replicas_of_files(options: CmsRucioOptions, names: Sequence[str]) -> ReplicasByFile:
    """Return the current replicas of files by their logical names."""
    found = await run_in_daemon_thread(
        RucioSession(options).replicas, [Did(SCOPE, name) for name in names]
    )
    return {did.name: replicas for did, replicas in found.items()}


async def declare(options: CmsRucioOptions, bad: BadReplica) -> None:
    """Report a bad replica, if it came from Rucio; Rucio does not know those of the redirector."""
    if bad.rse:
        await run_in_daemon_thread(RucioSession(options).declare, bad, Did(SCOPE, bad.file))
