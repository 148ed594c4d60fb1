"""Where files of CMS are, by its Rucio: a block of DBS is a dataset there, in the scope ``cms``.

DBS knows no places, and the redirector looks for one when a file is opened. So all that Rucio says
is nearness: without it files are read all the same.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import closing
from logging import getLogger
from threading import Lock
from typing import ClassVar, Self, TypeAlias

from servicex_server.blocking import apart, streamed
from servicex_server.errors import ServiceXError
from servicex_server.finders.rucio_asking import Asking, Did
from servicex_server.finders.rucio_client import RucioOptions
from servicex_server.model import BadReplica, Replica

log = getLogger(__name__)

SCOPE = "cms"

PATIENCE = 3
"""Blocks in a row that Rucio does not answer, after which a look-up asks it no more."""

Places: TypeAlias = Mapping[str, tuple[Replica, ...]]
"""Replicas by the logical names of their files."""


class CmsRucioOptions(RucioOptions):
    """What is chosen of the Rucio of CMS."""

    setting: ClassVar[str] = "finders.dbs.rucio"


class Nearness:
    """Where the files of some blocks are: asked for by several threads, ahead of who wants it.

    Parameters
    ----------
    options
        Without them nothing is asked, and known.
    at_once
        Threads, of which each signs in once.
    """

    def __init__(
        self, options: CmsRucioOptions | None, blocks: Sequence[str], *, at_once: int
    ) -> None:
        self._options = options
        self._blocks = blocks
        self._at_once = at_once
        self._asking: list[Asking] = []
        self._threads: list[AsyncGenerator[Places, None]] = []
        self._lock = Lock()
        self._left = PATIENCE
        self._nowhere: list[str] = []

    async def __aenter__(self) -> Self:
        for start in range(min(self._at_once, len(self._blocks))):
            if self._options is None:
                break
            asking = Asking(self._options)
            self._asking.append(asking)
            answers = self._ask(asking, self._blocks[start :: self._at_once])
            self._threads.append(streamed(answers, stop=asking.hang_up, ahead=1))
        return self

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.gather(*(thread.aclose() for thread in self._threads))
        if self._nowhere:
            log.warning(
                "Rucio names no place of %d of %d blocks, as of %s: they are read through the "
                "redirector",
                len(self._nowhere),
                len(self._blocks),
                self._nowhere[0],
            )

    async def of(self, number: int) -> Places:
        """Return where the files of a block are; blocks are asked for in their order."""
        return await anext(self._threads[number % self._at_once]) if self._threads else {}

    def hang_up(self) -> None:
        """Have all threads end, of whose answers none is wanted any more."""
        for asking in self._asking:
            asking.hang_up()

    def _ask(self, asking: Asking, blocks: Sequence[str]) -> Generator[Places, None, None]:
        with closing(asking):
            for block in blocks:
                yield self._places(asking, block) if self._left else {}

    def _places(self, asking: Asking, block: str) -> Places:
        try:
            found = asking.replicas_of([Did(SCOPE, block)])
        except ServiceXError as error:
            if not asking.hung_up:
                self._failed(block, error)
            return {}
        with self._lock:
            if self._left:
                self._left = PATIENCE
            if not found:
                self._nowhere.append(block)
        return {did.name: replicas for did, replicas in found.items()}

    def _failed(self, block: str, error: ServiceXError) -> None:
        """Say so; what will not change by itself once, and then ask no more."""
        with self._lock:
            if not self._left:
                return
            self._left = self._left - 1 if error.retryable else 0
            which = block if self._left else f"{block} and of what follows"
        log.warning("%s; files of %s are read through the redirector", error, which)


async def places_of(options: CmsRucioOptions, names: Sequence[str]) -> Places:
    """Return where files are that are called by their logical names."""
    found = await apart(Asking(options).replicas, [Did(SCOPE, name) for name in names])
    return {did.name: replicas for did, replicas in found.items()}


async def declare(options: CmsRucioOptions, bad: BadReplica) -> None:
    """Tell of a bad replica that Rucio has named; by the redirector it knows of none."""
    if bad.rse:
        await apart(Asking(options).declare, bad, Did(SCOPE, bad.file))
