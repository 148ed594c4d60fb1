"""Helper processes for queries: their start, their environment and their end."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from servicex_server.errors import InternalError, QueryError
from servicex_server.languages import python_function
from servicex_server.languages.contract import Program
from servicex_server.model import CheckSpec, Credential, Replica, ResultFormat
from servicex_server.query_processes.compiler import QueryCompiler
from servicex_server.query_processes.jobs import dry_run_job
from servicex_server.query_processes.on_worker import WorkerHelpers
from tests.support import command_of, sample

pytestmark = pytest.mark.anyio

HZZ = Replica(str(sample("uproot-HZZ.root")))


def spec(**query: str) -> CheckSpec:
    """Return a query on a file, to be dry-run."""
    selection = json.dumps([{"treename": "events"} | query])
    return CheckSpec((HZZ,), "uproot-raw", selection, ResultFormat.PARQUET)


@asynccontextmanager
async def worker_helpers() -> AsyncIterator[WorkerHelpers]:
    """Give the helpers of a worker; all have ended afterwards."""
    helpers = WorkerHelpers(seconds=30)
    helpers.start()
    try:
        yield helpers
    finally:
        await helpers.close()
        assert not fork_servers()


def fork_servers() -> list[psutil.Process]:
    """Return the fork servers of this process."""
    children = psutil.Process().children()
    return [one for one in children if "query_processes.fork_server" in command_of(one)]


async def test_a_fork_server_has_one_thread() -> None:
    """It has all libraries of a dry run. A fork of several threads may inherit a taken lock."""
    async with worker_helpers() as helpers:
        assert await helpers.dry_run(spec(filter_name="NJet")) == (None,)
        found = await helpers.dry_run(spec(filter_name="NJett"))
        assert found is not None
        assert found[0] is not None
        assert found[0].kind == "UnknownName"
        (server,) = fork_servers()
        async with asyncio.timeout(60):
            while not any("libparquet" in one.path for one in server.memory_maps()):
                await asyncio.sleep(0.1)
        assert server.num_threads() == 1


async def test_dry_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent process removes the folder, also if the helper is killed in the middle."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with worker_helpers() as helpers:
        assert await helpers.dry_run(spec(filter_name="NJet")) == (None,)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await helpers.dry_run(spec(filter_name="NJet"))
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240  # it is empty


async def test_python_compiles_in_helpers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker passes the source of a function on. Before that, a helper rejects wrong source."""

    def parses(*_: object) -> None:
        pytest.fail("Python is compiled in the process of a worker")

    monkeypatch.setattr(python_function, "_check", parses)
    good, bad = (
        base64.b64encode(f"def run_query(path):\n    {body}\n".encode()).decode()
        for body in ("return {'n': [1]}", "return (")
    )
    async with worker_helpers() as helpers:
        found = await asyncio.to_thread(helpers.compile, "python", good, ResultFormat.PARQUET)
        assert isinstance(found, Program)
        assert "run_query" in found.files[0][1]
        with pytest.raises(QueryError, match="selection"):
            await asyncio.to_thread(helpers.compile, "python", bad, ResultFormat.PARQUET)


def test_dry_run_gets_no_credentials_of_other_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets those for its replicas: named files, or the variables that lead to other files."""
    for name in ("BEARER_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    ours = Credential(("eos.org",), token=tmp_path / "ours")
    credentials = (ours, Credential(("cern.ch",), token=tmp_path / "theirs"), Credential(("x.y",)))
    for url, hosts, variables in (
        ("/data/x.root", [], []),
        ("root://eos.org//x.root", [("eos.org",)], []),
        ("root://x.y//x.root", [("x.y",)], ["BEARER_TOKEN"]),
    ):
        one = CheckSpec((Replica(url),), "l", "s", ResultFormat.PARQUET, credentials=credentials)
        job = dry_run_job(one, patience=1, scratch=tmp_path)
        assert [given["hosts"] for given in job["credentials"]] == hosts
        assert "BEARER_TOKEN" in job["environment"] or not variables
        assert set(job["environment"]) <= {"BEARER_TOKEN", "XDG_RUNTIME_DIR", "X509_USER_PROXY"}
        assert bool(job["environment"]) == bool(variables)


async def test_equal_queries_have_equal_digests() -> None:
    """Their texts may differ. A text with lone surrogates is an ordinary error of the query."""
    compiler = QueryCompiler()
    compiler.start()
    try:
        first, second = '[{"treename":"e"}]', '[ {"treename": "e", "cut": null} ]'
        made = await compiler.compile("u", "uproot-raw", first, ResultFormat.PARQUET)
        assert not made.is_code
        assert made.digest is not None
        assert await compiler.digest("uproot-raw", second, ResultFormat.PARQUET) == made.digest
        assert await compiler.digest("uproot-raw", second, ResultFormat.TTREE) != made.digest
        assert await compiler.digest("uproot-raw", "[", ResultFormat.PARQUET) is None
        with pytest.raises(QueryError):
            await compiler.compile("u", "uproot-raw", "\ud800", ResultFormat.PARQUET)
    finally:
        await compiler.close()
    assert not fork_servers()


async def test_compiled_query_is_cached() -> None:
    """For the same text, language and format, the compiler asks no helper again, for any user."""
    compiler = QueryCompiler()
    compiler.start()
    text = '[{"treename":"e"}]'
    try:
        made = await compiler.compile("u", "uproot-raw", text, ResultFormat.PARQUET)
    finally:
        await compiler.close()
    assert await compiler.compile("v", "uproot-raw", text, ResultFormat.PARQUET) == made
    for other in ((text, ResultFormat.TTREE), (text + " ", ResultFormat.PARQUET)):
        with pytest.raises(InternalError):
            await compiler.compile("v", "uproot-raw", *other)
