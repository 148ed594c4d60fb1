"""What only the process knows that leads, as it was last written down."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from servicex_server.database.tables import snapshots
from servicex_server.model import now

WORKERS = "workers"
"""The workers and what they are on, how many are wanted and why, and where the scheduler is."""

SITES = "sites"
"""The doors of sites, and how each has done."""

COUNTS = "counts"
"""What has been counted since the leader began to lead; numbers only."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Something as it was at a moment. It is written only when it has changed."""

    at: datetime
    value: dict[str, Any]


def put(connection: Connection, values: dict[str, dict[str, Any]]) -> None:
    """Write down snapshots by their names, in the place of the former ones."""
    for name, value in values.items():
        stored = {"at": now(), "value": value}
        row = update(snapshots).where(snapshots.c.name == name).values(**stored)
        if not connection.execute(row).rowcount:
            connection.execute(insert(snapshots).values(name=name, **stored))


def get(connection: Connection, name: str) -> Snapshot | None:
    """Return a snapshot; None before a process has led for the first time."""
    row = connection.execute(select(snapshots).where(snapshots.c.name == name)).first()
    return Snapshot(row.at, row.value) if row is not None else None
