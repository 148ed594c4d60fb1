"""Bad-replica reports: each sink gets each replica once, and a bad site is one alert."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from servicex_server.database import bad_replicas as rows
from servicex_server.database import datasets as dataset_rows
from servicex_server.database.connection import Database
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    ChecksumError,
    MissingError,
    ServiceXError,
    UnreachableError,
)
from servicex_server.model import Attempt, BadReplica, InputFile, Outcome, Replica, now
from servicex_server.replicas import reporting
from servicex_server.replicas.reporting import (
    BadReplicaReporter,
    JsonLines,
    Sink,
    Webhook,
    sinks_of,
)
from servicex_server.settings.groups import ReportSettings
from servicex_server.settings.service import Settings
from tests.integration.servers import webhook

pytestmark = pytest.mark.anyio

GONE = MissingError("it is not there")


def url(number: int, site: str = "a") -> str:
    """Return the place of a bad replica."""
    return f"root://{site}.org//{number}.root"


async def see(
    database: Database, *numbers: int, site: str = "a", error: ServiceXError = GONE
) -> None:
    """Have replicas that fail at a site, of files that are well at another."""
    dataset_id = await database.write(
        dataset_rows.create, name="set", finder="cat", owner=None, reference={}
    )
    files = [
        InputFile((Replica(url(n, site), site.upper()), Replica(f"/{n}.root")), name=f"s:{n}")
        for n in numbers
    ]
    await database.write(dataset_rows.add_files, dataset_id, 0, files)
    ids = await database.read(
        lambda connection: list(
            connection.exec_driver_sql(
                f"select id from files where dataset_id = {dataset_id} order by position"
            ).scalars()
        )
    )
    ended = []
    for file_id, file in zip(ids, files, strict=True):
        first, second = file.replicas
        tried = (Attempt(first.url, 1.0, error.record()), Attempt(second.url, 1.0))
        ended.append((Outcome("r", file_id, 1, attempts=tried), file))
    await database.write(rows.note, ended)


@dataclass
class Listener(Sink):
    """A sink that keeps its reports. The test can make it fail."""

    name = "listener"
    told: list[str] = field(default_factory=list)
    alerts: list[tuple[str, int]] = field(default_factory=list)
    away: bool = False
    error: Exception = field(default_factory=lambda: CatalogueError("it is away"))
    asked: int = 0

    async def report(self, bad: BadReplica) -> None:
        """Note the replica."""
        self.asked += 1
        if self.away:
            raise self.error
        self.told.append(bad.url)

    async def alert(self, site: str, bad: Any) -> None:
        """Note the site."""
        self.alerts.append((site, len(bad)))


async def test_bad_replica_is_reported_once_a_day(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sink gets it once, also from the next process, and again later if it is still bad."""
    listener = Listener()
    await see(database, 1, 2)
    for _ in range(2):
        await BadReplicaReporter(database, [listener]).report()
    assert sorted(listener.told) == [url(1), url(2)]
    await see(database, 2, 3)
    await BadReplicaReporter(database, [listener]).report()
    assert listener.told[2:] == [url(3)]
    found = {bad.url: bad for bad in await database.read(rows.listed)}
    assert [found[url(n)].times for n in (1, 2, 3)] == [1, 2, 1]
    assert {tuple(bad.reported) for bad in found.values()} == {("listener",)}
    tomorrow = now() + timedelta(days=1, minutes=1)
    monkeypatch.setattr(reporting, "now", lambda: tomorrow)
    monkeypatch.setattr(rows, "now", lambda: tomorrow)
    await BadReplicaReporter(database, [listener]).report()  # nothing has been seen since
    await see(database, 1)
    await BadReplicaReporter(database, [listener]).report()
    assert listener.told[3:] == [url(1)]


@pytest.mark.parametrize("error", [CatalogueError("it is away"), ValueError("a bug")])
async def test_failed_report_is_repeated_later(database: Database, error: Exception) -> None:
    """The other sinks do not get it twice, whatever the error."""
    away, there = Listener(away=True, error=error), Listener()
    there.name = "other"  # type: ignore[misc]  # of this one
    await see(database, 1)
    reports = BadReplicaReporter(database, [there, away, there])
    await reports.report()
    away.away = False
    await reports.report()
    assert away.told == there.told == [url(1)]


class Clock:
    """A clock that the test sets."""

    moment = 1000.0

    def monotonic(self) -> float:
        """Return the time that the test has set."""
        return self.moment


async def test_sink_that_denies_access_is_not_asked_again_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody corrects a credential in ten seconds."""
    refuses = Listener(away=True, error=CatalogueDeniedError("you may not"))
    there = Listener()
    there.name = "other"  # type: ignore[misc]  # of this one
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    await see(database, 1)
    await see(database, 2, site="b")
    reports = BadReplicaReporter(database, [refuses, there])
    for _ in range(3):
        await reports.report()
    assert (refuses.asked, sorted(there.told)) == (1, [url(1), url(2, "b")])
    clock.moment += reporting.REFUSED_SECONDS + 1
    refuses.away = False
    await reports.report()
    assert sorted(refuses.told) == [url(1), url(2, "b")]


async def test_many_bad_replicas_of_a_site_are_one_alert(database: Database) -> None:
    """The service does not report them one by one. It reports those of other sites."""
    listener = Listener()
    reports = BadReplicaReporter(database, [listener])
    await see(database, 1, 2, 3)
    await see(database, 1, site="b")
    await reports.report()
    assert sorted(listener.told) == [url(1), url(2), url(3), url(1, "b")]
    await see(database, *range(1, 9))
    await reports.report()
    await see(database, 9)
    await reports.report()
    assert listener.alerts == [("A", 8)]
    assert len(listener.told) == 4


async def test_replica_is_bad_only_if_another_replica_works(database: Database) -> None:
    """An unreachable storage endpoint, and an error of all replicas, are not reported."""
    await see(database, 1, error=UnreachableError("it is away"))
    file = InputFile((Replica(url(5)), Replica(url(6))))
    tried = tuple(Attempt(one.url, 1.0, GONE.record()) for one in file.replicas)
    outcome = Outcome("r", 1, 1, attempts=tried, error=GONE.record())
    await database.write(rows.note, [(outcome, file)])
    assert await database.read(rows.listed) == []


async def test_wrong_checksum_is_reported_and_a_fault_of_a_cache_is_not(database: Database) -> None:
    """The checksum needs no working replica. A cache proves nothing about its origin."""
    await see(database, 1)  # so that there are files
    file = InputFile((Replica(url(5)), Replica(url(6))), name="s:5")
    wrong = ChecksumError("another file").record()
    cached = Attempt(f"root://cache//{url(5)}", 1.0, GONE.record())
    for attempts, error in (
        ((cached, Attempt(url(5), 1.0)), None),
        ((Attempt(url(6), 1.0, wrong),), wrong),
    ):
        outcome = Outcome("r", 1, 1, attempts=attempts, error=error)
        await database.write(rows.note, [(outcome, file)])
    found = {one.url: one.kind for one in await database.read(rows.listed)}
    assert found == {url(1): "Missing", url(6): "Checksum"}


async def test_url_of_a_bad_replica_may_have_any_length(database: Database) -> None:
    """An index of a database cannot hold such a URL."""
    await see(database, 1, site="x" * 9000)
    await see(database, 1, site="x" * 9000)
    (found,) = await database.read(rows.listed)
    assert (len(found.url) > 9000, found.times, found.finder) == (True, 2, "cat")


async def test_file_and_webhook_get_the_same_report(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The URL of the webhook, which is a secret, is in no log."""
    path = tmp_path / "bad.jsonl"
    with webhook(500, 204, 200) as (address, sent):
        settings = Settings(
            data_dir=tmp_path, reports=ReportSettings(file=path, webhook=SecretStr(address))
        )
        reports = BadReplicaReporter(database, sinks_of(settings))
        await see(database, 1)
        await reports.report()
        await reports.report()
        await see(database, *range(2, 8))
        await reports.report()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one.get("alert") for one in sent] == [None, None, "A"]
    assert sent[0] == sent[1] == lines[0]
    assert sent[2] == lines[1]
    assert {name: lines[0]["replica"][name] for name in ("url", "rse", "file", "error")} == {
        "url": url(1),
        "rse": "A",
        "file": "s:1",
        "error": "Missing",
    }
    assert (len(lines), lines[1]["alert"], len(lines[1]["replicas"])) == (2, "A", 7)
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("servicex_server")]
    assert any("the webhook answers with status 500" in said for said in ours)
    assert "secret" not in "".join(ours)


async def test_unavailable_sink_is_an_error(tmp_path: Path) -> None:
    """The folder does not exist, or nothing listens on the port."""
    bad = BadReplica(1, url(1), "A", "s:1", "cat", "Missing", "", now(), now(), 1, {})
    for sink, said in (
        (JsonLines(tmp_path / "none" / "x"), "cannot be written: No such file"),
        (Webhook("http://127.0.0.1:9/secret"), "does not answer: ConnectError"),
    ):
        with pytest.raises(ServiceXError, match=said):
            await sink.report(bad)


async def test_reports_without_a_sink_go_to_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The service logs the report that it would send."""
    caplog.set_level("INFO")
    await see(database, 1)
    reports = BadReplicaReporter(database, [])
    await reports.report()
    await reports.report()
    lines = [one for one in caplog.messages if one.startswith("bad replica, not reported")]
    assert lines == [f"bad replica, not reported: Missing: {url(1)}"]
