"""What is kept no longer: a deleted request goes in pieces, so that nobody waits for a giant."""

import logging

from servicex_server.database import requests as rows
from servicex_server.database.connection import Database
from servicex_server.objects.contract import ObjectStore

log = logging.getLogger(__name__)


async def clear(database: Database, objects: ObjectStore, request_id: str) -> None:
    """Remove the rows of a deleted request, and the objects that no other request has."""
    while (keys := await database.write(rows.clear, request_id)) is not None:
        await objects.delete(keys)


async def clear_left(database: Database, objects: ObjectStore) -> None:
    """Go on with what a process was at when it ended."""
    for request_id in await database.read(rows.hidden):
        log.info("a deleted request is cleared", extra={"request_id": request_id})
        await clear(database, objects, request_id)
