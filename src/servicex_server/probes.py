"""What ``servicex-server probe`` does: looking at replicas from where it is typed."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

from servicex_server.errors import DatasetError
from servicex_server.lookup import open_finder, split_count
from servicex_server.model import Attempt, Limits, ProbeSpec
from servicex_server.plugins import available
from servicex_server.probe import probe
from servicex_server.settings import Settings

AT_ONCE = 4
"""Replicas that are looked at at a time."""


async def probes(places: Sequence[str], settings: Settings) -> list[Attempt]:
    """Look at replicas, with the deadlines and credentials of a service with these settings.

    Parameters
    ----------
    places
        Paths and URLs of files; or datasets as users name them, of whose first file (or files, with
        ``?files=N``) every replica is looked at, by every protocol that its catalogue has.

    Raises
    ------
    DatasetError, CatalogueError
        A dataset cannot be looked up.
    """
    limits = Limits(opening=settings.open_seconds, silence=settings.silence_seconds)
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Attempt:
        async with turn:
            spec = ProbeSpec(url, limits, settings.credentials)
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
        raise DatasetError(f"{place} has no replica that could be looked at")
    return urls
