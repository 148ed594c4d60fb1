"""Rows of how users come in: who they are for issuers, browsers, and programs that wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from servicex_server.database import users as rows
from servicex_server.database.tables import devices, identities, sessions, users
from servicex_server.errors import RequestError
from servicex_server.model import User, now

# --- issuers -------------------------------------------------------------------------------


def by_identity(connection: Connection, issuer: str, subject: str) -> User | None:
    """Return the account that somebody has come into by an issuer before."""
    theirs = (identities.c.issuer == issuer, identities.c.subject == subject)
    return rows.first(connection, users.c.id == identities.c.user_id, *theirs)


def by_email(connection: Connection, email: str) -> User | None:
    """Return the account of an e-mail, in lower case."""
    return rows.first(connection, users.c.email == email)


def join(connection: Connection, user: User, issuer: str, subject: str) -> None:
    """Note who the user of an account is for an issuer, if that is not known yet."""
    values = {
        "user_id": user.id,
        "issuer": issuer,
        "subject": subject,
        "created_at": now(),
    }
    if by_identity(connection, issuer, subject) is None:
        connection.execute(insert(identities).values(values))


def sign_up(
    connection: Connection, email: str, about: Mapping[str, Any], issuer: str, subject: str
) -> tuple[User, bool]:
    """Make the account of somebody; return it, and whether it was not there before.

    Of two sign-ups at a time one makes the account, and the other finds it.
    """
    found = by_email(connection, email)
    user = found or rows.add(connection, email, about)
    join(connection, user, issuer, subject)
    return user, found is None


# --- browsers ------------------------------------------------------------------------------


def open_session(
    connection: Connection,
    user_id: int,
    digest: str,
    expires_at: datetime,
    *,
    token_id: int | None = None,
) -> None:
    """Note that somebody has signed in, in a browser; those that have ended go."""
    moment = now()
    connection.execute(delete(sessions).where(sessions.c.expires_at <= moment))
    values = {
        "hash": digest,
        "user_id": user_id,
        "token_id": token_id,
        "created_at": moment,
        "expires_at": expires_at,
    }
    connection.execute(insert(sessions).values(values))
    connection.execute(update(users).where(users.c.id == user_id).values(last_seen=moment))


def by_session(connection: Connection, digest: str) -> User | None:
    """Return who has signed in, in a browser; None if nobody has, or it is too long ago."""
    open_ = (sessions.c.hash == digest, sessions.c.expires_at > now())
    return rows.first(connection, users.c.id == sessions.c.user_id, *open_)


def is_vouched(connection: Connection, digest: str) -> bool:
    """Whether somebody has signed in, in a browser, by an issuer, and not with an API token."""
    which = (sessions.c.hash == digest, sessions.c.token_id.is_(None))
    return connection.scalar(select(sessions.c.user_id).where(*which)) is not None


def end_session(connection: Connection, digest: str) -> None:
    """Sign out in one browser."""
    connection.execute(delete(sessions).where(sessions.c.hash == digest))


def end_sessions(connection: Connection, email: str) -> int:
    """Sign somebody out in all browsers; return in how many."""
    which = sessions.c.user_id == rows.get(connection, email).id
    return connection.execute(delete(sessions).where(which)).rowcount


# --- programs ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A program that waits: what it calls itself, who has let it in, or whether it was refused."""

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
    """Note a program that waits; return whether its code is one that no other has."""
    connection.execute(delete(devices).where(devices.c.expires_at <= now()))
    values = {"hash": digest, "code": code, "name": name, "expires_at": expires_at}
    try:
        with connection.begin_nested():
            connection.execute(insert(devices).values(values))
    except IntegrityError:
        return False
    return True


def device_by_code(connection: Connection, code: str) -> Device | None:
    """Return the program that waits with a code, and has not been answered."""
    waits = (devices.c.code == code, devices.c.expires_at > now())
    open_ = (devices.c.user_id.is_(None), devices.c.refused.is_(False))
    row = connection.execute(_DEVICE.where(*waits, *open_)).first()
    return Device(**row._mapping) if row is not None else None  # noqa: SLF001  # documented


def answer_device(connection: Connection, code: str, email: str, *, let_in: bool) -> None:
    """Let a program in as somebody, or refuse it.

    Raises
    ------
    RequestError
        Nothing waits with this code any more.
    """
    if device_by_code(connection, code) is None:
        raise RequestError(f"nothing waits with the code {code} any more", hint="start it again")
    values = {"user_id": rows.get(connection, email).id} if let_in else {"refused": True}
    connection.execute(update(devices).where(devices.c.code == code).values(values))


def device(connection: Connection, digest: str) -> Device | None:
    """Return a program that waits, by the hash of what it was given."""
    row = connection.execute(_DEVICE.where(devices.c.hash == digest)).first()
    return Device(**row._mapping) if row is not None else None  # noqa: SLF001  # documented


def end_device(connection: Connection, digest: str) -> bool:
    """Remove a program that waits; return whether it was there, which it is for one only."""
    return connection.execute(delete(devices).where(devices.c.hash == digest)).rowcount == 1
