"""How a request went: its files, workers, bytes and events, step by step, from the rows of tasks.

The rows are read once and are grouped by the database, so that what comes back is small, however
many files there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    case,
    cast,
    extract,
    func,
    literal,
    select,
)

from servicex_server.database import requests as request_rows
from servicex_server.database.tables import UtcTime, tasks
from servicex_server.model import Principal, TaskState


@dataclass(frozen=True, slots=True)
class Step:
    """What happened between two moments: files that ended, and what those gave that worked.

    ``work`` is seconds of workers on files that have ended since: over the length of the step, it
    is how many workers there were on average.
    """

    files: int = 0
    bytes: int = 0
    events: int = 0
    work: float = 0.0


def steps(
    connection: Connection,
    principal: Principal,
    request_id: str,
    *,
    began: datetime,
    length: timedelta,
    count: int,
) -> list[Step]:
    """Return so many steps of a request, each of a length; what is later is in the last one."""
    request_rows.get(connection, principal, request_id)
    done = tasks.c.state == TaskState.DONE
    ended = (
        select(
            _seconds_since(connection, began).label("at"),
            tasks.c.seconds,
            case((done, tasks.c.bytes), else_=0).label("bytes"),
            case((done, tasks.c.events), else_=0).label("events"),
        )
        .where(
            tasks.c.request_id == request_id,
            tasks.c.finished_at.is_not(None),
            tasks.c.state != TaskState.CANCELED,
        )
        .offset(0)  # so that times are read once: the query below is not merged with this one
        .subquery()
    )
    seconds = length.total_seconds()
    query = select(
        _number(connection, ended.c.at - ended.c.seconds, seconds).label("first"),
        _number(connection, ended.c.at, seconds).label("last"),
        func.count().label("files"),
        func.sum(ended.c.at).label("ended"),
        func.sum(ended.c.seconds).label("worked"),
        func.sum(ended.c.bytes).label("bytes"),
        func.sum(ended.c.events).label("events"),
    ).group_by("first", "last")
    return _steps(connection.execute(query), seconds, count)


def _seconds_since(connection: Connection, began: datetime) -> ColumnElement[float]:
    """Return how long after a moment a task ended."""
    moment = literal(began, UtcTime())
    if connection.dialect.name == "sqlite":
        days = func.julianday(tasks.c.finished_at) - func.julianday(moment)
        return days * literal(86_400.0)
    return cast(extract("epoch", tasks.c.finished_at - moment), Float)


def _number(connection: Connection, at: ColumnElement[float], length: float) -> ColumnElement[int]:
    """Return in which step of a length a time is, that is not before the first."""
    steps = at / literal(length)
    if connection.dialect.name == "sqlite":  # which has no floor everywhere; its cast cuts
        return cast(steps, Integer)
    return cast(func.floor(steps), Integer)


def _steps(groups: Iterable[Any], length: float, count: int) -> list[Step]:
    """Share what each group did among steps.

    Files of a group began in one step and ended in one, and so their workers were busy for all of
    the steps between.
    """
    files, sizes, events = [0] * count, [0] * count, [0] * count
    work = [0.0] * count
    for group in groups:
        first, last = (min(max(one, 0), count - 1) for one in (group.first, group.last))
        files[last] += group.files
        sizes[last] += int(group.bytes)
        events[last] += int(group.events)
        if first == last:
            work[last] += group.worked
            continue
        began = group.ended - group.worked
        work[first] += group.files * (first + 1) * length - began
        work[last] += group.ended - group.files * last * length
        for between in range(first + 1, last):
            work[between] += group.files * length
    return [Step(*values) for values in zip(files, sizes, events, work, strict=True)]
