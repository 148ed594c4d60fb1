"""The bucket of a request, read from the rows of its finished tasks."""

from sqlalchemy import Connection, select

from servicex_server.database import requests as request_rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import tasks
from servicex_server.model import TaskState
from servicex_server.objects.bucket import BucketObject, Buckets


class RequestBuckets(Buckets):
    """Buckets by request id. Who may look into one is decided by the bucket's own keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def objects(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[BucketObject] | None:
        """Return results by ascending name; None if there is no such bucket."""
        # PostgreSQL refuses NUL characters, and no name has one: what sorts after "a\0b" is what
        # sorts after "a"
        after = after.partition("\0")[0]
        return await self._database.read(_objects, bucket, prefix, after, limit)

    async def object(self, bucket: str, name: str) -> BucketObject | None:
        """Return one result; None if there is no such bucket or result in it."""
        return await self._database.read(_object, bucket, name)


_COLUMNS = (tasks.c.object_name, tasks.c.object_key, tasks.c.bytes, tasks.c.finished_at)


def _objects(
    connection: Connection, bucket: str, prefix: str, after: str, limit: int
) -> list[BucketObject] | None:
    if not request_rows.exists(connection, bucket):
        return None
    if "\0" in prefix:
        return []
    rows = connection.execute(
        select(*_COLUMNS)
        .where(
            tasks.c.request_id == bucket,
            tasks.c.state == TaskState.DONE,
            tasks.c.object_name > after,
            tasks.c.object_name.startswith(prefix, autoescape=True),
        )
        .order_by(tasks.c.object_name)
        .limit(limit)
    )
    return [BucketObject(*row) for row in rows]


def _object(connection: Connection, bucket: str, name: str) -> BucketObject | None:
    row = connection.execute(
        select(*_COLUMNS).where(
            tasks.c.request_id == bucket,
            tasks.c.state == TaskState.DONE,
            tasks.c.object_name == name,
        )
    ).first()
    return BucketObject(*row) if row is not None else None
