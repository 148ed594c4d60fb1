"""Status snapshots: facts that only the leader knows, stored for the other processes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from servicex_server.database.tables import snapshots
from servicex_server.model import now

WORKERS = "workers"
"""Name of the snapshot of the workers and their files, how many are wanted and why, and the address
of the scheduler."""

SITES = "sites"
"""The health of each storage endpoint."""

COUNTS = "counts"
"""Name of the snapshot of the leader's counters, which start at 0 when it takes the lead."""

STORE_OWNER = "store owner"
"""Name of the snapshot of the identity by which the object store knows this database."""

RECONCILED = "reconciled"
"""Name of the snapshot of what the last reconciliation with the object store found."""


STORAGE = "storage"
"""Name of the snapshot of the bytes in the store, how many fit, and who is above their quota."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A value, and when it was stored. It is stored only when it has changed."""

    at: datetime
    value: dict[str, Any]


def put(connection: Connection, values: dict[str, dict[str, Any]]) -> None:
    """Store snapshots by name, in place of the former ones."""
    for name, value in values.items():
        stored = {"at": now(), "value": value}
        row = update(snapshots).where(snapshots.c.name == name).values(**stored)
        if not connection.execute(row).rowcount:
            connection.execute(insert(snapshots).values(name=name, **stored))


def get(connection: Connection, name: str) -> Snapshot | None:
    """Return a snapshot; None if no process has led yet."""
    row = connection.execute(select(snapshots).where(snapshots.c.name == name)).first()
    return Snapshot(row.at, row.value) if row is not None else None
