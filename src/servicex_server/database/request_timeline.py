"""The timeline of a request: files, workers, bytes and events in each step, from its task rows.

The result is small, however many files there are. The database sums the rows of each step in the
order of the index on their end times. That takes about half the time of grouping them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Float,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal,
    select,
    union_all,
)

from servicex_server.database import requests as request_rows
from servicex_server.database.tables import OF_FILE, UtcTime, tasks
from servicex_server.model import Principal, TaskState

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one step of a request's duration.

    ``files`` ended in it; ``bytes`` and ``events`` are those of the delivered ones. ``work`` is the
    time that workers spent in the step on files that have ended, in seconds; divided by the length
    of the step, it is the mean number of workers. ``events_kept`` is None if the number is not
    known for every file.
    """

    files: int = 0
    bytes: int = 0
    events: int = 0
    events_kept: int | None = 0
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
    """Return ``count`` steps of a request, each of ``length``; the last one has all later files."""
    request_rows.get(connection, principal, request_id)
    seconds = length.total_seconds()
    given = {"request": request_id, "length": seconds, "moment_0": began, f"moment_{count}": _NEVER}
    moments = {f"moment_{number}": began + number * length for number in range(1, count)}
    dialect = connection.dialect.name
    rows = connection.execute(_steps(dialect, count), given | moments).all()
    work = [0.0] * count
    for row in rows:
        work[row.number] += row.within
        work[max(row.number - 1, 0)] += row.worked - row.within
    if any(row.longest > seconds for row in rows):
        for number, much in _long(connection.execute(_LONG[dialect], given), seconds, count):
            work[number] += much
    return [
        Step(
            row.files,
            int(row.bytes),
            int(row.events),
            None if row.unknown else int(row.kept),
            work[row.number],
        )
        for row in sorted(rows, key=lambda row: row.number)
    ]


_MINE = (
    tasks.c.request_id == bindparam("request"),
    tasks.c.state != TaskState.CANCELED,
    OF_FILE,
)
_LENGTH = bindparam("length", type_=Float)


@cache
def _steps(dialect: str, count: int) -> CompoundSelect[Any]:
    return union_all(*(_step(dialect, number) for number in range(count)))


def _step(dialect: str, number: int) -> Select[Any]:
    """Return the query that sums the files that ended in a step.

    For files that took less than a step, ``worked`` is the time that workers spent on them, and
    ``within`` is its part in this step; the rest is in the step before.
    """
    since = bindparam(f"moment_{number}", type_=UtcTime())
    until = bindparam(f"moment_{number + 1}", type_=UtcTime())
    least = func.min if dialect == "sqlite" else func.least
    within = least(tasks.c.seconds, _seconds_since(dialect, since))
    done, short = tasks.c.state == TaskState.DONE, tasks.c.seconds <= _LENGTH
    return select(
        literal(number).label("number"),
        func.count().label("files"),
        _sum(done, tasks.c.bytes).label("bytes"),
        _sum(done, tasks.c.events).label("events"),
        _sum(done, tasks.c.events_kept).label("kept"),
        _sum(and_(done, tasks.c.events_kept.is_(None)), literal(1)).label("unknown"),
        _sum(short, tasks.c.seconds).label("worked"),
        _sum(short, within).label("within"),
        func.coalesce(func.max(tasks.c.seconds), 0.0).label("longest"),
    ).where(
        *_MINE,
        tasks.c.finished_at >= since if number else tasks.c.finished_at.is_not(None),
        tasks.c.finished_at < until,
    )


def _sum(such: ColumnElement[bool], what: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((such, what), else_=0)), 0)


def _seconds_since(dialect: str, moment: ColumnElement[datetime]) -> ColumnElement[float]:
    """Return the seconds from a moment to the end of a task, as an SQL expression."""
    if dialect == "sqlite":
        days = func.julianday(tasks.c.finished_at) - func.julianday(moment)
        return days * literal(86_400.0)
    return cast(extract("epoch", tasks.c.finished_at - moment), Float)


def _long_files(dialect: str) -> Select[int, int, int, Any, Any]:
    """Return the query that sums files that took longer than a step, by first and last step."""
    began = bindparam("moment_0", type_=UtcTime())
    # the offset keeps the subquery from being merged, so each end time is computed once
    files = (
        select(_seconds_since(dialect, began).label("ended"), tasks.c.seconds)
        .where(*_MINE, tasks.c.finished_at.is_not(None), tasks.c.seconds > _LENGTH)
        .offset(0)
        .subquery()
    )
    # a cast truncates in SQLite, which has no floor function in every build
    floor = (lambda number: number) if dialect == "sqlite" else func.floor
    return select(
        cast(floor((files.c.ended - files.c.seconds) / _LENGTH), Integer).label("first"),
        cast(floor(files.c.ended / _LENGTH), Integer).label("last"),
        func.count().label("files"),
        func.sum(files.c.ended).label("ended"),
        func.sum(files.c.seconds).label("worked"),
    ).group_by("first", "last")


_LONG = {dialect: _long_files(dialect) for dialect in ("sqlite", "postgresql")}


def _long(groups: Any, length: float, count: int) -> Iterator[tuple[int, float]]:
    """Yield the work on long files by step, in seconds.

    All files of a group began in the same step and ended in the same step. So their workers were
    busy for all steps between.
    """
    for group in groups:
        first, last = (min(max(one, 0), count - 1) for one in (group.first, group.last))
        if first == last:
            yield last, group.worked
            continue
        began = group.ended - group.worked
        yield first, group.files * (first + 1) * length - began
        for between in range(first + 1, last):
            yield between, group.files * length
        yield last, group.ended - group.files * last * length
