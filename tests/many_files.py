"""A request with very many files that have ended, written into the database of a service."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

from tests.support import Server

FILES = 100_000
SECONDS = 7200.0
"""From the first to the last."""

WORKERS = 64

REQUEST_ID = "big"


def many_files(server: Server) -> None:
    """Write the request; something must have been requested before, on SQLite."""
    ((dataset_id,),) = server.rows("select id from datasets")
    path = server.data_dir / "servicex.sqlite"
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        _fill(connection, dataset_id)


def _fill(connection: sqlite3.Connection, dataset_id: int) -> None:
    came = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=3)
    connection.execute(
        "insert into requests (id, owner, dataset_id, did, language, selection, format, state, "
        "submitted_at, finished_at, failure, app_version, files, completed, bytes) values "
        "(?, 'local', ?, 'd', 'uproot-raw', '[]', 'parquet', 'Complete', ?, ?, '', '0', ?, ?, "
        "?)",
        (
            REQUEST_ID,
            dataset_id,
            str(came),
            str(came + timedelta(seconds=SECONDS)),
            FILES,
            FILES,
            7 * FILES,
        ),
    )
    connection.executemany(
        "insert into files (id, dataset_id, position, replicas, size, events) "
        "values (?, ?, ?, '[]', 0, 0)",
        [(1000 + n, dataset_id, 1000 + n) for n in range(FILES)],
    )
    step = timedelta(seconds=SECONDS) / FILES
    connection.executemany(
        "insert into tasks (request_id, file_id, first_entry, state, attempts, finished_at, path, "
        "object_name, object_key, bytes, events, seconds, worker, tried, log_tail) values "
        "(?, ?, 0, 'done', 1, ?, ?, ?, ?, 7, 3, ?, ?, '[]', '')",
        [
            (
                REQUEST_ID,
                1000 + n,
                str(came + (n + 1) * step),
                f"root://far//store/{n}.root",
                f"{n}.parquet",
                f"{REQUEST_ID}/1/{n}.parquet",
                1.0 + n % 9,
                f"worker-{n % WORKERS}",
            )
            for n in range(FILES)
        ],
    )
