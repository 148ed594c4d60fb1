"""Deletion of requests, in batches, so that a large one does not block the database."""

import logging

from servicex_server.database import requests as rows
from servicex_server.database import stored_objects
from servicex_server.database.connection import Database
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)


async def clear(database: Database, objects: ObjectStore, request_id: str) -> None:
    """Delete the rows of a deleted request, and the objects that no other request uses.

    An object is deleted before its row: if the process dies in between, `clear_left` finds the
    object by the row.
    """
    while (found := await database.read(rows.tasks_to_remove, request_id))[0]:
        task_ids, keys = found
        await objects.delete(keys)
        await database.write(stored_objects.let_go, task_ids)
        await database.write(rows.remove_tasks, task_ids)
    # objects of workers that were killed have no row
    left = [info.key for info in await objects.list(request_id)]
    await objects.delete(await database.read(rows.unused, left))
    await database.write(rows.remove, request_id)


async def clear_left(database: Database, objects: ObjectStore) -> None:
    """Finish deletions that a former process did not complete."""
    for request_id in await database.read(rows.marked_deleted):
        log.info("finishing an interrupted deletion", extra={"request_id": request_id})
        await clear(database, objects, request_id)
