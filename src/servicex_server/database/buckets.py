"""The bucket of a request, read from the rows of its finished tasks.

Its keys and links are good for as long as there is a bucket: there is none of a request that was
deleted, and none while the account of its owner is suspended.
"""

from sqlalchemy import ColumnElement, Connection, and_, exists, not_, select

from servicex_server.database.connection import Database
from servicex_server.database.tables import requests, tasks, users
from servicex_server.model import TaskState, UserState
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


def _there(bucket: str) -> ColumnElement[bool]:
    """Whether there is such a bucket, whoever asks: it has keys of its own."""
    suspended = exists().where(
        users.c.email == requests.c.owner, users.c.state == UserState.SUSPENDED
    )
    return and_(requests.c.id == bucket, not_(requests.c.deleted), not_(suspended))


def _objects(
    connection: Connection, bucket: str, prefix: str, after: str, limit: int
) -> list[BucketObject] | None:
    if connection.scalar(select(requests.c.id).where(_there(bucket))) is None:
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
        select(*_COLUMNS)
        .join(requests, requests.c.id == tasks.c.request_id)
        .where(
            _there(bucket),
            tasks.c.state == TaskState.DONE,
            tasks.c.object_name == name,
        )
    ).first()
    return BucketObject(*row) if row is not None else None
