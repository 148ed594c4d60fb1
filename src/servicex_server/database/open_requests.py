"""What is still to be done, as the process that dispatches reads it again and again.

The cost is that of the requests that have not ended, however many have.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, select

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import datasets, requests
from servicex_server.model import DatasetState, RequestState

_UNKNOWN = [DatasetState.CREATED, DatasetState.LOOKING]


def listed(connection: Connection) -> tuple[set[str], list[int]]:
    """Return the requests that have not ended, and the datasets they wait for, oldest first."""
    rows = connection.execute(
        select(requests.c.id, requests.c.dataset_id, datasets.c.state)
        .join_from(requests, datasets, requests.c.dataset_id == datasets.c.id)
        .where(requests.c.state.in_(OPEN))
    ).all()
    return {row.id for row in rows}, sorted({r.dataset_id for r in rows if r.state in _UNKNOWN})


def broken_off(connection: Connection, request_ids: Iterable[str]) -> list[str]:
    """Return those of the requests that did not end with their last file, but before: or are gone.

    Files of theirs may still be worked on.
    """
    wanted = list(request_ids)
    complete = connection.scalars(
        select(requests.c.id).where(
            requests.c.id.in_(wanted), requests.c.state == RequestState.COMPLETE
        )
    )
    return sorted(set(wanted) - set(complete))
