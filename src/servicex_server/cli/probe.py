"""``servicex-server probe`` with arguments: probes of replicas from this machine."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

from servicex_server.datasets.finder_registry import open_finder, split_count
from servicex_server.errors import DatasetError
from servicex_server.model import Attempt, Limits, ProbeSpec
from servicex_server.plugins import available
from servicex_server.settings.service import Settings
from servicex_server.worker.probe import probe

AT_ONCE = 4
"""Replicas that are probed concurrently."""


async def probes(places: Sequence[str], settings: Settings) -> list[Attempt]:
    """Probe replicas with the deadlines and credentials of the settings.

    Parameters
    ----------
    places
        Paths and URLs of files, or dataset references. Of a dataset, every replica of the first
        file (or of N files, with ``?files=N``) is probed, in every protocol of its catalogue.
    settings
        The settings with deadlines, credentials and catalogues.

    Raises
    ------
    DatasetError, CatalogueError
        A dataset cannot be looked up.
    """
    limits = Limits(
        opening=settings.reading.open_seconds,
        silence=settings.reading.silence_seconds,
        network=settings.network_policy,
        folders=settings.local_folders,
    )
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Attempt:
        async with turn:
            spec = ProbeSpec(url, limits, settings.reading.credentials)
            return await asyncio.to_thread(partial(probe, spec))

    urls = [url for place in places for url in await _urls(place, settings)]
    return list(await asyncio.gather(*map(one, dict.fromkeys(urls))))


async def _urls(place: str, settings: Settings) -> list[str]:
    scheme, mark, rest = place.partition("://")
    if (
        not mark
        or scheme in ("file", "http", "https", "root")
        or scheme not in available("finders")
    ):
        return [place]
    reference, count = split_count(rest)
    finder = open_finder(scheme, settings)
    finder.check(reference)
    urls: list[str] = []
    async with aclosing(finder.find(reference)) as found:
        seen = 0
        async for file in found:
            urls += [replica.url for replica in file.replicas]
            seen += 1
            if seen == (count or 1):
                break
    if not urls:
        raise DatasetError(f"{place} has no replicas to probe")
    return urls
