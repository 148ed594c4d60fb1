"""Sessions of browsers."""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from servicex_server.database import users as rows
from servicex_server.database.tables import sessions, users
from servicex_server.model import User, now


def open_session(
    connection: Connection,
    user_id: int,
    digest: str,
    expires_at: datetime,
    *,
    token_id: int | None = None,
) -> None:
    """Add a session of a browser, and delete expired sessions.

    Parameters
    ----------
    user_id
        The account.
    digest
        Hash of the secret in the browser's cookie.
    expires_at
        When the session ends.
    token_id
        The API token with which the user signed in; None for an OIDC provider.
    """
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
    """Return the user of a session; None if the session does not exist or has expired."""
    open_ = (sessions.c.hash == digest, sessions.c.expires_at > now())
    return rows.first(connection, users.c.id == sessions.c.user_id, *open_)


def is_oidc_session(connection: Connection, digest: str) -> bool:
    """Whether a session was opened with an OIDC provider, and not with an API token."""
    which = (sessions.c.hash == digest, sessions.c.token_id.is_(None))
    return connection.scalar(select(sessions.c.user_id).where(*which)) is not None


def end_session(connection: Connection, digest: str) -> None:
    """Delete one session."""
    connection.execute(delete(sessions).where(sessions.c.hash == digest))


def end_sessions(connection: Connection, email: str) -> int:
    """Delete all sessions of a user, and revoke the user's keys; return the number of sessions."""
    rows.revoke_keys(connection, email)
    which = sessions.c.user_id == rows.get(connection, email).id
    return connection.execute(delete(sessions).where(which)).rowcount
