"""Counters and end times of requests, which are updated once for each transaction."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Connection, bindparam, update

from servicex_server.database.requests import stored
from servicex_server.database.tables import requests
from servicex_server.model import (
    TaskState,
    now,
)


class CounterUpdates:
    """Counters and end times of the requests whose tasks change in this transaction.

    Clients poll for files that ended at or after the newest time they know. So the times of a
    request never decrease. ``owners`` are the owners of the requests, by id.
    """

    def __init__(self, connection: Connection, request_ids: Iterable[str]) -> None:
        rows = stored(connection, request_ids)
        self._latest: dict[str, datetime | None] = {k: row.last_ended for k, row in rows.items()}
        self.owners: dict[str, str] = {k: row.owner for k, row in rows.items()}
        self._counts: dict[str, Counter[TaskState]] = defaultdict(Counter)
        self._bytes: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._kept: dict[str, int | None] = defaultdict(int)

    def end(
        self, request_id: str, state: TaskState, *, size: int, events: int, kept: int | None
    ) -> datetime:
        """Count a finished task and its result; return its end time.

        Parameters
        ----------
        request_id
            The request of the task.
        state
            The final state of the task.
        size
            Bytes of the result.
        events
            Events read for the result.
        kept
            Events in the result; None if the number is not known.
        """
        moment, latest = now(), self._latest.get(request_id)
        if latest is not None and moment <= latest:
            moment = latest + timedelta(microseconds=1)
        self._latest[request_id] = moment
        self._counts[request_id][state] += 1
        if state is TaskState.DONE:
            self._bytes[request_id] += size
            self._events[request_id] += events
            before = self._kept[request_id]
            self._kept[request_id] = None if before is None or kept is None else before + kept
        return moment

    def lose(self, request_id: str, *, size: int, events: int, kept: int | None) -> None:
        """Count a finished task and its result no more; the parameters are those of `end`."""
        self._counts[request_id][TaskState.DONE] -= 1
        self._bytes[request_id] -= size
        self._events[request_id] -= events
        before = self._kept[request_id]
        # if the number was not known, neither is the sum, and it stays so
        self._kept[request_id] = None if before is None or kept is None else before - kept

    def write(self, connection: Connection) -> None:
        """Store the changed counters and times."""
        changes = [
            {
                "request": request_id,
                "done": counts[TaskState.DONE],
                "lost": counts[TaskState.FAILED],
                "size": self._bytes[request_id],
                "read": self._events[request_id],
                "kept": self._kept[request_id],
                "moment": self._latest[request_id],
            }
            for request_id, counts in self._counts.items()
        ]
        if changes:
            connection.execute(
                update(requests)
                .where(requests.c.id == bindparam("request"))
                .values(
                    completed=requests.c.completed + bindparam("done"),
                    failed=requests.c.failed + bindparam("lost"),
                    bytes=requests.c.bytes + bindparam("size"),
                    events=requests.c.events + bindparam("read"),
                    events_kept=requests.c.events_kept + bindparam("kept", type_=BigInteger),
                    last_ended=bindparam("moment"),
                ),
                changes,
            )
