"""Rows of bad replicas: missing or broken, where another one of the same file worked."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, insert, select, update

from servicex_server.database.tables import bad_replicas, datasets, files
from servicex_server.model import BadReplica, InputFile, Outcome, now


def note(connection: Connection, ended: Iterable[tuple[Outcome, InputFile]]) -> None:
    """Store the replicas that outcomes prove to be bad.

    A replica is bad if it failed and another replica of the same file then worked, or if its
    checksum differs from that in the catalogue. A file that fails everywhere, or a failed
    credential, proves nothing about a replica. Neither does the failure of a cache.

    Parameters
    ----------
    ended
        Outcomes, each with its file.
    """
    moment = now()
    for outcome, file in ended:
        rses: Mapping[str, str] = {replica.url: replica.rse for replica in file.replicas}
        for attempt in outcome.attempts:
            if (error := attempt.error) is None or error.blame != "replica":
                continue
            proved = outcome.error is None or error.kind == "Checksum"
            if not proved or attempt.url not in rses:
                continue
            mark = sha256(f"{error.kind} {attempt.url}".encode()).hexdigest()
            values = {"message": error.message, "last_seen": moment}
            again = update(bad_replicas).where(bad_replicas.c.mark == mark)
            if connection.execute(again.values(times=bad_replicas.c.times + 1, **values)).rowcount:
                continue
            of_file = select(datasets.c.finder).join_from(datasets, files)
            finder = connection.scalar(of_file.where(files.c.id == outcome.file_id))
            connection.execute(
                insert(bad_replicas).values(
                    mark=mark,
                    url=attempt.url,
                    rse=rses[attempt.url],
                    file=file.name,
                    finder=finder or "",
                    kind=error.kind,
                    first_seen=moment,
                    times=1,
                    reported={},
                    **values,
                )
            )


_COLUMNS = [column for column in bad_replicas.c if column.name != "mark"]


def listed(
    connection: Connection, *, since: datetime | None = None, most: int = 100_000
) -> list[BadReplica]:
    """Return the bad replicas, the latest first; with ``since``, only those seen since then."""
    query = select(*_COLUMNS).order_by(bad_replicas.c.last_seen.desc(), bad_replicas.c.id)
    if since is not None:
        query = query.where(bad_replicas.c.last_seen >= since)
    return [_bad(row) for row in connection.execute(query.limit(most))]


def _bad(row: Any) -> BadReplica:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    sinks = {sink: datetime.fromisoformat(at) for sink, at in values.pop("reported").items()}
    return BadReplica(**values, reported=sinks)


def reported(connection: Connection, bad: BadReplica) -> None:
    """Store to which sinks a bad replica was reported, and when."""
    sinks = {sink: at.isoformat() for sink, at in bad.reported.items()}
    connection.execute(
        update(bad_replicas).where(bad_replicas.c.id == bad.id).values(reported=sinks)
    )
