"""What tests of the rows and of services without a web server share."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.model import (
    LOCAL_USER,
    DatasetState,
    InputFile,
    Principal,
    Replica,
    Request,
    RequestState,
    ResultFormat,
    now,
)
from servicex_server.requests.submission import Order

SELECTION = '[{"treename": "events"}]'
AT_A_TIME = 10_000


def store(
    connection: Connection, owner: str, name: str, files: int, *, complete: bool = True
) -> str:
    """Store a running request on a new dataset of so many files; return its id."""
    dataset_id = dataset_rows.create(
        connection, name=name, finder="file-list", owner=owner, reference={}
    )
    for start in range(0, files, AT_A_TIME):
        numbers = range(start, min(files, start + AT_A_TIME))
        found = [InputFile((Replica(f"root://far//{name}/{n}.root"),)) for n in numbers]
        dataset_rows.add_files(connection, dataset_id, start, found)
    if complete:
        dataset_rows.set_state(connection, dataset_id, DatasetState.COMPLETE)
    request = Request(
        id=f"{name:0>36}",
        title=name,
        owner=owner,
        dataset_id=dataset_id,
        did=name,
        language="uproot-raw",
        selection=SELECTION,
        format=ResultFormat.PARQUET,
        state=RequestState.RUNNING,
        submitted_at=now(),
        finished_at=None,
        failure="",
        app_version="0",
    )
    request_rows.create(connection, request)
    task_rows.add_for_dataset(connection, [request.id], dataset_id)
    return request.id


async def submit(app: App, count: int, *, who: Principal = LOCAL_USER, at: str = "/data") -> str:
    """Ask for so many files below a folder."""
    files = [f"{at}/{n}.root" for n in range(count)]
    order = Order(SELECTION, "uproot-raw", ResultFormat.PARQUET, files=files)
    return await app.submission.accept(who, order)


async def ended(app: App, request_id: str, *, within: float = 60, every: float = 0.005) -> Request:
    """Wait until a request has ended; times in seconds."""
    async with asyncio.timeout(within):
        while True:
            found = await app.database.read(request_rows.get, LOCAL_USER, request_id)
            if found.state.terminal:
                return found
            await asyncio.sleep(every)


def lose_an_answer(monkeypatch: pytest.MonkeyPatch, to: Callable[..., Any]) -> list[str]:
    """Have the answer to the first write of a kind lost; return where its name is put then.

    It is what a cancelled wait, or a connection that breaks after the commit, looks like.
    """
    write = Database.write
    lost: list[str] = []

    async def forgetful(self: Database, function: Any, *args: Any, **options: Any) -> Any:
        answer = await write(self, function, *args, **options)
        if function is to and not lost:
            lost.append(function.__name__)
            raise ConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(Database, "write", forgetful)
    return lost


def fail_a_write(
    monkeypatch: pytest.MonkeyPatch, of: Callable[..., Any], *, once: Callable[[], bool]
) -> list[str]:
    """Have the first write of a kind fail, before it begins, for which ``once`` is true."""
    write = Database.write
    failed: list[str] = []

    async def failing(self: Database, function: Any, *args: Any, **options: Any) -> Any:
        if function is of and not failed and once():
            failed.append(function.__name__)
            raise ConnectionError("the database is away")
        return await write(self, function, *args, **options)

    monkeypatch.setattr(Database, "write", failing)
    return failed
