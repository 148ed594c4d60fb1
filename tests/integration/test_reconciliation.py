"""Reconciliation of rows with a real store: a folder, and an S3 bucket."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import result_reuse, status_snapshots
from servicex_server.database.connection import Database
from servicex_server.errors import StoreUnavailableError
from servicex_server.model import Sharing, now
from servicex_server.requests.deletion import clear
from servicex_server.retention.reconciliation import GRACE, OWNER, Reconciled, reconcile
from servicex_server.storage.choose import open_store
from servicex_server.storage.contract import ObjectStore
from tests.integration.test_rows import ANN, ask, claim, success
from tests.seaweed import SECRET_KEY, Seaweed

pytestmark = pytest.mark.anyio

FOREIGN = "analysis/notes.txt"
LATER = GRACE + timedelta(hours=1)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """Give an empty store: a folder, and a bucket of SeaweedFS."""
    if request.param == "folder":
        yield open_store((tmp_path / "objects").as_uri())
        return
    (tmp_path / "seaweed").mkdir()
    server = Seaweed(tmp_path / "seaweed").start()
    yield open_store(server.url("sx"), options={"secret_access_key": SECRET_KEY})
    server.kill()


async def delivered(database: Database, store: ObjectStore, files: int) -> tuple[str, list[str]]:
    """Return a request whose files are done, and the keys of its objects."""
    request_id = await ask(database, "ann", str(uuid4()), files)
    done = [success(one) for one in await claim(database, files)]
    await database.write(outcome_rows.record, done, most_attempts=1)
    for one in done:
        await store.put(one.object_key, b"content")
    return request_id, [one.object_key for one in done]


async def keys(store: ObjectStore) -> set[str]:
    """Return the keys of all objects but the one that names the owner."""
    return {info.key for info in await store.list("")} - {OWNER}


async def test_what_no_row_names_is_deleted(
    database: Database, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A late upload of a deleted request, and of a request that has another object by now."""
    caplog.set_level(logging.INFO)
    await store.put(FOREIGN, b"mine")
    request_id, kept = await delivered(database, store, 3)
    doomed, _ = await delivered(database, store, 2)
    await database.write(request_rows.mark_deleted, ANN, doomed)
    await clear(database, store, doomed)
    late = [f"{doomed}/1/late.parquet", f"{request_id}/2/late.parquet"]
    for key in late:
        await store.put(key, b"late content")
    assert await reconcile(database, store, at=now()) == Reconciled()  # claims the store
    assert await reconcile(database, store, at=now() + GRACE / 2) == Reconciled()
    assert await keys(store) == {FOREIGN, *kept, *late}
    assert "deleted" not in caplog.text
    found = await reconcile(database, store, at=now() + LATER)
    assert found == Reconciled(deleted=2, deleted_bytes=24)
    assert await keys(store) == {FOREIGN, *kept}
    assert "2 objects (0.0 MB) that no request uses were deleted" in caplog.text
    assert await reconcile(database, store, at=now() + LATER) == Reconciled()


async def test_objects_that_are_gone_are_told_and_reused_no_more(
    database: Database, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one request some are gone, of another all, with their folder."""
    first, some = await delivered(database, store, 3)
    _, whole = await delivered(database, store, 2)
    third, _ = await delivered(database, store, 1)
    del first, third
    await database.write(_identify, {key: f"known-{key[-50:]}" for key in (*some, *whole)})
    await store.delete([some[0], *whole])
    found = await reconcile(database, store, at=now())
    assert found == Reconciled(lost=3, requests=2)
    assert "3 results of 2 requests are gone from the object store" in caplog.text
    asked = {f"known-{key[-50:]}" for key in (*some, *whole)}
    known = await database.read(result_reuse.known_objects, asked, owner="ann", of=Sharing.OWN)
    assert set(known.values()) == set(some[1:])


async def test_a_store_of_another_database_loses_nothing(
    database: Database, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells the operator that the store has another owner, and how to change that."""
    _, kept = await delivered(database, store, 1)
    await reconcile(database, store, at=now())
    await database.write(status_snapshots.put, {status_snapshots.STORE_OWNER: {"id": "another"}})
    stray = "00000000-0000-0000-0000-000000000000/1/of-the-other.parquet"
    await store.put(stray, b"content")
    assert await reconcile(database, store, at=now() + LATER) == Reconciled()
    assert await keys(store) == {stray, *kept}
    assert f"delete the object {OWNER}" in caplog.text
    await store.delete([OWNER])
    assert await reconcile(database, store, at=now() + LATER) == Reconciled()  # claims it anew
    assert (await reconcile(database, store, at=now() + LATER)).deleted == 1


async def test_a_store_that_is_away_changes_no_row(database: Database, tmp_path: Path) -> None:
    """It is compared again later."""
    (tmp_path / "seaweed").mkdir()
    server = Seaweed(tmp_path / "seaweed").start()
    store = open_store(server.url("sx"), options={"secret_access_key": SECRET_KEY})
    _, made = await delivered(database, store, 1)
    await database.write(_identify, {made[0]: "known"})
    server.kill()
    with pytest.raises(StoreUnavailableError):
        await reconcile(database, store, at=now())
    known = await database.read(result_reuse.known_objects, {"known"}, owner="ann", of=Sharing.OWN)
    assert known == {"known": made[0]}


def _identify(connection: Any, by_key: dict[str, str]) -> None:
    """Give tasks the result keys by which later requests find their objects."""
    from sqlalchemy import update

    from servicex_server.database.tables import tasks

    for key, known in by_key.items():
        connection.execute(update(tasks).where(tasks.c.object_key == key).values(identity=known))
