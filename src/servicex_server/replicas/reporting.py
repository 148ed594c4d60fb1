"""Reports bad replicas to a file, a webhook, or the catalogue that named them.

A failing site makes many replicas bad at once. The operator gets one alert for it, and the
catalogue gets none, because it would treat each replica as a lost file.
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
from servicex_server.datasets.finder_registry import open_finder
from servicex_server.errors import RequestError, ServiceXError, UploadError
from servicex_server.finders.contract import Finder
from servicex_server.model import BadReplica, now
from servicex_server.notifications.webhook import post
from servicex_server.replicas.health import endpoint_of
from servicex_server.settings.service import Settings
from servicex_server.text.escaping import redacted

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Seconds between two checks for bad replicas to report."""

REFUSED_SECONDS = 3600.0
"""Seconds until a sink that refused a report for good gets the next one."""

AGAIN = timedelta(days=1)
"""Time in which a replica is reported once to each sink, and a site once."""

MOST = 5
"""Bad replicas of a site in that time, above which a site is at fault. Rucio has the same limit."""


class Sink(ABC):
    """A receiver of reports."""

    name: ClassVar[str]

    @abstractmethod
    async def report(self, bad: BadReplica) -> None:
        """Report a bad replica.

        Raises
        ------
        ServiceXError
            The report failed; it is repeated later.
        """

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Report a failing site. A sink that is not read by people ignores it."""
        del site, bad


class JsonLines(Sink):
    """A file with one JSON object in each line."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def report(self, bad: BadReplica) -> None:
        """Append a line."""
        await asyncio.to_thread(self._append, {"replica": as_json(bad)})

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Append one line for the site."""
        await asyncio.to_thread(self._append, _alert(site, bad))

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise UploadError(f"{self._path} cannot be written: {error.strerror}") from error


class Webhook(Sink):
    """A URL that receives the same JSON objects as the file."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url

    async def report(self, bad: BadReplica) -> None:
        """Send the object."""
        await post(self._url, {"replica": as_json(bad)})

    async def alert(self, site: str, bad: Sequence[BadReplica]) -> None:
        """Send one object for the site."""
        await post(self._url, _alert(site, bad))


class Catalogue(Sink):
    """The catalogue that named the replica, if it accepts reports."""

    name = "catalogue"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def report(self, bad: BadReplica) -> None:
        """Report to the finder that named the replica, if it is still installed."""
        try:
            finder: Finder = open_finder(bad.finder, self._settings)
        except RequestError:
            return
        await finder.report(bad)


def sinks_of(settings: Settings) -> list[Sink]:
    """Return the sinks that the settings name."""
    found: list[Sink] = []
    if settings.reports.file is not None:
        found.append(JsonLines(settings.reports.file))
    if settings.reports.webhook is not None:
        found.append(Webhook(settings.reports.webhook.get_secret_value()))
    if settings.reports.to_catalogue:
        found.append(Catalogue(settings))
    return found


class BadReplicaReporter:
    """Reports bad replicas that have not been reported yet.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    sinks
        The receivers. Without one, the reports are only logged.
    """

    def __init__(self, database: Database, sinks: Sequence[Sink]) -> None:
        self._database = database
        self._sinks = sinks or [_LogOnly()]
        self._resting: dict[str, float] = {}

    async def run(self) -> None:
        """Report every few seconds."""
        while True:
            try:
                await self.report()
            except Exception:
                log.exception("bad replicas cannot be reported; it is tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def report(self) -> None:
        """Report to each sink the bad replicas that it has not had within a day."""
        told = {one.id: one for one in await self._database.read(rows.listed, since=now() - AGAIN)}
        for sink in self._sinks:
            for site, bad in _by_site(told.values()).items():
                if time.monotonic() < self._resting.get(sink.name, 0.0):
                    break
                # stored at once: Rucio counts a second report as a second observer
                async for one in self._report(sink, site, bad):
                    told[one.id] = replace(one, reported={**one.reported, sink.name: now()})
                    await self._database.write(rows.reported, told[one.id])

    async def _report(
        self, sink: Sink, site: str, bad: Sequence[BadReplica]
    ) -> AsyncIterator[BadReplica]:
        """Report the bad replicas of a site to a sink; yield those that it has now."""
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
                # for a site with an alert, one more bad replica is not reported
                yield one
        except ServiceXError as error:
            log.warning("bad replicas of %s are not reported (%s): %s", site, sink.name, error)
            if not error.retryable:
                self._resting[sink.name] = time.monotonic() + REFUSED_SECONDS
        except Exception:
            log.exception("bad replicas of %s cannot be reported (%s)", site, sink.name)


class _LogOnly(Sink):
    """No sink: reports are only logged."""

    name = "log"

    async def report(self, bad: BadReplica) -> None:
        """Log the replica."""
        log.info("bad replica, not reported: %s: %s", bad.kind, bad.url)


def as_json(bad: BadReplica) -> dict[str, Any]:
    """Return a bad replica as JSON-ready data for sinks."""
    return {
        "url": redacted(bad.url),
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
    """Return bad replicas by their RSE, or by their endpoint if no RSE is known."""
    found: dict[str, list[BadReplica]] = defaultdict(list)
    for one in bad:
        found[one.rse or endpoint_of(one.url) or "this machine"].append(one)
    return found
