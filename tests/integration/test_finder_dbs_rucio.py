"""Replicas of CMS files: the finder joins the list of DBS with the answers of a real Rucio.

Only DBS is a stand-in, see `tests.integration.dbs`.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any

import pytest

from servicex_server.datasets.finder_registry import open_finder
from servicex_server.errors import CatalogueDeniedError, CatalogueError, StartupError
from servicex_server.finders.dbs import Dbs, DbsOptions
from servicex_server.finders.rucio_session import RucioSession
from servicex_server.model import BadReplica, InputFile, Replica, now
from servicex_server.settings.loading import load
from tests.integration import rucio
from tests.integration.dbs import LFN, Reader, lines, row
from tests.integration.servers import StandIn, free_port, http, stand_in
from tests.support import missing, until

# the first test waits until the server is installed
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

REDIRECTOR = "cms-xrd-global.cern.ch"


@pytest.fixture(scope="module")
def server() -> Iterator[rucio.Rucio]:
    """Give a Rucio with two sites and a tape, and no files."""
    if find_spec("rucio") is None:
        missing("there is no package rucio-clients here: pip install rucio-clients")
    with rucio.rucio(blocks=True) as running:
        running.scope("cms")
        running.account("jdoe", "hush")
        running.rse("T2_NEAR", {"root": "near:1094"}, site="SITE_NEAR")
        running.rse("T2_FAR", {"root": "far:1094"}, site="SITE_FAR")
        running.rse("T1_TAPE", {"root": "tape:1094"}, kind="TAPE")
        yield running


@pytest.fixture
def reader() -> Reader:
    """Give the data of the stand-in for DBS."""
    return Reader()


@pytest.fixture
def served(reader: Reader) -> Iterator[StandIn]:
    """Give the stand-in for DBS."""
    with stand_in(reader) as running:
        yield running
        for event in reader.held.values():
            event.set()


def finder(served: StandIn, server: rucio.Rucio, **changes: Any) -> Dbs:
    """Return a finder that asks both."""
    asked = {
        "url": server.url,
        "account": "root",
        "auth": "userpass",
        "username": rucio.ROOT,
        "password": rucio.PASSWORD,
    }
    options = {"url": served.url, "seconds": 5, "rucio": asked | changes}
    return Dbs(DbsOptions.model_validate(options))


def lfns(*names: str) -> list[str]:
    return [f"cms:{LFN}/{name}.root" for name in names]


def dataset(
    reader: Reader, server: rucio.Rucio, name: str, *blocks: list[str], unknown: int = 0
) -> str:
    """Add a dataset of blocks of files to both, each file with a replica at a far site.

    Only DBS has the last blocks, as many as are ``unknown``.
    """
    whole = f"/DoubleMuon/{name}/NANOAOD"
    added = reader.add(whole, *([row(file) for file in block] for block in blocks))
    known = len(blocks) - unknown
    for block, files in list(zip(added, blocks, strict=True))[:known]:
        server.dataset(f"cms:{block}", server.files("T2_FAR", lfns(*files)))
    server.container(f"cms:{whole}", [f"cms:{block}" for block in added[:known]])
    return whole


async def found(finder: Dbs, reference: str) -> list[InputFile]:
    return [file async for file in finder.find(reference)]


async def rest(files: AsyncIterator[InputFile]) -> list[InputFile]:
    return [file async for file in files]


def places(files: list[InputFile]) -> list[list[str]]:
    """Return the RSEs of the replicas of each file, or the host of a replica without an RSE."""
    return [[one.rse or one.url.split("/")[2] for one in file.replicas] for file in files]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings to an operator, without those of the Rucio client."""
    ours = [one for one in caplog.records if one.module in ("dbs", "dbs_replicas")]
    return [one.getMessage() for one in ours if one.levelname == "WARNING"]


async def test_file_has_the_replicas_of_rucio_and_then_the_redirector(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The options of the Rucio finder apply. The size and the events are those of DBS."""
    whole = dataset(reader, server, "Join-v1", ["j-1", "j-2"], ["j-3"])
    server.files("T2_NEAR", lfns("j-1", "j-3"))
    server.files("T1_TAPE", lfns("j-2"))
    one, two, three = await found(finder(served, server, prefer=["SITE_NEAR"]), whole)
    assert places([one, two, three]) == [
        ["T2_NEAR", "T2_FAR", REDIRECTOR],
        ["T2_FAR", REDIRECTOR],
        ["T2_NEAR", "T2_FAR", REDIRECTOR],
    ]
    assert (one.name, one.size, one.events) == (f"{LFN}/j-1.root", 2_000_000_003, 1000)
    assert one.replicas[0].url.startswith("root://near:1094//data/cms/")
    assert one.replicas[-1] == Replica(f"root://{REDIRECTOR}/{one.name}")
    near = await found(finder(served, server, exclude=["T2_FAR"]), whole)
    assert places(near) == [["T2_NEAR", REDIRECTOR], [REDIRECTOR], ["T2_NEAR", REDIRECTOR]]
    assert warnings(caplog) == []


async def test_file_that_only_rucio_has_is_not_in_the_dataset(
    reader: Reader, served: StandIn, server: rucio.Rucio
) -> None:
    whole = dataset(reader, server, "Valid-v1", ["v-1", "v-2"])
    reader.blocks[f"{whole}#0000a-0"][1]["is_file_valid"] = 0
    (file,) = await found(finder(served, server), whole)
    assert (file.name, places([file])) == (f"{LFN}/v-1.root", [["T2_FAR", REDIRECTOR]])


async def test_files_that_rucio_does_not_know_have_only_the_redirector(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has one warning for all unknown blocks."""
    whole = dataset(reader, server, "Part-v1", ["p-1", "p-2"], ["p-3"], ["p-4"], unknown=2)
    server.lose("T2_FAR", lfns("p-2"))
    files = await found(finder(served, server), whole)
    assert places(files) == [["T2_FAR", REDIRECTOR], [REDIRECTOR], [REDIRECTOR], [REDIRECTOR]]
    (said,) = warnings(caplog)
    assert said.startswith(f"Rucio has no replicas of 2 of 3 blocks, such as {whole}#000")


async def test_refusal_of_rucio_is_logged_once(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The finder does not ask for the other blocks, and still finds all files."""
    blocks = [[f"r-{n:02d}"] for n in range(20)]
    whole = dataset(reader, server, "Refused-v1", *blocks, unknown=20)
    files = await found(finder(served, server, password="guess"), whole)
    assert places(files) == [[REDIRECTOR]] * 20
    (said,) = warnings(caplog)
    assert "refuses the service" in said
    assert "see the settings finders.dbs.rucio" in said
    assert "and of all further blocks are read through the redirector" in said
    assert "guess" not in said


@pytest.mark.parametrize("wrong", ["away", "silent", "broken", "expression"])
async def test_failing_rucio_costs_seconds_and_no_file(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    """The finder does not wait for each of many blocks."""
    blocks = [[f"{wrong}-{n:02d}"] for n in range(40)]
    whole = dataset(reader, server, f"Fails-{wrong}-v1", *blocks, unknown=40)
    with http("silent") as silent, http() as broken:
        broken.status = 503
        changes = {
            "away": {"url": f"http://127.0.0.1:{free_port()}"},
            "silent": {"url": silent.url("").rstrip("/")},
            "broken": {"url": broken.url("").rstrip("/")},
            "expression": {"rse_expression": "(("},
        }[wrong]
        began = time.monotonic()
        files = await found(finder(served, server, seconds=1, **changes), whole)
        assert time.monotonic() - began < 6
    assert places(files) == [[REDIRECTOR]] * 40
    said = warnings(caplog)
    assert len(said) == (1 if wrong == "expression" else 3)
    assert "and of all further blocks" in said[-1]
    assert "finders.dbs.rucio.rse_expression" in said[0] or wrong != "expression"


async def test_temporary_failure_of_rucio_affects_only_one_block(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = dataset(reader, server, "Passes-v1", *([f"f-{n:02d}"] for n in range(12)))
    ill = {f"{whole}#{n:04d}a-0" for n in (1, 4, 6, 8)}
    asked = RucioSession.replicas_of

    def sometimes(self: RucioSession, dids: Any) -> Any:
        if dids[0].name in ill:
            raise CatalogueError("it is busy")
        return asked(self, dids)

    monkeypatch.setattr(RucioSession, "replicas_of", sometimes)
    one_by_one = Dbs(finder(served, server).options.model_copy(update={"at_once": 1}))
    files = await found(one_by_one, whole)
    far = [len(file.replicas) == 2 for file in files]
    assert [n for n, known in enumerate(far) if not known] == [1, 4, 6, 8]
    assert warnings(caplog) == [
        f"it is busy; files of {block} are read through the redirector" for block in sorted(ill)
    ]


async def test_look_up_yields_blocks_as_a_stream(
    reader: Reader, served: StandIn, server: rucio.Rucio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several sessions ask for a block each at once. All end when the caller has enough.

    The first files come while a later block has no answer yet, and the finder asks for only a few
    blocks ahead of the caller.
    """
    whole = dataset(reader, server, "Stream-v1", *([f"s-{n:03d}"] for n in range(30)))
    reader.held = {block: threading.Event() for block in list(reader.blocks)[3:]}
    asked: list[str] = []
    sessions: set[int] = set()
    replicas_of = RucioSession.replicas_of

    def noted(self: RucioSession, dids: Any) -> Any:
        asked.append(dids[0].name)
        sessions.add(id(self))
        return replicas_of(self, dids)

    monkeypatch.setattr(RucioSession, "replicas_of", noted)
    before = asyncio.all_tasks()
    async with asyncio.timeout(20), aclosing(finder(served, server).find(whole)) as files:
        first = [await anext(files) for _ in range(3)]
        assert places(first) == [["T2_FAR", REDIRECTOR]] * 3
        await asyncio.sleep(0.5)  # whoever goes on without being asked would
    assert len(sessions) == 4
    assert set(asked[:4]) == {f"{whole}#{n:04d}a-0" for n in range(4)}
    assert len(asked) <= 4 * 4
    assert asyncio.all_tasks() == before
    until(lambda: "blocking" not in {one.name for one in threading.enumerate()}, "threads end")


async def test_cancelled_look_up_does_not_wait_for_a_stuck_rucio(
    reader: Reader,
    served: StandIn,
    server: rucio.Rucio,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log does not report the cancelled call as a failure of Rucio."""
    whole = dataset(reader, server, "Stuck-v1", *([f"t-{n:03d}"] for n in range(30)))
    files = finder(served, server, seconds=3).find(whole)
    await anext(files)
    with server.frozen():
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rest(files), 1)
        assert time.monotonic() - began < 8
    until(lambda: "blocking" not in {one.name for one in threading.enumerate()}, "threads end")
    assert warnings(caplog) == []


async def test_incomplete_answer_of_dbs_is_still_an_error(
    reader: Reader, served: StandIn, server: rucio.Rucio
) -> None:
    whole = dataset(reader, server, "Breaks-v1", ["b-1"], ["b-2"])
    reader.wrong[f"{whole}#0001a-0"] = lines()
    with pytest.raises(CatalogueError, match="1 of the 2 files"):
        await found(finder(served, server), whole)


async def test_replica_refresh_finds_a_new_replica(
    reader: Reader, served: StandIn, server: rucio.Rucio
) -> None:
    """The redirector is the last replica. The refresh omits files without a replica in Rucio."""
    whole = dataset(reader, server, "Again-v1", ["a-1", "a-2"])
    server.lose("T2_FAR", lfns("a-1", "a-2"))
    asked = finder(served, server)
    files = await found(asked, whole)
    assert places(files) == [[REDIRECTOR], [REDIRECTOR]]
    server.files("T2_NEAR", lfns("a-1"))
    names = [file.name for file in files]
    again = await asked.replicas_again([*names, f"{LFN}/never.root"])
    assert set(again) == {names[0]}
    assert [one.rse for one in again[names[0]]] == ["T2_NEAR", ""]
    assert again[names[0]][-1] == files[0].replicas[0]
    (one, _) = await found(asked, whole)
    assert one.replicas == again[names[0]]
    assert await asked.replicas_again([]) == {}
    assert await Dbs(DbsOptions(url=served.url)).replicas_again(names) == {}
    with pytest.raises(CatalogueDeniedError, match="refuses the service"):
        await finder(served, server, password="guess").replicas_again(names)


async def test_bad_replica_is_reported_to_the_rucio_that_named_it(
    reader: Reader, served: StandIn, server: rucio.Rucio
) -> None:
    """The finder does not report a replica of the redirector, which is not a site."""
    whole = dataset(reader, server, "Told-v1", ["d-1"])
    (file,) = await found(finder(served, server), whole)
    far, redirected = (
        BadReplica(1, one.url, one.rse, file.name, "dbs", "Corrupt", "no", now(), now(), 1, {})
        for one in file.replicas
    )
    asked = finder(served, server, report_as="bad")
    await asked.report(redirected)
    assert places(await found(asked, whole)) == [["T2_FAR", REDIRECTOR]]
    jdoe = {"account": "jdoe", "username": "jdoe", "password": "hush"}
    with pytest.raises(CatalogueDeniedError) as raised:
        await finder(served, server, report_as="bad", **jdoe).report(far)
    assert "finders.dbs.rucio.report_as" in raised.value.hint
    await asked.report(far)
    assert server.told("B")[f"cms:{file.name}"] == "servicex-server: Corrupt: no"
    assert places(await found(asked, whole)) == [[REDIRECTOR]]


@pytest.mark.parametrize("form", ["each", "text", "whole"])
def test_environment_variables_can_set_every_option(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Each option has a variable. Another one sets Rucio, or all finders, as JSON."""
    chosen = {"url": "https://r", "prefer": "A,B_*", "exclude": '["X"]', "schemes": "https"}
    name = "SERVICEX_SERVER_FINDERS"
    if form == "each":
        for option, value in chosen.items():
            monkeypatch.setenv(f"{name}__DBS__RUCIO__{option.upper()}", value)
    elif form == "text":
        monkeypatch.setenv(f"{name}__DBS__RUCIO", json.dumps(chosen))
    else:
        monkeypatch.setenv(name, json.dumps({"dbs": {"rucio": chosen}}))
    monkeypatch.setenv(f"{name}__DBS__AT_ONCE", "7")
    monkeypatch.setenv(f"{name}__DBS__REDIRECTOR", "root://one.host/")
    options = open_finder("dbs", load()).options
    assert (options.at_once, options.redirector) == (7, "root://one.host/")
    of_rucio = options.rucio
    assert (of_rucio.url, of_rucio.prefer, of_rucio.exclude, of_rucio.schemes) == (
        "https://r",
        ("A", "B_*"),
        ("X",),
        ("https",),
    )


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({}, "url: an address with https:// is needed"),
        ({"url": "https://r", "auth": "userpass"}, "username: a value is needed"),
        ({"url": "https://r", "report_as": "lost"}, "report_as: Input should be 'suspicious'"),
        ({"url": "https://r", "prefer": "["}, "prefer: Expecting value"),
    ],
)
def test_invalid_setting_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("SERVICEX_SERVER_FINDERS__DBS__RUCIO", json.dumps(chosen))
    with pytest.raises(StartupError, match=rf"setting finders\.dbs\.rucio\.{says}"):
        open_finder("dbs", load())


def test_unknown_option_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICEX_SERVER_FINDERS__DBS__RUCIO__PREFERS", "A")
    with pytest.raises(StartupError, match=r"no setting finders\.dbs\.rucio\.prefers"):
        open_finder("dbs", load())
