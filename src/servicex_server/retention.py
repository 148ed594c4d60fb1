"""What is kept no longer: a deleted request goes in pieces, so that nobody waits for a giant."""

import logging

from servicex_server.database import requests as rows
from servicex_server.database.connection import Database
from servicex_server.objects.contract import ObjectStore

log = logging.getLogger(__name__)


async def clear(database: Database, objects: ObjectStore, request_id: str) -> None:
    """Remove the rows of a deleted request, and the objects that no other request has.

    An object goes before the row that names it: by that row it is found after a death in between.
    """
    while (found := await database.read(rows.doomed, request_id))[0]:
        task_ids, keys = found
        await objects.delete(keys)
        await database.write(rows.remove_tasks, task_ids)
    # what a worker that was killed has left is named by no row
    left = [info.key for info in await objects.list(request_id)]
    await objects.delete(await database.read(rows.unused, left))
    await database.write(rows.remove, request_id)


async def clear_left(database: Database, objects: ObjectStore) -> None:
    """Go on with what a process was at when it ended."""
    for request_id in await database.read(rows.hidden):
        log.info("a deleted request is cleared", extra={"request_id": request_id})
        await clear(database, objects, request_id)
