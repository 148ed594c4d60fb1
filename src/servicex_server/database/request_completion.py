"""How requests end, and the sentence that says why one failed."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select

from servicex_server.database.failure_groups import grouped
from servicex_server.database.requests import OPEN, change_state, drop_tasks, stored
from servicex_server.database.tables import datasets, tasks
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    DatasetState,
    RequestState,
    TaskState,
)
from servicex_server.text.escaping import redacted

_READ = 1000
"""Most failed files that are read to find their common error."""


_NAMED = 3
"""Files that the failure text of a request names."""


def finish(
    connection: Connection, request_ids: Iterable[str], *, fatal_after: int
) -> dict[str, RequestState]:
    """End those of the requests that have nothing left to do; return the final state of each.

    A request is `Fatal` if all its files failed, so that nobody takes it for an empty result. It is
    also `Fatal` if its first ``fatal_after`` files all failed with the same query error.
    """
    ended: dict[str, RequestState] = {}
    for request_id, row in stored(connection, request_ids).items():
        if row.state in OPEN and (end := _end_of(connection, row, fatal_after)):
            state, failure = end
            if change_state(connection, [request_id], state, failure=failure):
                drop_tasks(connection, request_id)
                ended[request_id] = state
    return ended


def _end_of(connection: Connection, row: Any, fatal_after: int) -> tuple[RequestState, str] | None:
    """Return the final state of a request and its failure text; None if it has not ended."""
    if row.files == row.completed + row.failed:
        query = select(datasets.c.state).where(datasets.c.id == row.dataset_id)
        if connection.scalar(query) == DatasetState.COMPLETE:
            lost = row.failed and not row.completed
            state = RequestState.FATAL if lost else RequestState.COMPLETE
            return state, _common(connection, row.id, row.failed) if row.failed else ""
    if row.failed >= fatal_after and not row.completed:
        failure = _one_query_error(connection, row.id, fatal_after)
        return (RequestState.FATAL, failure) if failure else None
    return None


def _errors(connection: Connection, request_id: str) -> list[tuple[ErrorRecord, int, str]]:
    """Return the errors, file ids and paths of the first failed files."""
    rows = connection.execute(
        select(tasks.c.error, tasks.c.file_id, tasks.c.path)
        .where(tasks.c.request_id == request_id, tasks.c.state == TaskState.FAILED)
        .order_by(tasks.c.id)
        .limit(_READ)
    )
    return [(ErrorRecord(**row.error), row.file_id, redacted(row.path or "")) for row in rows]


def _text(error: ErrorRecord) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _one_query_error(connection: Connection, request_id: str, fatal_after: int) -> str:
    """Return the query error that all failed files share; empty if they differ or are too few."""
    found = _errors(connection, request_id)
    if len({(error.message, error.hint) for error, _, _ in found}) > 1:
        return ""
    error = found[0][0]
    paths = {file_id: path for _, file_id, path in found}
    if error.blame != "query" or len(paths) < fatal_after:
        return ""
    return f"{_text(error)} [the first {len(paths)} files: {_named(list(paths.values()))}]"


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _common(connection: Connection, request_id: str, failed: int) -> str:
    """Return the failure text of a request: its most frequent error, with the number of files."""
    errors = _errors(connection, request_id)
    groups = grouped((error, path, 1, path) for error, _, path in errors)
    first = groups[0]
    text = _text(first.shown)
    if first.shown != first.error:
        text = f"{text} [{_named(list(dict.fromkeys(first.members)))}]"
    files = f"{failed} file{'s' if failed > 1 else ''} failed"
    if len(groups) == 1:
        return f"{files}: {text}"
    at_least = "at least " if failed > len(errors) else ""
    return f"{files}; {at_least}{first.count} with: {text}"
