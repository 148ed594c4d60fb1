"""The objects of results: their bytes, to whom these count, and when they were last used.

An object that several requests share has one row, and counts once: to the user whose request made
it, and after its deletion to another user of it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    insert,
    not_,
    select,
    update,
)

from servicex_server.database.requests import batches, changeable, unused
from servicex_server.database.tables import objects, requests, tasks, users
from servicex_server.errors import TooLargeError
from servicex_server.model import Principal, now

THERE = objects.c.evicted.is_(None)
"""Condition that an object is in the store."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the store: its key, bytes, owner, and when it was last used."""

    key: str
    bytes: int
    owner: str
    last_used: datetime


def add(connection: Connection, made: Iterable[tuple[str, str, int]]) -> None:
    """Add objects that were just stored: for each, its key, the owner and the bytes."""
    moment = now()
    rows = [
        {"key": key, "owner": owner, "bytes": size, "made": moment, "last_used": moment}
        for key, owner, size in made
    ]
    if rows:
        connection.execute(insert(objects), rows)


def use(connection: Connection, keys: Iterable[str]) -> None:
    """Note that objects are used now."""
    for some in batches(keys):
        connection.execute(update(objects).where(objects.c.key.in_(some)).values(last_used=now()))


def remove(connection: Connection, keys: Iterable[str]) -> None:
    """Remove the rows of objects that are deleted, or gone from the store."""
    for some in batches(keys):
        connection.execute(delete(objects).where(objects.c.key.in_(some)))


def evict(connection: Connection, keys: Iterable[str]) -> None:
    """Note that objects were deleted to make room. Their results are reused no more."""
    keys = list(keys)
    reuse_no_more(connection, keys)
    for some in batches(keys):
        connection.execute(update(objects).where(objects.c.key.in_(some)).values(evicted=now()))


def reuse_no_more(connection: Connection, keys: Iterable[str]) -> None:
    """Let no later request reuse the results with these objects."""
    for some in batches(keys):
        connection.execute(update(tasks).where(tasks.c.object_key.in_(some)).values(identity=None))


def let_go(connection: Connection, task_ids: Collection[int]) -> None:
    """Remove the rows of objects of a deleted request; those that others use count to them.

    Parameters
    ----------
    task_ids
        Tasks of the deleted request, which still exist.
    """
    for some in batches(task_ids):
        keys = set(connection.scalars(select(tasks.c.object_key).where(tasks.c.id.in_(some))))
        keys.discard(None)
        gone = unused(connection, keys)
        remove(connection, gone)
        _hand_over(connection, keys.difference(gone))


def _hand_over(connection: Connection, keys: Iterable[str]) -> None:
    """Count objects to a user of them, where the user to whom they count uses them no more."""
    holders = (
        select(requests.c.owner)
        .select_from(tasks)
        .join(requests, tasks.c.request_id == requests.c.id)
        .where(tasks.c.object_key == objects.c.key, not_(requests.c.deleted))
    )
    first = holders.with_only_columns(func.min(requests.c.owner)).scalar_subquery()
    same = holders.where(requests.c.owner == objects.c.owner).exists()
    for some in batches(keys):
        connection.execute(
            update(objects).where(objects.c.key.in_(some), not_(same)).values(owner=first)
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store has of a request: bytes, evicted results, and the oldest last use."""

    bytes: int
    evicted: int
    oldest: datetime | None


def kept_of(connection: Connection, request_id: str) -> Kept:
    """Return what the store has of the results of a request."""
    size, evicted, oldest = connection.execute(
        select(
            func.sum(case((THERE, objects.c.bytes), else_=0)),
            func.sum(case((THERE, 0), else_=1)),
            func.min(case((THERE, objects.c.last_used))),
        )
        .select_from(tasks)
        .join(objects, tasks.c.object_key == objects.c.key)
        .where(tasks.c.request_id == request_id)
    ).one()
    return Kept(int(size or 0), int(evicted or 0), oldest)


def pin(
    connection: Connection, principal: Principal, request_id: str, *, pinned: bool, most: int | None
) -> None:
    """Keep the results of a request from eviction, or let them be evicted again.

    Parameters
    ----------
    most
        Bytes that the pinned results of one user may have; None: no limit.

    Raises
    ------
    NotFoundError, ForbiddenError
        The request does not exist; the principal may not change it.
    TooLargeError
        The pinned results of its owner would exceed the limit.
    """
    request = changeable(connection, principal, request_id)
    connection.execute(update(requests).where(requests.c.id == request_id).values(pinned=pinned))
    if pinned and most is not None and (found := pinned_of(connection, request.owner)) > most:
        raise TooLargeError(
            f"the pinned results would take {found / 1e9:.2f} GB; one user may pin "
            f"{most / 1e9:.2f} GB",
            hint="unpin or delete another request first",
        )


def total(connection: Connection) -> tuple[int, int]:
    """Return number and bytes of all objects in the store."""
    count, size = connection.execute(
        select(func.count(), func.sum(objects.c.bytes)).where(THERE)
    ).one()
    return count, int(size or 0)


def size(connection: Connection) -> int:
    """Return the bytes of all objects in the store."""
    return total(connection)[1]


def size_of(connection: Connection, owner: str) -> int:
    """Return the bytes of the objects that count to a user."""
    own = and_(THERE, objects.c.owner == owner)
    return int(connection.scalar(select(func.sum(objects.c.bytes)).where(own)) or 0)


def pinned_of(connection: Connection, owner: str) -> int:
    """Return the bytes of the objects that count to a user and are pinned."""
    own = and_(THERE, objects.c.owner == owner, _pinned())
    return int(connection.scalar(select(func.sum(objects.c.bytes)).where(own)) or 0)


def largest_owners(connection: Connection, *, most: int) -> list[tuple[str, int]]:
    """Return the users to whom the most bytes count, and the bytes of each."""
    total = func.sum(objects.c.bytes)
    rows = connection.execute(
        select(objects.c.owner, total.label("total"))
        .where(THERE)
        .group_by(objects.c.owner)
        .having(total > 0)
        .order_by(total.desc(), objects.c.owner)
        .limit(most)
    )
    return [(row.owner, int(row.total)) for row in rows]


def by_owner(connection: Connection) -> dict[str, int]:
    """Return the bytes of the objects that count to each user."""
    query = (
        select(objects.c.owner, func.sum(objects.c.bytes)).where(THERE).group_by(objects.c.owner)
    )
    return {owner: int(size) for owner, size in connection.execute(query)}


def by_experiment(connection: Connection) -> list[tuple[str, int]]:
    """Return the bytes of the objects of each experiment, the largest first."""
    size = func.sum(objects.c.bytes)
    query = (
        select(users.c.experiment, size)
        .join(users, users.c.email == objects.c.owner)
        .where(THERE, users.c.experiment != "")
        .group_by(users.c.experiment)
        .order_by(size.desc(), users.c.experiment)
    )
    return [(name, int(total)) for name, total in connection.execute(query)]


def least_recently_used(
    connection: Connection, *, before: datetime, most: int
) -> list[StoredObject]:
    """Return objects that are not pinned and were last used before a time, the oldest first."""
    rows = connection.execute(
        select(objects.c.key, objects.c.bytes, objects.c.owner, objects.c.last_used)
        .where(THERE, objects.c.last_used < before, not_(_pinned()))
        .order_by(objects.c.last_used, objects.c.key)
        .limit(most)
    )
    return [StoredObject(*row) for row in rows]


def by_age(connection: Connection, edges: Iterable[datetime]) -> list[tuple[int, int]]:
    """Return number and bytes of the objects that were last used since each edge.

    Edges are given from the newest to the oldest. The last entry is of the objects that were used
    before the oldest edge.
    """
    found, later = [], None
    for edge in (*edges, None):
        within: list[ColumnElement[bool]] = [THERE]
        if edge is not None:
            within.append(objects.c.last_used >= edge)
        if later is not None:
            within.append(objects.c.last_used < later)
        count, total = connection.execute(
            select(func.count(), func.sum(objects.c.bytes)).where(*within)
        ).one()
        found.append((count, int(total or 0)))
        later = edge
    return found


AGES = (1, 7, 30, 90)
"""Days since the last use by which an inventory groups the objects."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the store holds: all bytes, by user, by experiment and by age, and what goes next.

    The ages are those of `AGES`.
    """

    bytes: int
    owners: list[tuple[str, int]]
    experiments: list[tuple[str, int]]
    ages: list[tuple[int, int]]
    oldest: list[StoredObject]


def inventory(connection: Connection, *, most: int = 50) -> Inventory:
    """Return what the store holds, with so many users, and so many of the oldest objects."""
    moment = now()
    return Inventory(
        bytes=size(connection),
        owners=largest_owners(connection, most=most),
        experiments=by_experiment(connection),
        ages=by_age(connection, [moment - timedelta(days=days) for days in AGES]),
        oldest=least_recently_used(connection, before=moment, most=most),
    )


def _pinned() -> ColumnElement[bool]:
    """Return the condition that a pinned request uses the object."""
    return (
        select(tasks.c.id)
        .join(requests, tasks.c.request_id == requests.c.id)
        .where(tasks.c.object_key == objects.c.key, requests.c.pinned, not_(requests.c.deleted))
        .exists()
    )
