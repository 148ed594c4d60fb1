"""Rows of bad replicas: missing or broken, where another one of the same file worked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Connection, insert, select, update

from servicex_server.database.tables import bad_replicas
from servicex_server.model import InputFile, Outcome, now


@dataclass(frozen=True, slots=True)
class BadReplica:
    """One bad replica: what it is of, what is wrong with it, when that was seen, and how often."""

    url: str
    rse: str
    name: str
    kind: str
    message: str
    first_seen: datetime
    last_seen: datetime
    times: int


def note(
    connection: Connection, ended: Iterable[tuple[Outcome, InputFile]], kinds: frozenset[str]
) -> None:
    """Write down the replicas that an outcome proves to be bad.

    What is wrong with a file everywhere, or with the credential, proves nothing: only where
    another replica of the same file then worked is it the replica.

    Parameters
    ----------
    ended
        Outcomes, each with its file.
    kinds
        The kinds of errors that a replica can be blamed for.
    """
    moment = now()
    for outcome, file in ended:
        if outcome.error is not None or len(outcome.attempts) < 2:  # noqa: PLR2004  # one that failed, one that worked
            continue
        rses: Mapping[str, str] = {replica.url: replica.rse for replica in file.replicas}
        for attempt in outcome.attempts:
            if (error := attempt.error) is None or error.kind not in kinds:
                continue
            mark = sha256(f"{error.kind} {attempt.url}".encode()).hexdigest()
            values = {"message": error.message, "last_seen": moment}
            again = update(bad_replicas).where(bad_replicas.c.mark == mark)
            if connection.execute(again.values(times=bad_replicas.c.times + 1, **values)).rowcount:
                continue
            connection.execute(
                insert(bad_replicas).values(
                    mark=mark,
                    url=attempt.url,
                    rse=rses.get(attempt.url, ""),
                    name=file.name,
                    kind=error.kind,
                    first_seen=moment,
                    times=1,
                    **values,
                )
            )


def listed(connection: Connection, *, most: int = 100_000) -> list[BadReplica]:
    """Return the bad replicas, the latest first."""
    columns = [column for column in bad_replicas.c if column.name not in ("id", "mark")]
    query = select(*columns).order_by(bad_replicas.c.last_seen.desc(), bad_replicas.c.id)
    return [BadReplica(*row) for row in connection.execute(query.limit(most))]
