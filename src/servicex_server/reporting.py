"""Reporting bad replicas to those who can repair them: a file, a webhook, the catalogue itself.

A site that is ill makes many replicas bad at once. That is for the operator to know, once, and not
for a catalogue, which would take each of them for a lost file.
"""

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from servicex_server.database import bad_replicas as rows
from servicex_server.database.connection import Database
from servicex_server.errors import RequestError, ServiceXError, UploadError
from servicex_server.finders.contract import Finder
from servicex_server.lookup import open_finder
from servicex_server.model import BadReplica, now
from servicex_server.replicas import door_of
from servicex_server.settings import Settings
from servicex_server.webhook import post

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Seconds between two looks for what has to be reported."""

REFUSED_SECONDS = 3600.0
"""Seconds after which somebody is told again who refuses, which does not pass by itself."""

AGAIN = timedelta(days=1)
"""For how long a replica is reported to nobody twice, and a site is told of once."""

MOST = 5
"""Bad replicas of a site in that time, above which it is the site, as Rucio has it too."""


class Sink(ABC):
    """Somebody who is told."""

    name: ClassVar[str]

    @abstractmethod
    async def report(self, bad: BadReplica) -> None:
        """Tell of a bad replica.

        Raises
        ------
        ServiceXError
            It could not be told; it is tried again.
        """

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Tell that a site is ill; one that is no person is not told."""
        del site, bad


class JsonLines(Sink):
    """A file, a line for each."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def report(self, bad: BadReplica) -> None:
        """Append it."""
        await asyncio.to_thread(self._append, {"replica": as_json(bad)})

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Append one line for all."""
        await asyncio.to_thread(self._append, _alert(site, bad))

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise UploadError(f"{self._path} cannot be written: {error.strerror}") from error


class Webhook(Sink):
    """A URL that is sent JSON, the same as the lines of the file."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url

    async def report(self, bad: BadReplica) -> None:
        """Send it."""
        await post(self._url, {"replica": as_json(bad)})

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Send them as one alert."""
        await post(self._url, _alert(site, bad))


class Catalogue(Sink):
    """The catalogue that named the replica, if it takes such words."""

    name = "catalogue"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def report(self, bad: BadReplica) -> None:
        """Tell the finder that found it, if it is still installed."""
        try:
            finder: Finder = open_finder(bad.finder, self._settings)
        except RequestError:
            return
        await finder.report(bad)


def sinks_of(settings: Settings) -> list[Sink]:
    """Return who is told, by what the operator chose."""
    found: list[Sink] = []
    if settings.report_file is not None:
        found.append(JsonLines(settings.report_file))
    if settings.report_webhook is not None:
        found.append(Webhook(settings.report_webhook.get_secret_value()))
    if settings.report_to_catalogue:
        found.append(Catalogue(settings))
    return found


class Reports:
    """Looks for bad replicas that nobody has had word of, and tells.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    sinks
        Who is told. If there are none, what would be reported is in the log.
    """

    def __init__(self, database: Database, sinks: Sequence[Sink]) -> None:
        self._database = database
        self._sinks = sinks or [_DryRun()]
        self._resting: dict[str, float] = {}

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.tell()
            except Exception:
                log.exception("bad replicas cannot be reported; it is tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def tell(self) -> None:
        """Tell each sink of what it has not been told of since yesterday."""
        told = {one.id: one for one in await self._database.read(rows.listed, since=now() - AGAIN)}
        for sink in self._sinks:
            for site, bad in _by_site(told.values()).items():
                if time.monotonic() < self._resting.get(sink.name, 0.0):
                    break
                # written down at once: what is told twice, Rucio takes for two who have seen it
                async for one in self._tell(sink, site, bad):
                    told[one.id] = replace(one, reported={**one.reported, sink.name: now()})
                    await self._database.write(rows.reported, told[one.id])

    async def _tell(
        self, sink: Sink, site: str, bad: Sequence[BadReplica]
    ) -> AsyncIterator[BadReplica]:
        """Tell a sink of the bad replicas of a site; yield those that it knows of by that."""
        moment = now()
        known = [one for one in bad if (at := one.reported.get(sink.name)) and moment - at < AGAIN]
        due = [one for one in bad if one not in known]
        try:
            if due and len(bad) > MOST >= len(known):
                log.warning(
                    "%s has %d bad replicas: it is the site (%s)", site, len(bad), sink.name
                )
                await sink.alert(site, bad)
            for one in due:
                if len(bad) <= MOST:
                    await sink.report(one)
                    log.info("bad replica is reported (%s): %s", sink.name, one.url)
                # one more of a site that is known to be ill is no news
                yield one
        except ServiceXError as error:
            log.warning("bad replicas of %s are not reported (%s): %s", site, sink.name, error)
            if not error.retryable:
                self._resting[sink.name] = time.monotonic() + REFUSED_SECONDS
        except Exception:
            log.exception("bad replicas of %s cannot be reported (%s)", site, sink.name)


class _DryRun(Sink):
    """Nobody: it is said in the log what would be told."""

    name = "log"

    async def report(self, bad: BadReplica) -> None:
        """Log it."""
        log.info("bad replica, which nobody is told of: %s: %s", bad.kind, bad.url)


def as_json(bad: BadReplica) -> dict[str, Any]:
    """Return a bad replica as a sink is told of it."""
    return {
        "url": bad.url,
        "rse": bad.rse,
        "file": bad.file,
        "error": bad.kind,
        "message": bad.message,
        "first_seen": bad.first_seen.isoformat(),
        "last_seen": bad.last_seen.isoformat(),
        "times": bad.times,
    }


def _alert(site: str, bad: Sequence[BadReplica]) -> dict[str, Any]:
    return {"alert": site, "replicas": [as_json(one) for one in bad]}


def _by_site(bad: Iterable[BadReplica]) -> Mapping[str, list[BadReplica]]:
    """Return bad replicas by their RSE, or the door where there is none known."""
    found: dict[str, list[BadReplica]] = defaultdict(list)
    for one in bad:
        found[one.rse or door_of(one.url) or "this machine"].append(one)
    return found
