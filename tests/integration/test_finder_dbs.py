"""Datasets of CMS as files.

A stand-in answers for DBS, see `tests.integration.dbs`.
"""

import asyncio
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    ServiceXError,
    UnknownDatasetError,
)
from servicex_server.finders.dbs import Dbs, DbsOptions
from servicex_server.model import InputFile
from tests.integration.dbs import LFN, NAME, Reader, lines, names, refused, row
from tests.integration.servers import (
    Answer,
    StandIn,
    certificate,
    free_port,
    put,
    stand_in,
)
from tests.support import needed

pytestmark = pytest.mark.anyio


@pytest.fixture
def reader() -> Reader:
    """Give the data of the stand-in."""
    return Reader()


@pytest.fixture
def served(reader: Reader) -> Iterator[StandIn]:
    """Give the stand-in."""
    with stand_in(reader) as running:
        yield running
        for event in reader.held.values():
            event.set()


@pytest.fixture
def finder(served: StandIn) -> Dbs:
    """Give a finder that asks the stand-in."""
    return Dbs(DbsOptions(url=f"{served.url}/dbs/prod/global/DBSReader", seconds=5))


async def files_of(finder: Dbs, reference: str = NAME) -> list[InputFile]:
    finder.check(reference)
    return [file async for file in finder.find(reference)]


async def fault_of(finder: Dbs, reference: str = NAME) -> ServiceXError:
    with pytest.raises(ServiceXError) as caught:
        await files_of(finder, reference)
    return caught.value


async def test_file_has_its_size_events_and_checksum_from_dbs(
    reader: Reader, served: StandIn, finder: Dbs
) -> None:
    reader.add(NAME, [row("A1")])
    (file,) = await files_of(finder)
    assert file.name == f"{LFN}/A1.root"
    assert [one.url for one in file.replicas] == [f"root://cms-xrd-global.cern.ch/{file.name}"]
    assert (file.size, file.events, file.adler32) == (2_000_000_002, 1000, "1fa61aca")
    calls = [asked.path.removeprefix("/dbs/prod/global/DBSReader/") for asked in served.asked]
    assert calls == ["datasets", "filesummaries", "blocks", "files"]
    assert served.asked[-1].query["block_name"] == f"{NAME}#0000a-0"


@pytest.mark.parametrize(
    "redirector", ["root://host:1095", "root://host:1095/", "root://host:1095//"]
)
async def test_files_are_read_through_the_configured_redirector(
    reader: Reader, served: StandIn, redirector: str
) -> None:
    reader.add(NAME, [row("A1")])
    (file,) = await files_of(Dbs(DbsOptions(url=f"{served.url}/", redirector=redirector)))
    assert file.path == f"root://host:1095/{LFN}/A1.root"


@pytest.mark.parametrize(
    ("of_dbs", "expected"),
    [
        ({"event_count": None, "adler32": "NOTSET", "file_size": None}, (0, 0, None)),
        ({"event_count": -1, "adler32": None, "file_size": 0}, (0, 0, None)),
        ({"event_count": 0, "adler32": "a6", "file_size": 7}, (7, 0, "000000a6")),
        ({"event_count": 5, "adler32": "1FA61ACA", "file_size": 7}, (7, 5, "1fa61aca")),
    ],
)
async def test_values_that_dbs_does_not_know_stay_unknown(
    reader: Reader, finder: Dbs, of_dbs: dict[str, Any], expected: tuple[int, int, str | None]
) -> None:
    reader.add(NAME, [row("A1", **of_dbs)])
    (file,) = await files_of(finder)
    assert (file.size, file.events, file.adler32) == expected


async def test_invalid_files_are_left_out(reader: Reader, finder: Dbs) -> None:
    reader.add(NAME, [row("good"), row("bad", is_file_valid=0)], [row("bad2", is_file_valid=0)])
    assert names(await files_of(finder)) == ["good"]


async def test_dataset_in_production_is_read(reader: Reader, finder: Dbs) -> None:
    reader.add(NAME, [row("A1")], kind="PRODUCTION")
    assert names(await files_of(finder)) == ["A1"]


async def test_blocks_are_requested_in_parallel_and_come_in_order(
    reader: Reader, served: StandIn, finder: Dbs
) -> None:
    """The first block answers last. Its files still come first, and no file is lost.

    The stand-in has both blocks and files in another order.
    """
    blocks = reader.add(NAME, *([row(f"{n}-0"), row(f"{n}-1")] for n in range(10)))
    reader.held = {blocks[0]: threading.Event()}
    found: list[InputFile] = []

    async def collect() -> None:
        found.extend(await files_of(finder))

    async with asyncio.timeout(20):
        collecting = asyncio.create_task(collect())
        while sum("block_name" in asked.query for asked in served.asked) < 4:
            await asyncio.sleep(0.01)
        assert not found
        reader.held[blocks[0]].set()
        await collecting
    assert names(found) == [f"{n}-{i}" for n in range(10) for i in (0, 1)]
    assert 1 < reader.most <= 4


async def test_stopped_look_up_asks_for_no_more_blocks(
    reader: Reader, served: StandIn, finder: Dbs
) -> None:
    """The caller ends it after the first files."""
    blocks = reader.add(NAME, *([row(f"{n}")] for n in range(100)))
    reader.held = {name: threading.Event() for name in blocks[2:]}
    before = asyncio.all_tasks()
    async with aclosing(finder.find(NAME)) as found:
        assert names([await anext(found), await anext(found)]) == ["0", "1"]
    assert sum("block_name" in asked.query for asked in served.asked) <= 6
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("empty", [lines(), Answer(b"[]")])
async def test_dataset_that_dbs_does_not_know_is_an_unknown_dataset(
    reader: Reader, finder: Dbs, empty: Answer
) -> None:
    reader.wrong["datasets"] = empty
    error = await fault_of(finder)
    assert type(error) is UnknownDatasetError
    assert f"there is no dataset {NAME}" in error.message


@pytest.mark.parametrize("kind", ["INVALID", "DEPRECATED", "DELETED"])
async def test_withdrawn_dataset_is_rejected_with_its_state(
    reader: Reader, finder: Dbs, kind: str
) -> None:
    reader.add(NAME, [row("A1")], kind=kind)
    error = await fault_of(finder)
    assert type(error) is DatasetError
    assert f"{NAME} is {kind} in DBS" in error.message


@pytest.mark.parametrize("blocks", [[], [[]], [[row("A1", is_file_valid=0)]]])
async def test_dataset_without_valid_files_is_rejected(
    reader: Reader, finder: Dbs, blocks: list[list[dict[str, Any]]]
) -> None:
    reader.add(NAME, *blocks)
    error = await fault_of(finder)
    assert type(error) is DatasetError
    assert "has no valid files" in error.message


@pytest.mark.parametrize(
    "reference",
    [
        "",
        NAME[1:],
        NAME.rpartition("/")[0],
        f"{NAME}/more",
        f"{NAME}#0000a-0",
        "/DoubleMuon/*/NANOAOD",
        "/DoubleMuon/Run 2016H/NANOAOD",
        "/DoubleMuon/2016H/NANOAOD",
        "/DoubleMuon/Run2016H/nanoaod",
        f"/DoubleMuon/{'x' * 301}/NANOAOD",
        f"{NAME}\n",
    ],
)
def test_invalid_dataset_name_is_rejected_without_a_call(reference: str) -> None:
    with pytest.raises(DatasetError, match=r"^did: .*dbs:///Primary/Processed/TIER"):
        Dbs().check(reference)


@pytest.mark.parametrize(
    "reference", [NAME, "/a.b-c_d1/user-x.y_z-0123abcd/USER", "/1x/A/GEN-SIM-RAW_X"]
)
def test_dataset_names_of_dbs_are_accepted(reference: str) -> None:
    Dbs().check(reference)


WHOLE = [json.dumps(row(f"1-{n}")) + "\n" for n in range(3)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lines(*WHOLE[:2], WHOLE[2][:50]), "in the middle of a row"),
        (lines(*WHOLE[:2]), "5 of the 6 files"),
        (lines(*WHOLE[:2], json.dumps([refused("ORA-03113")])), "ORA-03113"),
        (lines(*WHOLE, json.dumps(refused("ORA-03113"))), "ORA-03113"),
        (lines(*WHOLE, "{}"), "no logical_file_name"),
        (lines(*WHOLE, "3"), "the answer for files failed"),
        (Answer(b"".join(map(str.encode, WHOLE)), sent=40), "failed: "),
        (Answer(json.dumps([refused("too busy")]).encode(), 500), "too busy"),
        (Answer(json.dumps(refused("too busy")).encode(), 400), "too busy"),
        (Answer(b"<html>no</html>", 502), "status 502: <html>no</html>"),
    ],
)
async def test_incomplete_list_of_files_is_a_retryable_error(
    reader: Reader, finder: Dbs, wrong: Answer, said: str
) -> None:
    """The files before the fault are good. Then the look-up fails, so the service repeats it."""
    blocks = reader.add(NAME, *([row(f"{b}-{n}") for n in range(3)] for b in range(2)))
    reader.wrong[blocks[1]] = wrong
    found: list[InputFile] = []
    with pytest.raises(CatalogueError) as caught:
        found.extend([file async for file in finder.find(NAME)])
    assert said in caught.value.message
    assert type(caught.value) is CatalogueError
    assert caught.value.retryable
    del reader.wrong[blocks[1]]
    assert len(await files_of(finder)) == 6


@pytest.mark.parametrize("call", ["datasets", "filesummaries", "blocks"])
@pytest.mark.parametrize("text", ['{"x": 1}\n', '{"block', '"no"\n'])
async def test_malformed_answer_is_an_error_of_the_catalogue(
    reader: Reader, finder: Dbs, call: str, text: str
) -> None:
    reader.add(NAME, [row("A1")])
    reader.wrong[call] = lines(text)
    error = await fault_of(finder)
    assert type(error) is CatalogueError


@pytest.mark.parametrize("status", [401, 403, 302])
async def test_refusal_of_dbs_has_a_hint_to_use_a_proxy(
    reader: Reader, served: StandIn, finder: Dbs, tmp_path: Path, status: int
) -> None:
    """If the service showed a proxy, the hint names its file."""
    reader.wrong["datasets"] = Answer(b"", status, {"Location": "https://auth.example.org/"})
    error = await fault_of(finder)
    assert type(error) is CatalogueDeniedError
    assert "finders.dbs.x509_file" in error.hint
    proxy, key = certificate(tmp_path)
    shown = Dbs(DbsOptions(url=served.url, x509_file=proxy, x509_key_file=key))
    assert str(proxy) in (await fault_of(shown)).hint


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """Give an empty folder of authorities."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return folder


def trust(folder: Path, authority: Path) -> None:
    """Place a certificate in a folder under its hash, as grids do."""
    program = needed("openssl", "apt-get install openssl")
    command = [program, "x509", "-noout", "-hash", "-in", str(authority)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    put(folder, f"{found}.0", authority)


@pytest.mark.parametrize("one_file", [True, False])
async def test_proxy_is_shown_to_a_trusted_server(
    reader: Reader, tmp_path: Path, trusted: Path, *, one_file: bool
) -> None:
    """It is shown by HTTPS, with the certificate and its key in one file or in two."""
    reader.add(NAME, [row("A1")])
    host, host_key = certificate(tmp_path, stem="host")
    trust(trusted, host)
    mine, my_key = certificate(tmp_path, name="a physicist", stem="mine")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(host, host_key)
    context.load_verify_locations(mine)
    context.verify_mode = ssl.CERT_REQUIRED
    shown: dict[str, Any] = {"x509_file": mine, "x509_key_file": my_key}
    if one_file:
        shown = {"x509_file": put(tmp_path, "proxy", my_key.read_bytes() + mine.read_bytes())}
    with stand_in(reader, context=context) as served:
        options = DbsOptions(url=served.url, ca_folder=trusted, **shown)
        assert names(await files_of(Dbs(options))) == ["A1"]
        assert {asked.subject for asked in served.asked} == {"a physicist"}


async def test_untrusted_server_gets_no_request(
    reader: Reader, tmp_path: Path, trusted: Path
) -> None:
    host, host_key = certificate(tmp_path, stem="host")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(host, host_key)
    with stand_in(reader, context=context) as served:
        for folder in (trusted, None):
            error = await fault_of(Dbs(DbsOptions(url=served.url, ca_folder=folder)))
            assert type(error) is CatalogueError
            assert "CERTIFICATE_VERIFY_FAILED" in error.message
        assert served.asked == []


async def test_expired_proxy_is_rejected_before_any_request(
    reader: Reader, served: StandIn, tmp_path: Path
) -> None:
    """One expired certificate at the end of its chain is enough."""
    old, old_key = certificate(tmp_path, days=-1, stem="old")
    good, _ = certificate(tmp_path, stem="good")
    proxy = put(tmp_path, "proxy", good.read_bytes() + old_key.read_bytes() + old.read_bytes())
    error = await fault_of(Dbs(DbsOptions(url=served.url, x509_file=proxy)))
    assert type(error) is CatalogueDeniedError
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400))
    assert f"the certificate in {proxy} expired at {yesterday}" in error.message
    assert "voms-proxy-init" in error.hint
    assert served.asked == []


@pytest.mark.parametrize("content", [None, b"", b"no certificate", "no key", "a locked key"])
async def test_unusable_proxy_is_named_in_the_error(
    served: StandIn, tmp_path: Path, content: bytes | str | None
) -> None:
    """The service does not ask on its terminal for the password of a key."""
    proxy = tmp_path / "proxy"
    good, key = certificate(tmp_path)
    if content == "a locked key":
        locked = load_pem_private_key(key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        proxy.write_bytes(good.read_bytes() + locked)
    elif content == "no key":
        proxy.write_bytes(good.read_bytes())
    elif isinstance(content, bytes):
        proxy.write_bytes(content)
    error = await fault_of(Dbs(DbsOptions(url=served.url, x509_file=proxy)))
    assert type(error) is CatalogueDeniedError
    assert f"the certificate in {proxy} cannot be used" in error.message
    assert served.asked == []


def test_missing_folder_of_authorities_is_rejected(tmp_path: Path) -> None:
    """The error names the setting, before the service starts."""
    with pytest.raises(ValidationError, match=r"ca_folder\n.*directory"):
        DbsOptions.model_validate({"ca_folder": str(tmp_path / "none")})


async def test_silent_server_times_out(reader: Reader, served: StandIn) -> None:
    reader.wrong["datasets"] = Answer(None)
    began = time.monotonic()
    error = await fault_of(Dbs(DbsOptions(url=served.url, seconds=0.5)))
    assert time.monotonic() - began < 5
    assert type(error) is CatalogueError
    assert "did not answer within 0.5 s" in error.message


async def test_unreachable_server_is_an_error() -> None:
    error = await fault_of(Dbs(DbsOptions(url=f"http://127.0.0.1:{free_port()}")))
    assert type(error) is CatalogueError
    assert "failed: " in error.message
