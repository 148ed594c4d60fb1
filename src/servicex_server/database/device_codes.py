"""Codes of the device flow."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from servicex_server.database import users as rows
from servicex_server.database.tables import devices, users
from servicex_server.errors import RequestError
from servicex_server.model import now


@dataclass(frozen=True, slots=True)
class Device:
    """A program that waits for its user: its name, who has confirmed it, whether it was refused."""

    name: str
    expires_at: datetime
    user: str | None
    refused: bool


_DEVICE = (
    select(devices.c.name, devices.c.expires_at, users.c.email.label("user"), devices.c.refused)
    .select_from(devices)
    .outerjoin(users, users.c.id == devices.c.user_id)
)


def add_device(
    connection: Connection, digest: str, code: str, name: str, expires_at: datetime
) -> bool:
    """Add a waiting program; return False if another program has the same user code."""
    connection.execute(delete(devices).where(devices.c.expires_at <= now()))
    values = {"hash": digest, "code": code, "name": name, "expires_at": expires_at}
    try:
        with connection.begin_nested():
            connection.execute(insert(devices).values(values))
    except IntegrityError:
        return False
    return True


def device_by_code(connection: Connection, code: str) -> Device | None:
    """Return the program that waits with a user code; None if there is none or it was answered."""
    waits = (devices.c.code == code, devices.c.expires_at > now())
    open_ = (devices.c.user_id.is_(None), devices.c.refused.is_(False))
    row = connection.execute(_DEVICE.where(*waits, *open_)).first()
    return Device(**row._mapping) if row is not None else None  # noqa: SLF001  # documented


def answer_device(connection: Connection, code: str, email: str, *, let_in: bool) -> None:
    """Confirm a waiting program for a user, or refuse it.

    Raises
    ------
    RequestError
        The code is unknown, has expired, or was answered.
    """
    if device_by_code(connection, code) is None:
        raise RequestError(
            f"the code {code} is unknown, has expired or was already used",
            hint="start the program again",
        )
    values = {"user_id": rows.get(connection, email).id} if let_in else {"refused": True}
    connection.execute(update(devices).where(devices.c.code == code).values(values))


def device(connection: Connection, digest: str) -> Device | None:
    """Return a program, by the hash of its device code; None if it is unknown."""
    row = connection.execute(_DEVICE.where(devices.c.hash == digest)).first()
    return Device(**row._mapping) if row is not None else None  # noqa: SLF001  # documented


def end_device(connection: Connection, digest: str) -> bool:
    """Delete a waiting program; return whether it existed. Only one caller gets True."""
    return connection.execute(delete(devices).where(devices.c.hash == digest)).rowcount == 1
