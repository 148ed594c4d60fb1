"""The finder of Rucio on a real server: its files, its reports of bad replicas, and its errors."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from servicex_server import concurrency
from servicex_server.columnar.reading.trees import open_root
from servicex_server.datasets.finder_registry import open_finder
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    StartupError,
    UnknownDatasetError,
)
from servicex_server.finders import rucio_client, rucio_session
from servicex_server.finders.rucio import Rucio as Finder
from servicex_server.finders.rucio import did_of
from servicex_server.finders.rucio_client import RucioOptions
from servicex_server.model import BadReplica, InputFile, Replica, now
from servicex_server.settings.loading import load
from tests.integration import rucio
from tests.integration.servers import XRootD, certificate, free_port, http, put, xrootd
from tests.support import Server, missing, sample, until

# the first test waits until the server is installed
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

MANY = 3000


@pytest.fixture(scope="module")
def server() -> Iterator[rucio.Rucio]:
    """Give a server with storage of all kinds, without files."""
    if find_spec("rucio") is None:
        missing("there is no package rucio-clients here: pip install rucio-clients")
    with rucio.rucio() as running:
        running.scope("data18")
        running.account("jdoe", "hush")
        running.scope("user.jdoe", "jdoe")
        running.rse("NEAR", {"root": "near:1094"}, site="SITE_NEAR")
        running.rse("FAR", {"root": "far:1095", "davs": "far:443"}, site="SITE_FAR")
        running.rse("TAPE", {"root": "tape:1094"}, kind="TAPE")
        running.rse("OLD_TAPE", {"root": "oldtape:1094"}, istape=True)
        running.rse("CACHE", {"root": "cache:1094"})
        running.rse("ODD", {"davs": "odd:443"})
        running.rse("DOWN", {"root": "down:1094"})
        running.block("DOWN")
        yield running


@pytest.fixture(scope="module")
def many(server: rucio.Rucio) -> str:
    """Give a dataset of many files."""
    files = server.files("NEAR", [f"data18:many.{n:05d}.root" for n in range(MANY)])
    return server.dataset("data18:many", files)


def finder(server: rucio.Rucio, **changes: Any) -> Finder:
    """Return a finder that asks as root."""
    options = {
        "url": server.url,
        "account": "root",
        "auth": "userpass",
        "username": rucio.ROOT,
        "password": rucio.PASSWORD,
    } | changes
    return Finder(RucioOptions.model_validate(options))


async def found(server: rucio.Rucio, reference: str, **changes: Any) -> list[InputFile]:
    """Return the files of a reference."""
    return [file async for file in finder(server, **changes).find(reference)]


async def rses(server: rucio.Rucio, reference: str, **changes: Any) -> list[str]:
    """Return the RSEs of the replicas of the only file, in order."""
    (file,) = await found(server, reference, **changes)
    return [replica.rse for replica in file.replicas]


def threads() -> list[threading.Thread]:
    """Return the threads of look-ups."""
    return [one for one in threading.enumerate() if one.name == "blocking"]


async def rest(files: AsyncIterator[InputFile]) -> list[InputFile]:
    return [file async for file in files]


def names(files: Sequence[InputFile]) -> list[str]:
    return [file.name for file in files]


# --- what is found -------------------------------------------------------------------------


async def test_dataset_has_its_files_with_size_checksum_and_replica(server: rucio.Rucio) -> None:
    files = server.files("NEAR", ["data18:a.1", "data18:a.2"], size=77, adler32="00c0ffee")
    one, two = await found(server, server.dataset("data18:a", files))
    assert names([one, two]) == files
    assert (one.size, one.adler32, one.events) == (77, "00c0ffee", 0)
    (replica,) = one.replicas
    assert replica.rse == "NEAR"
    assert replica.url.startswith("root://near:1094//data/data18/")
    assert replica.url.endswith("/a.1")
    assert threads() == []


async def test_a_single_file_is_found(server: rucio.Rucio) -> None:
    (name,) = server.files("NEAR", ["data18:single.root"], size=5)
    (file,) = await found(server, name)
    assert (file.name, file.size, file.replicas[0].rse) == (name, 5, "NEAR")


async def test_checksum_is_padded_to_eight_digits(server: rucio.Rucio) -> None:
    (name,) = server.files("NEAR", ["data18:checksum"])
    dataset = server.dataset("data18:checksums", [name])
    for stored, shown in (("'a1B'", "00000a1b"), ("null", None)):
        server.run(f"update replicas set adler32 = {stored} where name = 'checksum'")
        assert [file.adler32 for file in await found(server, dataset)] == [shown]


async def test_nested_containers_give_each_file_once(server: rucio.Rucio) -> None:
    files = server.files("NEAR", [f"data18:nested.{n}" for n in range(5)])
    first = server.dataset("data18:nested.first", files[:3])
    second = server.dataset("data18:nested.second", files[2:])  # has one of the first
    inner = server.container("data18:nested.inner", [first, second])
    again = server.container("data18:nested.again", [first])
    outer = server.container("data18:nested.outer", [inner, again])
    assert sorted(names(await found(server, outer))) == files
    # which no server should allow
    server.run(
        "insert into contents (scope, name, child_scope, child_name, did_type, child_type, "
        "created_at, updated_at) select child_scope, child_name, scope, name, child_type, "
        "did_type, created_at, updated_at from contents where name = 'nested.outer'"
    )
    assert sorted(names(await found(server, outer))) == files
    assert sorted(names(await found(server, inner))) == files


async def test_a_name_of_cms_is_found(server: rucio.Rucio) -> None:
    server.scope("cms")
    (file,) = server.files("NEAR", ["cms:/store/data/Run2018A/1.root"])
    block = server.dataset("cms:/SingleMuon/Run2018A-v1/NANOAOD-1", [file])
    whole = server.container("cms:/SingleMuon/Run2018A-v1/NANOAOD", [block])
    assert names(await found(server, whole)) == [file]


async def test_scope_is_derived_from_the_name_as_rucio_does(server: rucio.Rucio) -> None:
    from rucio.common.utils import ScopeExtractionAlgorithms

    (file,) = server.files("NEAR", ["user.jdoe:user.jdoe.1.root"])
    server.dataset("user.jdoe:user.jdoe.zmumu.v1", [file])
    assert names(await found(server, "user.jdoe.zmumu.v1/")) == [file]
    for name in ("data18_13TeV.1.AOD", "group.phys.x.y/", "users.x.y.z", "mc16.a", "user.a.b"):
        assert did_of(name) == ScopeExtractionAlgorithms.extract_scope_default(name, None)


async def test_file_without_a_readable_replica_is_found_with_the_others(
    server: rucio.Rucio,
) -> None:
    files = server.files("NEAR", [f"data18:lost.{n}" for n in range(4)], size=9)
    server.files("DOWN", ["data18:lost.4"], size=9)
    server.files("ODD", ["data18:lost.5"], size=9)
    server.lose("NEAR", files[1:2])
    dataset = server.dataset("data18:lost", [*files, "data18:lost.4", "data18:lost.5"])
    by_name = {file.name: file for file in await found(server, dataset)}
    assert len(by_name) == 6
    unread = {name for name, file in by_name.items() if not file.replicas}
    assert unread == {"data18:lost.1", "data18:lost.4", "data18:lost.5"}
    assert {file.size for file in by_name.values()} == {9}
    (alone,) = await found(server, "data18:lost.1")
    assert alone == by_name["data18:lost.1"]
    assert alone.path == "data18:lost.1"


async def test_tapes_are_not_read(server: rucio.Rucio) -> None:
    for rse in ("TAPE", "OLD_TAPE", "NEAR"):
        server.files(rse, ["data18:taped"])
    server.files("TAPE", ["data18:only-taped"])
    assert await rses(server, "data18:taped") == ["NEAR"]
    assert await rses(server, "data18:taped", rse_expression="") == ["NEAR", "OLD_TAPE"]
    assert await rses(server, "data18:taped", rse_expression="TAPE") == []
    assert await rses(server, "data18:only-taped") == []


async def test_settings_order_and_exclude_replicas(server: rucio.Rucio) -> None:
    for rse in ("NEAR", "FAR", "CACHE"):
        server.files(rse, ["data18:order"])
    server.call("PUT", "/rses/CACHE", {"volatile": True})
    assert sorted((await rses(server, "data18:order"))[:2]) == ["FAR", "NEAR"]
    assert (await rses(server, "data18:order"))[2] == "CACHE"  # it may be gone
    for prefer in (["FAR"], ["F*"], ["SITE_FAR"], ["NOWHERE", "FAR", "NEAR"]):
        assert await rses(server, "data18:order", prefer=prefer) == ["FAR", "NEAR", "CACHE"]
    assert await rses(server, "data18:order", prefer=["CACHE", "SITE_NEAR"]) == [
        "CACHE",
        "NEAR",
        "FAR",
    ]
    for site in ("NEAR", "FAR"):
        assert (await rses(server, "data18:order", site=f"SITE_{site}"))[0] == site
    assert await rses(server, "data18:order", exclude=["CACHE", "F*"]) == ["NEAR"]
    assert await rses(server, "data18:order", rse_expression="site=SITE_FAR") == ["FAR"]


async def test_setting_chooses_and_orders_the_protocols_of_an_rse(server: rucio.Rucio) -> None:
    server.files("FAR", ["data18:doors"])
    for schemes, first in (
        (["root", "davs"], ["root://far:1095//data/", "https://far:443/data/"]),
        (["davs", "root"], ["https://far:443/data/", "root://far:1095//data/"]),
        (["root", "https"], ["root://far:1095//data/"]),
        (["http"], []),
    ):
        (file,) = await found(server, "data18:doors", schemes=schemes)
        urls = [replica.url for replica in file.replicas]
        assert len(urls) == len(first)
        assert all(url.startswith(start) for url, start in zip(urls, first, strict=True))


async def live(server: rucio.Rucio, door: XRootD, rse: str, names: Sequence[str]) -> None:
    """Add files that really exist, on a storage endpoint of their own."""
    server.rse(rse, {"root": f"{door.address}:{door.port}"})
    path = sample("uproot-Zmumu.root")
    for name in server.files(rse, names, size=path.stat().st_size):
        (file,) = await found(server, name)
        place = door.folder / file.replicas[0].url.partition(f"{door.port}//")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        put(place.parent, place.name, path)


async def test_found_file_can_be_read(server: rucio.Rucio) -> None:
    with xrootd() as door:
        await live(server, door, "LIVE", ["data18:zmumu.root"])
        (file,) = await found(server, "data18:zmumu.root")
        with open_root(file.replicas[0].url) as opened:
            assert opened.trees == ["events"]


async def test_service_processes_a_dataset(
    server: rucio.Rucio, new_server: Callable[..., Server]
) -> None:
    settings = {
        "URL": server.url,
        "AUTH": "userpass",
        "USERNAME": rucio.ROOT,
        "PASSWORD": rucio.PASSWORD,
        "PREFER": '["NOWHERE", "SERVED"]',
    }
    variables = {f"SERVICEX_SERVER_FINDERS__RUCIO__{name}": one for name, one in settings.items()}
    names = [f"data18:served.{n}.root" for n in range(3)]
    with xrootd() as door:
        await live(server, door, "SERVED", names[:2])
        server.files("NEAR", names[2:])
        server.lose("NEAR", names[2:])
        server.dataset("data18:served", names)
        running = new_server(**variables)
        ended = running.run(did="rucio://data18:served", file_list=None)
        assert ended["status"] == "Complete"
        assert (ended["files-completed"], ended["files-failed"]) == (2, 1)
        (failed,) = running.errors(ended["request_id"])
        assert names[2] in str(failed)
        ended = running.run(did="data18:served?files=1", file_list=None)
        assert (ended["status"], ended["files"]) == ("Complete", 1)
        ended = running.run(did="rucio://data18:served.not", file_list=None)
        assert ended["status"] == "Bad Dataset"
        assert "Rucio has no data18:served.not" in str(ended)
        answer = running.submit(did="rucio://rucio://data18:served", file_list=None)
        assert answer.status_code == 400
        assert "write rucio://data18:served" in answer.json()["message"]


def suspicious(server: rucio.Rucio) -> dict[str, str]:
    """Return the suspicious files of the next test, each with the reason."""
    told = server.told("S").items()
    return {name: reason for name, reason in told if name.startswith("data18:shared.")}


async def test_bad_replicas_are_reported_to_rucio_and_cost_no_file(
    server: rucio.Rucio, new_server: Callable[..., Server]
) -> None:
    """Six of twenty files have a bad replica at the site that the service reads first.

    The service delivers all files as from a clean site. It reports five replicas to Rucio as
    suspicious, each with the reason. With the sixth, it alerts the operator about the site instead.
    """
    options = {"URL": server.url, "AUTH": "userpass", "USERNAME": rucio.ROOT}
    options |= {"PASSWORD": rucio.PASSWORD, "PREFER": "ILL"}
    variables = {f"SERVICEX_SERVER_FINDERS__RUCIO__{name}": one for name, one in options.items()}
    names = [f"data18:shared.{n:02d}.root" for n in range(20)]
    path = sample("uproot-Zmumu.root")
    content = path.read_bytes()
    bad = {1: None, 4: content[:9999], 7: b"x" * 999, 10: None, 13: b"", 16: b"root" + bytes(999)}
    with xrootd("127.0.0.2") as ill, xrootd("127.0.0.3") as sound:
        await live(server, sound, "SOUND", names)
        server.rse("ILL", {"root": f"{ill.address}:{ill.port}"})
        server.files("ILL", names, size=path.stat().st_size)
        for number, name in enumerate(names):
            (file,) = await found(server, name, prefer=("ILL",))
            assert [replica.rse for replica in file.replicas] == ["ILL", "SOUND"]
            place = ill.folder / file.replicas[0].url.partition(f"{ill.port}//")[2]
            place.parent.mkdir(parents=True, exist_ok=True)
            if (broken := bad.get(number, content)) is not None:
                put(place.parent, place.name, broken)
        server.dataset("data18:shared", names)
        running = new_server(
            "--workers", "2", **variables, SERVICEX_SERVER_REPORTS__TO_CATALOGUE="true"
        )
        # five bad replicas of a site are its files, and six are the site
        clean = running.run(did="rucio://data18:shared?files=14", file_list=None)
        assert (clean["files-completed"], clean["files-failed"]) == (14, 0)
        until(lambda: len(suspicious(server)) == 5, "five replicas are suspicious")
        ended = running.run(did="rucio://data18:shared", file_list=None)
        assert (ended["files-completed"], ended["files-failed"]) == (20, 0)
        objects = running.data_dir / "objects"
        keys = running.rows("select object_key from tasks where state = 'done'")
        assert len({(objects / key).read_bytes() for (key,) in keys}) == 1
        until(lambda: "it is the site" in running.output, "the operator is alerted")
        listed = running.get("/servicex/replicas/bad").json()["replicas"]
    assert {one["file"] for one in listed} == {names[number] for number in bad}
    assert {one["rse"] for one in listed} == {"ILL"}
    told = suspicious(server)
    assert set(told) == {names[number] for number in (1, 4, 7, 10, 13)}
    assert re.match(
        r"servicex-server: Missing: root://127\.0\.0\.2.* does not exist", told[names[1]]
    )
    assert {name: reason.split(": ")[1] for name, reason in told.items()} == {
        names[1]: "Missing",
        names[4]: "Truncated",
        names[7]: "Corrupt",
        names[10]: "Missing",
        names[13]: "Truncated",
    }


async def test_replica_refresh_finds_a_new_replica(
    server: rucio.Rucio,
) -> None:
    """It uses the options of the look-up, and returns only the names in the question."""
    names = server.files("NEAR", [f"data18:again.{n}" for n in range(3)])
    dataset = server.dataset("data18:again", names)
    server.rse("SHUNNED", {"root": "shunned:1094"})
    chosen = {"prefer": ["SITE_FAR"], "exclude": ["SHUNNED"]}
    first = {file.name: file.replicas for file in await found(server, dataset, **chosen)}
    asked = finder(server, **chosen)
    assert await asked.replicas_again(names) == first
    for rse in ("FAR", "SHUNNED", "TAPE"):
        server.files(rse, names[1:2])
    server.lose("NEAR", names[2:])
    again = await asked.replicas_again([names[1], names[2], "data18:never", "odd"])
    assert {name: [one.rse for one in copies] for name, copies in again.items()} == {
        names[1]: ["FAR", "NEAR"]
    }
    files = {file.name: file.replicas for file in await found(server, dataset, **chosen)}
    assert again[names[1]] == files[names[1]]


async def test_replica_refresh_raises_the_error_of_the_server(server: rucio.Rucio) -> None:
    with pytest.raises(CatalogueDeniedError, match="refuses the service"):
        await finder(server, password="guess").replicas_again(["data18:x"])
    away = finder(server, url=f"http://127.0.0.1:{free_port()}", seconds=1)
    with pytest.raises(CatalogueError, match="does not answer"):
        await away.replicas_again(["data18:x"])
    assert await away.replicas_again([]) == await Finder().replicas_again(["data18:x"]) == {}


# --- what is told ---------------------------------------------------------------------------


def bad(file: str, replica: Replica) -> BadReplica:
    """Return a replica that failed where another one worked."""
    kind, said = "Truncated", "it ends after 3 bytes"
    return BadReplica(1, replica.url, replica.rse, file, "rucio", kind, said, now(), now(), 1, {})


@pytest.mark.parametrize("scope", ["data18", "user.jdoe"])
async def test_setting_lets_the_service_declare_a_replica_bad(
    server: rucio.Rucio, scope: str
) -> None:
    """Rucio no longer lists it. The scope may have a dot, which no URL shows."""
    (name,) = server.files("NEAR", [f"{scope}:declared.bad"])
    server.files("FAR", [name])
    (file,) = await found(server, name, prefer=["NEAR"])
    assert [one.rse for one in file.replicas] == ["NEAR", "FAR"]
    asked = finder(server, report_as="bad")
    await asked.report(bad(name, file.replicas[0]))
    assert await rses(server, name) == ["FAR"]
    reason = "servicex-server: Truncated: it ends after 3 bytes"
    assert server.told("B")[name] == reason
    assert name not in server.told("S")
    await asked.report(bad(name, file.replicas[0]))  # it is no error that it knows
    assert await rses(server, name) == ["FAR"]


async def test_only_a_privileged_account_can_declare_a_replica_bad(
    server: rucio.Rucio,
) -> None:
    """Another account gets an error with the setting, and can declare the replica suspicious."""
    (name,) = server.files("NEAR", ["data18:declared.by.jdoe"])
    (file,) = await found(server, name)
    jdoe = {"account": "jdoe", "username": "jdoe", "password": "hush"}
    with pytest.raises(CatalogueDeniedError, match="can not declare bad replicas") as raised:
        await finder(server, report_as="bad", **jdoe).report(bad(name, file.replicas[0]))
    assert "finders.rucio.report_as" in raised.value.hint
    assert not {name} & (set(server.told("B")) | set(server.told("S")))
    await finder(server, **jdoe).report(bad(name, file.replicas[0]))
    assert server.told("S")[name] == "servicex-server: Truncated: it ends after 3 bytes"
    assert await rses(server, name) == ["NEAR"]


@pytest.mark.parametrize(
    ("name", "rse"),
    [
        ("data18:never", "NEAR"),
        ("data18:declared.odd", "GONE"),
        ("data18:declared.odd", ""),
        ("odd", "NEAR"),
    ],
)
async def test_report_of_an_unknown_replica_is_not_an_error(
    server: rucio.Rucio, caplog: pytest.LogCaptureFixture, name: str, rse: str
) -> None:
    """After an error, the service would repeat the report again and again."""
    replica = Replica("root://near:1094//data/odd", rse)
    await finder(server, report_as="bad").report(bad(name, replica))
    assert "Rucio does not know the replica root://near:1094//data/odd" in caplog.text
    assert name not in server.told("B")


# --- as a stream ---------------------------------------------------------------------------


async def test_look_up_yields_the_first_file_before_it_lists_the_last(
    server: rucio.Rucio, many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    once = rucio_session.RucioSession._once

    def counted(self: Any, record: dict[str, Any]) -> Iterator[InputFile]:
        nonlocal listed
        listed += 1
        return once(self, record)

    monkeypatch.setattr(rucio_session.RucioSession, "_once", counted)
    monkeypatch.setattr(concurrency, "AHEAD", 100)
    files = finder(server, sort="random").find(many)
    names = [(await anext(files)).name]
    await asyncio.sleep(0.5)  # whoever goes on without being asked would
    assert listed <= 102
    names += [file.name async for file in files]
    assert sorted(names) == [f"data18:many.{n:05d}.root" for n in range(MANY)]
    assert listed == MANY
    assert threads() == []


async def test_stopped_look_up_leaves_no_thread(server: rucio.Rucio, many: str) -> None:
    files = finder(server, sort="random").find(many)
    await anext(files)
    assert len(threads()) == 1
    await files.aclose()
    assert threads() == []


async def test_cancelled_look_up_on_a_stuck_server_leaves_no_thread(
    server: rucio.Rucio, many: str
) -> None:
    files = finder(server, sort="random").find(many)
    await anext(files)
    with server.frozen():
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rest(files), 1)
        assert time.monotonic() - began < 5
        assert threads() == []


async def test_concurrent_look_ups_do_not_disturb_each_other(
    server: rucio.Rucio, many: str
) -> None:
    server.files("NEAR", ["data18:beside"])
    jdoe = {"account": "jdoe", "username": "jdoe", "password": "hush"}
    both = await asyncio.gather(
        found(server, many, sort="random"), found(server, "data18:beside", **jdoe)
    )
    assert [len(files) for files in both] == [MANY, 1]


# --- what is wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "there is no name after rucio://"),
        ("  ", "there is no name after rucio://"),
        ("rucio://data18:x", r"has rucio:// twice \(write rucio://data18:x\)"),
        ("rucio://rucio://data18:x", r"twice \(write rucio://data18:x\)"),
        ("https://host/x", "is a URL"),
        ("data18:x*", "is a pattern"),
        ("data18:?", "is a pattern"),
        ("data18:x y", "has a space"),
        ("data18:x\x00", "has a space or a control character"),
        ("data18:x:y", "is not one scope and one name"),
        (":x", "is not one scope"),
        ("data18:", "is not one scope"),
        ("data18:/", "is not one scope"),
        ("nodots", "has no scope, and the name does not imply one"),
        ("user.jdoe", "has no scope"),
        (".x", "has no scope"),
        ("/store/data/x.root", "has no scope"),
        ("data18:" + "x" * 500, "has 507 characters; at most 500"),
    ],
)
def test_invalid_name_is_rejected_with_the_right_form(reference: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says) as raised:
        Finder().check(reference)
    assert raised.value.message.startswith("did: ")
    assert "rucio://" in str(raised.value) or len(reference) > 500


def test_reference_is_rejected_without_a_rucio_server() -> None:
    with pytest.raises(DatasetError, match="has no Rucio server"):
        Finder().check("data18:x")


async def test_unknown_dataset_is_rejected_with_the_nearest_names(server: rucio.Rucio) -> None:
    server.dataset("data18:data18.physics_Main.DAOD.p4910", [])
    with pytest.raises(UnknownDatasetError, match="did you mean") as raised:
        await found(server, "data18:data18.physics_Main.DAOD.p4901")
    assert "Rucio has no data18:data18.physics_Main.DAOD.p4901" in raised.value.message
    assert "data18.physics_Main.DAOD.p4910" in raised.value.hint
    with pytest.raises(UnknownDatasetError, match="the scope nobody has no name"):
        await found(server, "nobody:nothing.of.it")
    assert threads() == []


async def test_empty_dataset_is_rejected(server: rucio.Rucio) -> None:
    empty = server.dataset("data18:empty", [])
    inside = server.container("data18:empty.container", [empty])
    for one in (empty, inside):
        with pytest.raises(DatasetError, match="has no files"):
            await found(server, one)


async def test_wrong_password_or_account_is_not_retryable(server: rucio.Rucio) -> None:
    server.files("NEAR", ["data18:secret"])
    assert await rses(server, "data18:secret") == ["NEAR"]  # whose token is of no use to others
    for wrong in ({"password": "guess"}, {"account": "nobody"}, {"account": "jdoe"}):
        with pytest.raises(CatalogueDeniedError, match="refuses the service") as raised:
            await found(server, "data18:secret", **wrong)
        assert not raised.value.retryable
        assert "guess" not in str(raised.value)


async def test_expired_proxy_is_rejected_before_its_use(
    server: rucio.Rucio, tmp_path: Path
) -> None:
    ended = now() - timedelta(hours=3)
    proxy = expired(tmp_path / "proxy", ended)
    with pytest.raises(CatalogueDeniedError, match=f"expired at {ended:%Y-%m-%d %H:%M} UTC"):
        await found(server, "data18:x", auth="x509_proxy", proxy_file=proxy)
    proxy.write_text("no certificate")
    for file in (proxy, tmp_path / "none"):
        with pytest.raises(CatalogueDeniedError, match=f"the proxy {file} cannot be read"):
            await found(server, "data18:x", auth="x509_proxy", proxy_file=file)
    fresh, _ = certificate(tmp_path)
    with pytest.raises(CatalogueDeniedError, match=r"refuses the service.*x509_proxy"):
        await found(server, "data18:x", auth="x509_proxy", proxy_file=fresh)


async def test_a_token_is_read_from_its_file(
    server: rucio.Rucio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files("NEAR", ["data18:token"])
    monkeypatch.setenv("BEARER_TOKEN", "another")
    file = tmp_path / "token"
    file.write_text(server.client.headers["X-Rucio-Auth-Token"] + "\n")
    assert await rses(server, "data18:token", auth="oidc", token_file=file) == ["NEAR"]
    with pytest.raises(CatalogueDeniedError, match="refuses the service"):
        await found(server, "data18:token", auth="oidc")
    file.write_text("\n")
    with pytest.raises(CatalogueDeniedError, match="there is no token"):
        await found(server, "data18:token", auth="oidc", token_file=file)


async def test_rucio_configuration_of_the_machine_is_ignored(
    server: rucio.Rucio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rucio.common.config import clean_cached_config

    server.files("NEAR", ["data18:alone"])
    token = tmp_path / "token"
    config = tmp_path / "rucio.cfg"
    config.write_text(
        f"[client]\nrucio_host = http://nowhere\naccount = nobody\nauth_token_file_path = {token}\n"
    )
    monkeypatch.setenv("RUCIO_CONFIG", str(config))
    monkeypatch.setenv("RUCIO_ACCOUNT", "nobody")
    clean_cached_config()
    try:
        assert await rses(server, "data18:alone") == ["NEAR"]
        assert await rses(server, "data18:alone", account="") == ["NEAR"]
    finally:
        clean_cached_config()
    assert not token.exists()


async def test_invalid_rse_expression_is_an_error_of_the_setting(server: rucio.Rucio) -> None:
    server.files("NEAR", ["data18:expression"])
    for wrong in ("((", "site=NOWHERE"):
        with pytest.raises(StartupError, match=r"setting finders\.rucio\.rse_expression"):
            await found(server, "data18:expression", rse_expression=wrong)


async def test_down_or_silent_server_is_a_retryable_error_within_seconds(
    server: rucio.Rucio,
) -> None:
    with http("silent") as silent, http() as broken:
        broken.status = 503
        for url, says in (
            (f"http://127.0.0.1:{free_port()}", "does not answer"),
            (silent.url(""), "does not answer"),
            (broken.url(""), "answers with status 503"),
        ):
            began = time.monotonic()
            with pytest.raises(CatalogueError, match=says) as raised:
                await found(server, "data18:x", url=url.rstrip("/"), seconds=1)
            assert raised.value.retryable
            assert time.monotonic() - began < 5
    assert threads() == []


async def test_server_that_stops_in_the_middle_of_a_list_is_an_error(
    server: rucio.Rucio, many: str
) -> None:
    files = finder(server, seconds=1, sort="random").find(many)
    await anext(files)
    with server.frozen(), pytest.raises(CatalogueError, match="does not answer"):
        await rest(files)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "rucio.example.org"}, "url: an address with https://"),
        ({"url": "https://r", "auth_url": "r"}, "auth_url: an address with https://"),
        ({"url": "https://r", "auth": "userpass"}, "username: a value is needed"),
        ({"url": "https://r", "auth": "userpass", "username": "u"}, "password: a value is needed"),
    ],
)
def test_invalid_setting_is_named_in_the_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(StartupError, match=rf"setting finders\.rucio\.{says}"):
        Finder(RucioOptions.model_validate(options))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rucio_client, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"rucio-clients \(pip install 'rucio-clients"):
        Finder(RucioOptions(url="https://rucio.example.org"))


@pytest.mark.parametrize("given", ['["A", "B_*"]', "A,B_*", " A , B_*,", ["A", "B_*"]])
def test_list_settings_may_be_texts(
    monkeypatch: pytest.MonkeyPatch, given: str | list[str]
) -> None:
    """Each has a variable of its own, or one variable has all of them as JSON."""
    assert RucioOptions.model_validate({"prefer": given}).prefer == ("A", "B_*")
    monkeypatch.setenv("SERVICEX_SERVER_FINDERS", json.dumps({"rucio": {"exclude": given}}))
    if isinstance(given, str):
        monkeypatch.setenv("SERVICEX_SERVER_FINDERS__RUCIO__PREFER", given)
        monkeypatch.setenv("SERVICEX_SERVER_FINDERS__RUCIO__SCHEMES", "https,root")
    options = open_finder("rucio", load()).options
    assert options.exclude == ("A", "B_*")
    if isinstance(given, str):
        assert (options.prefer, options.schemes) == (("A", "B_*"), ("https", "root"))


def test_invalid_list_setting_is_named_in_the_error() -> None:
    for wrong in ("", "gsiftp", "[", '["root", "gsiftp"]'):
        with pytest.raises(ValidationError, match="schemes"):
            RucioOptions.model_validate({"schemes": wrong})


def test_a_password_may_look_like_a_number_and_is_not_shown() -> None:
    options = RucioOptions.model_validate({"password": 1234})
    assert options.password.get_secret_value() == "1234"
    assert "1234" not in repr(options)


def expired(path: Path, ended: Any) -> Path:
    """Write a certificate that expired at a given time."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(ended - timedelta(days=1))
        .not_valid_after(ended)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path
