"""The buckets of requests, read from the rows of their finished tasks.

A deleted request has no bucket, and neither has a request whose owner is suspended. Keys and links
open a bucket for as long as their grant is valid: the account that they were issued to is active
and its keys were not revoked since, the API token that they were issued for was not revoked and has
not expired, and they are not too old. The keys that an operator gets for another user's request
expire after `VIEW_HOURS`.
"""

from sqlalchemy import ColumnElement, Connection, and_, exists, false, not_, or_, select, true

from servicex_server.database.connection import Database
from servicex_server.database.tables import api_tokens, requests, tasks, users
from servicex_server.database.tasks import RUNNABLE
from servicex_server.model import LOCAL_USER, Role, TaskState, UserState, now
from servicex_server.storage.bucket import BucketObject, Buckets, Grant

VIEW_HOURS = 2
"""Hours after which keys expire that were issued to another user than the owner of the request."""


class RequestBuckets(Buckets):
    """Finds the results in the bucket of a request.

    Parameters
    ----------
    database
        The database with the tasks.
    link_days
        Days after which keys expire that were issued to the owner of the request.
    """

    def __init__(self, database: Database, link_days: int = 365) -> None:
        self._database = database
        self._link_hours = 24 * link_days

    async def objects(
        self,
        bucket: str,
        *,
        grant: Grant | None = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> list[BucketObject] | None:
        """Return results by ascending name; None if the bucket does not exist or is not open."""
        # PostgreSQL does not accept NUL characters, and names never have one: the names after
        # "a\0b" are those after "a"
        after = after.partition("\0")[0]
        return await self._database.read(
            _objects, self._opened(bucket, grant), bucket, prefix, after, limit
        )

    async def object(
        self, bucket: str, name: str, *, grant: Grant | None = None
    ) -> BucketObject | None:
        """Return one result; None if it does not exist, or its bucket is not open."""
        return await self._database.read(_object, self._opened(bucket, grant), name)

    async def made_again(self, bucket: str, name: str, *, grant: Grant | None = None) -> bool:
        """Whether a result of this name was lost, and the service makes it again."""
        return await self._database.read(_made_again, self._opened(bucket, grant), name)

    def _opened(self, bucket: str, grant: Grant | None) -> ColumnElement[bool]:
        """Return the condition that the bucket exists and the grant opens it."""
        return and_(_there(bucket), self._holds(grant) if grant is not None else true())

    def _holds(self, grant: Grant) -> ColumnElement[bool]:
        age = int(now().timestamp()) // 3600 - grant.issued
        if age >= self._link_hours:
            return false()
        if grant.user == 0:
            return requests.c.owner == LOCAL_USER.user
        own = users.c.email == requests.c.owner
        sees_all = users.c.role != Role.USER
        account = exists().where(
            users.c.id == grant.user,
            users.c.state == UserState.ACTIVE,
            users.c.key_epoch == grant.epoch,
            or_(own, sees_all) if age < VIEW_HOURS else own,
        )
        if grant.token == 0:
            return account
        token = exists().where(
            api_tokens.c.id == grant.token,
            api_tokens.c.user_id == grant.user,
            api_tokens.c.expires_at > now(),
        )
        return and_(account, token)


_COLUMNS = (tasks.c.object_name, tasks.c.object_key, tasks.c.bytes, tasks.c.finished_at)


def _there(bucket: str) -> ColumnElement[bool]:
    """Return the condition that the bucket exists, regardless of a grant."""
    suspended = exists().where(
        users.c.email == requests.c.owner, users.c.state == UserState.SUSPENDED
    )
    return and_(requests.c.id == bucket, not_(requests.c.deleted), not_(suspended))


def _objects(
    connection: Connection,
    opened: ColumnElement[bool],
    bucket: str,
    prefix: str,
    after: str,
    limit: int,
) -> list[BucketObject] | None:
    if connection.scalar(select(requests.c.id).where(opened)) is None:
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


def _object(connection: Connection, opened: ColumnElement[bool], name: str) -> BucketObject | None:
    row = connection.execute(
        select(*_COLUMNS)
        .join(requests, requests.c.id == tasks.c.request_id)
        .where(
            opened,
            tasks.c.state == TaskState.DONE,
            tasks.c.object_name == name,
        )
    ).first()
    return BucketObject(*row) if row is not None else None


def _made_again(connection: Connection, opened: ColumnElement[bool], name: str) -> bool:
    # of unfinished tasks, only those of lost results have a name
    lost = (
        select(tasks.c.id)
        .join(requests, requests.c.id == tasks.c.request_id)
        .where(
            opened,
            requests.c.state.in_(RUNNABLE),
            tasks.c.state.in_((TaskState.WAITING, TaskState.RUNNING, TaskState.SPLIT)),
            tasks.c.object_name == name,
        )
    )
    return connection.scalar(lost.limit(1)) is not None
