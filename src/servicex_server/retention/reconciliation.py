"""Reconciliation of the object store with the rows: once a day, by the leader.

Objects that no row names are left by workers that were killed, and by uploads that came after the
deletion of their request. Results whose objects are gone are counted, and reused no more.
"""

import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from servicex_server.database import lost_results, status_snapshots
from servicex_server.database import requests as request_rows
from servicex_server.database.connection import Database
from servicex_server.model import REQUEST_ID
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

GRACE = timedelta(days=8)
"""Age from which an object without a row is deleted: an upload may come for seven days."""

OWNER = "servicex-server.owner"
"""Key of the object that says which database a store belongs to."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconciliation found: objects without a row and their bytes, rows without an object.

    The objects are deleted. ``requests`` is the number of requests that have lost a result.
    """

    deleted: int = 0
    deleted_bytes: int = 0
    lost: int = 0
    requests: int = 0


async def reconcile(database: Database, objects: ObjectStore, *, at: datetime) -> Reconciled:
    """Compare the store with the rows, one request after the other; delete what no row names.

    The memory that this takes depends on the largest request, and not on the number of objects.
    Objects outside the folders of requests are left alone. Nothing is deleted while the store has
    belonged to this database for less than `GRACE`, or belongs to another one.

    Parameters
    ----------
    database
        The rows.
    objects
        The store.
    at
        The current time.

    Raises
    ------
    StoreUnavailableError
        The store does not answer.
    """
    deletes = await _is_ours(database, objects, at)
    folders = {name for name in await objects.folders() if re.fullmatch(REQUEST_ID, name)}
    folders.update(await database.read(lost_results.makers))
    found = Reconciled()
    for request_id in sorted(folders):
        # before the listing: a result that is stored in between is in neither or in both
        named = await database.read(lost_results.own_objects, request_id)
        there = {info.key: info for info in await objects.list(request_id)}
        old = [key for key, info in there.items() if at - info.modified > GRACE] if deletes else []
        unused = await database.read(request_rows.unused, old)
        if unused:
            await objects.delete(unused)
        if gone := named - there.keys():
            await database.write(lost_results.forget, gone)
        found = Reconciled(
            deleted=found.deleted + len(unused),
            deleted_bytes=found.deleted_bytes + sum(there[key].size for key in unused),
            lost=found.lost + len(gone),
            requests=found.requests + bool(gone),
        )
    _tell(found)
    return found


async def _is_ours(database: Database, objects: ObjectStore, at: datetime) -> bool:
    """Whether the store has belonged to this database for long enough; claim a store of nobody."""
    known = await database.read(status_snapshots.get, status_snapshots.STORE_OWNER)
    owner = known.value["id"] if known else uuid4().hex
    info = await objects.head(OWNER)
    if info is None:
        await database.write(status_snapshots.put, {status_snapshots.STORE_OWNER: {"id": owner}})
        await objects.put(OWNER, owner.encode())
        return False
    content = b"".join([piece async for piece in objects.stream(OWNER, 0, info.size)])
    if content != owner.encode():
        log.error(
            "the object store belongs to another database, so nothing is deleted from it: give "
            "each service a store or a prefix of its own; if the other database is no longer in "
            "use, delete the object %s",
            OWNER,
        )
        return False
    return at - info.modified > GRACE


def _tell(found: Reconciled) -> None:
    if found.deleted:
        log.info(
            "%d objects (%.1f MB) that no request uses were deleted from the object store",
            found.deleted,
            found.deleted_bytes / 1e6,
        )
    if found.lost:
        log.error(
            "%d results of %d requests are gone from the object store; the service makes each "
            "again when somebody asks for it",
            found.lost,
            found.requests,
        )
