"""Folders of real XRootD servers as files."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    ServiceXError,
    UnknownDatasetError,
)
from servicex_server.finders.xrootd import XRootD, XRootDOptions
from servicex_server.model import InputFile
from tests.integration import servers
from tests.integration.servers import free_port, put, redirector, xrootd
from tests.support import sample

pytestmark = pytest.mark.anyio

ODD = ("a b%25+c#d ü.root", "x,y, z.root", ",root:.root", "100%.root")
"""Names of which every character but the letters means something somewhere."""

NAMES = (
    "2024/a/2.root",
    "2024/a/10.root",
    "2024/a/1.root",
    "2024/a/.hidden.root",
    "2024/a/notes.txt",
    "2024/a/deep/1.root",
    "2024/b/1.root",
    "2024/c/only.root",
    "2025/a/1.root",
    "2025/a/run[3].root",
    *(f"odd/{name}" for name in ODD),
)


def fill(folder: Path, *names: str) -> None:
    """Place files in a served folder, each of a size of its own."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        put(place.parent, place.name, name.encode())


@pytest.fixture(scope="module")
def door() -> Iterator[servers.XRootD]:
    """Give a server with a tree of files."""
    with xrootd() as running:
        fill(running.folder, *NAMES)
        (running.folder / "2024" / "a" / "folder.root").mkdir()
        (running.folder / "empty").mkdir()
        (running.folder / "closed").mkdir(mode=0)
        yield running


def finder(seconds: float = 10) -> XRootD:
    return XRootD(XRootDOptions(seconds=seconds))


async def files_of(reference: str, seconds: float = 10) -> list[InputFile]:
    made = finder(seconds)
    made.check(reference)
    return [file async for file in made.find(reference)]


async def fault_of(reference: str, seconds: float = 10) -> ServiceXError:
    with pytest.raises(ServiceXError) as caught:
        await files_of(reference, seconds)
    return caught.value


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("2024/a/*.root", ["2024/a/1.root", "2024/a/10.root", "2024/a/2.root"]),
        ("2024/a/?.root", ["2024/a/1.root", "2024/a/2.root"]),
        ("2024/a/[!1]*.root", ["2024/a/2.root"]),
        ("2024/[a-b]/1.root", ["2024/a/1.root", "2024/b/1.root"]),
        ("20*/*/1.root", ["2024/a/1.root", "2024/b/1.root", "2025/a/1.root"]),
        ("2*/a/[12].root", ["2024/a/1.root", "2024/a/2.root", "2025/a/1.root"]),
        ("20*/a/deep/*", ["2024/a/deep/1.root"]),
        ("2024/a/.*.root", ["2024/a/.hidden.root"]),
        ("2025/a/run[[]3].root", ["2025/a/run[3].root"]),
        ("/2024//b/*.root", ["2024/b/1.root"]),
        ("2024/c/only.root", ["2024/c/only.root"]),
    ],
)
async def test_a_pattern_finds_its_files_in_the_order_of_their_names(
    door: servers.XRootD, pattern: str, names: list[str]
) -> None:
    found = await files_of(door.url(pattern))
    assert [file.path for file in found] == [door.url(name) for name in names]
    assert [file.size for file in found] == [len(name) for name in names]
    assert all(len(file.replicas) == 1 and not file.name for file in found)


async def test_odd_names_are_found_and_can_be_opened(door: servers.XRootD) -> None:
    """The reference may be a pattern or a single name."""
    for name in ODD:
        put(door.folder / "odd", name, sample("uproot-Zmumu.root"))
    found = [file.path for file in await files_of(door.url("odd/*.root"))]
    assert found == [door.url(f"odd/{name}") for name in sorted(ODD)]
    for url in found:
        assert [file.path for file in await files_of(url)] == [url]
        with open_root(url) as file:
            assert file.tree("events").entries == 2304


async def test_reference_with_several_patterns_gives_each_file_once(
    door: servers.XRootD,
) -> None:
    with xrootd("127.0.0.2") as other:
        fill(other.folder, "2024/a/1.root")
        patterns = [door.url("2024/a/1*.root"), other.url("*/*/*"), door.url("2024/?/1.root")]
        found = [file.path for file in await files_of(",".join(patterns))]
        error = await fault_of(f"{door.url('2024/*/*.root')},{other.url('2025/*.root')}")
    names = ("2024/a/1.root", "2024/a/10.root")
    assert found == [
        *map(door.url, names),
        other.url("2024/a/1.root"),
        door.url("2024/b/1.root"),
    ]
    assert type(error) is UnknownDatasetError
    assert other.url("2025/*.root") in error.message


async def test_look_up_yields_files_before_it_lists_all_folders(door: servers.XRootD) -> None:
    """It finds a file that appears in the next folder meanwhile."""
    fill(door.folder, "stream/1/a.root", "stream/2/b.root")
    async with aclosing(finder().find(door.url("stream/*/*.root"))) as found:
        assert (await anext(found)).path == door.url("stream/1/a.root")
        fill(door.folder, "stream/2/c.root")
        rest = [file.path async for file in found]
    assert rest == [door.url("stream/2/b.root"), door.url("stream/2/c.root")]


# --- what is wrong with the reference -------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "2024/a/*.root",
        "/2024/a/*.root",
        "http://host//a/*.root",
        "root://",
        "root:///a/*.root",
        "root://host",
        "root://host/a/*.root",
        "root://host:port//a/*.root",
        "root://host:99999//a/*.root",
        "root://ho st//a/*.root",
        "root://ho*st//a/*.root",
        "root://u@host//a/*.root",
        "root://good.org?@host//a/*.root",
        "root://[::1//a/*.root",
        "root://host//a/\0.root",
        "root://host//a/*.root\n",
        "root://host//a/*.root,root://host",
    ],
)
def test_invalid_url_is_rejected_with_an_example(reference: str) -> None:
    with pytest.raises(DatasetError, match=r"^did: .*xrootd://root://host//path/\*\.root"):
        finder().check(reference)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("root://host//a/**/*.root", "one * for each folder"),
        ("root://host//a/b**.root", "one * for each folder"),
        ("root://host//a/../*.root", "write the whole path"),
        ("root://host//", "root://host//*.root"),
        ("root://host//a/", "root://host//a/*.root"),
    ],
)
def test_unsupported_pattern_is_rejected_with_a_hint(reference: str, said: str) -> None:
    with pytest.raises(DatasetError, match=r"^did: ") as caught:
        finder().check(reference)
    assert said in caught.value.hint


@pytest.mark.parametrize(
    "reference",
    ["root://host//*", "xroot://host:1094//a b/%20,#.root", "roots://[::1]:1094//a/*.root"],
)
def test_valid_url_is_accepted(reference: str) -> None:
    finder().check(reference)


# --- what there is not ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "folder", "hint"),
    [
        ("2024/c/onlx.root", "/2024/c", "did you mean only.root?"),
        ("2024/c/*.rot", "/2024/c", "in it there is only.root"),
        ("2024/cc/*.root", "/2024", "did you mean c?"),
        ("2042/c/more/*.root", "/", "did you mean 2025 or 2024?"),
        ("2042/c/more.root", "/", "did you mean 2025 or 2024?"),
        ("20*/c/onlx.root", "/2024/c", "did you mean only.root?"),
        ("20*/x*/y*/*.root", "/2024", "in it there is a, b, c"),
        ("empty/*.root", "/empty", "in it there is none"),
        ("2024/a/*/x/*.root", "/2024/a/deep", "in it there is 1.root"),
    ],
)
async def test_pattern_without_a_match_is_rejected_with_the_nearest_names(
    door: servers.XRootD, pattern: str, folder: str, hint: str
) -> None:
    error = await fault_of(door.url(pattern))
    assert type(error) is UnknownDatasetError
    assert f"there is no {door.url(pattern)}" in error.message
    assert f"the folder {folder} exists" in error.message
    assert hint in error.hint


async def test_folder_is_not_a_file_and_a_file_is_not_a_folder(door: servers.XRootD) -> None:
    error = await fault_of(door.url("2024/a"))
    assert type(error) is DatasetError
    assert error.hint == f"name files: {door.url('2024/a')}/*.root"
    error = await fault_of(door.url("2024/a/1.root/*.root"))
    assert type(error) is UnknownDatasetError
    assert "is a file, and not a folder" in error.message


@pytest.mark.parametrize("pattern", ["closed/*.root", "c*/*.root"])
async def test_folder_without_permission_to_list_is_a_denied_error(
    door: servers.XRootD, pattern: str
) -> None:
    """The finder does not return half a dataset from the folders that it may list."""
    fill(door.folder, "clear/1.root")
    error = await fault_of(door.url(pattern))
    assert type(error) is CatalogueDeniedError
    assert door.url("closed") in error.message
    assert not error.retryable


# --- servers that are not well --------------------------------------------------------------


@asynccontextmanager
async def others_served() -> AsyncIterator[None]:
    """Fail if the event loop stands still meanwhile."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            longest = max(longest, time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert longest < 1


async def test_unknown_host_is_a_retryable_catalogue_error() -> None:
    error = await fault_of("root://no-such-host.invalid//a/*.root")
    assert type(error) is CatalogueError
    assert error.retryable


async def test_server_that_comes_back_is_asked_again() -> None:
    """The finder forgets a refusal, which XRootD's client would remember for half an hour."""
    port = free_port("127.0.0.3")
    reference = f"root://127.0.0.3:{port}//a/*.root"
    began = time.monotonic()
    error = await fault_of(reference)
    assert type(error) is CatalogueError
    assert error.retryable
    assert time.monotonic() - began < 10
    with xrootd("127.0.0.3", port=port) as running:
        fill(running.folder, "a/1.root")
        # two seconds, in a process in which files have been read: XrdCl is told once what to do
        async with asyncio.timeout(10):
            while True:
                try:
                    found = await files_of(reference)
                    break
                except CatalogueError:
                    await asyncio.sleep(0.1)
        assert len(found) == 1


@pytest.mark.parametrize("connected", [True, False])
async def test_frozen_server_times_out(*, connected: bool) -> None:
    """It may be connected or not. The event loop goes on, and a later look-up uses it."""
    with xrootd("127.0.0.4") as running:
        fill(running.folder, "a/1.root")
        reference = running.url("a/*.root")
        if connected:
            assert len(await files_of(reference, seconds=2)) == 1
        began = time.monotonic()
        with running.frozen():
            async with others_served():
                error = await fault_of(reference, seconds=2)
        assert 1 < time.monotonic() - began < 6
        assert type(error) is CatalogueError
        assert "did not answer within 2 s" in error.message
        async with asyncio.timeout(20):
            while True:
                try:
                    assert len(await files_of(reference, seconds=2)) == 1
                    break
                except CatalogueError:
                    await asyncio.sleep(0.1)


ENDS = """
import asyncio, sys
from servicex_server.finders.xrootd import XRootD

async def main():
    try:
        async with asyncio.timeout(0.5):
            await anext(XRootD().find(sys.argv[1]))
    except TimeoutError:
        print("given up", flush=True)

asyncio.run(main())
"""


def test_ending_process_does_not_wait_for_a_frozen_server() -> None:
    with xrootd("127.0.0.5") as running, running.frozen():
        began = time.monotonic()
        command = [sys.executable, "-c", ENDS, running.url("*.root")]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "given up\n"
    assert ran.stderr == ""
    assert time.monotonic() - began < 10


async def test_redirector_lists_each_file_of_its_servers_once() -> None:
    """A folder is on both servers, with files on one of them or on both.

    While one of the two does not answer, the finder raises an error instead of a smaller dataset.
    """
    with redirector() as (door, one, two):
        fill(one.folder, "data/a/1.root", "data/a/2.root", "data/b/1.root")
        fill(two.folder, "data/a/2.root", "data/a/3.root", "data/c/1.root")
        found = await files_of(door.url("data/*/*.root"))
        unknown = await fault_of(door.url("data/a/4.root"))
        with two.frozen():
            silent = await fault_of(door.url("data/*/*.root"), seconds=2)
    names = ["data/a/1.root", "data/a/2.root", "data/a/3.root", "data/b/1.root", "data/c/1.root"]
    assert [file.path for file in found] == [door.url(name) for name in names]
    assert [file.size for file in found] == [len(name) for name in names]
    assert type(unknown) is UnknownDatasetError
    assert "did you mean" in unknown.hint
    assert type(silent) is CatalogueError
    assert "did not answer" in silent.message


def test_error_without_the_xrootd_client_names_the_package() -> None:
    program = (
        "import asyncio, sys\n"
        "sys.modules['XRootD.client.env'] = None\n"
        "from servicex_server.errors import InternalError\n"
        "from servicex_server.finders.xrootd import XRootD\n"
        "async def first(): return await anext(XRootD().find('root://127.0.0.1//a/*.root'))\n"
        "try: asyncio.run(first())\n"
        "except InternalError as error: print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "needs the XRootD client" in output
    assert "pip install xrootd" in output
