"""Rows of accounts, and of the tokens that their programs sign in with."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, not_, select, update
from sqlalchemy.exc import IntegrityError

from servicex_server.database.requests import OPEN, change_state, drop_tasks
from servicex_server.database.tables import api_tokens, datasets, requests, users
from servicex_server.errors import NotFoundError, RequestError
from servicex_server.model import ApiToken, RequestState, Role, User, UserState, now


def _user(row: Row[Any]) -> User:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    return User(**{**values, "role": Role(row.role), "state": UserState(row.state)})


def add(connection: Connection, email: str, about: Mapping[str, Any]) -> User:
    """Add an account, with what ``about`` says of it by the names of `User`.

    Raises
    ------
    RequestError
        There is one of this e-mail already.
    """
    try:
        with connection.begin_nested():
            connection.execute(insert(users).values(email=email, created_at=now(), **about))
    except IntegrityError:
        raise RequestError(f"email: there is an account of {email} already") from None
    return get(connection, email)


def first(connection: Connection, *which: ColumnElement[bool]) -> User | None:
    """Return an account of which something holds; None if there is none."""
    row = connection.execute(select(users).where(*which)).first()
    return _user(row) if row is not None else None


def get(connection: Connection, email: str) -> User:
    """Return an account.

    Raises
    ------
    NotFoundError
        There is none.
    """
    found = first(connection, users.c.email == email)
    if found is None:
        raise NotFoundError(f"there is no account of {email}")
    return found


def by_number(connection: Connection, number: int) -> User:
    """Return an account by its number.

    Raises
    ------
    NotFoundError
        There is none.
    """
    found = first(connection, users.c.id == number)
    if found is None:
        raise NotFoundError(f"there is no account {number}")
    return found


def listed(connection: Connection) -> list[User]:
    """Return all accounts, those that wait for approval first, then by e-mail."""
    waits = not_(users.c.state == UserState.PENDING)
    return [_user(row) for row in connection.execute(select(users).order_by(waits, users.c.email))]


def administrators(connection: Connection) -> list[str]:
    """Return the e-mails of the administrators who may come in."""
    may = (users.c.role == Role.ADMINISTRATOR) & (users.c.state == UserState.ACTIVE)
    return list(connection.scalars(select(users.c.email).where(may)))


def change(connection: Connection, email: str, values: Mapping[str, Any]) -> User:
    """Change an account, by the names of `User`.

    Raises
    ------
    NotFoundError
        There is none.
    """
    get(connection, email)
    connection.execute(update(users).where(users.c.email == email).values(**values))
    return get(connection, email)


def suspend(connection: Connection, email: str) -> list[str]:
    """Have an account used no more, and its requests end; return the ids of these."""
    change(connection, email, {"state": UserState.SUSPENDED})
    of_user = requests.c.owner == email
    found = list(
        connection.scalars(select(requests.c.id).where(of_user, requests.c.state.in_(OPEN)))
    )
    ended = change_state(
        connection, found, RequestState.CANCELED, failure="the account was suspended"
    )
    for request_id in ended:
        drop_tasks(connection, request_id)
    return ended


def remove(connection: Connection, email: str) -> list[str]:
    """Delete an account with its tokens; return the ids of its requests, which are to be cleared.

    Its lists of files stay for as long as a request has them, and are nobody's.
    """
    suspend(connection, email)
    of_user = requests.c.owner == email
    connection.execute(update(requests).where(of_user).values(deleted=True))
    connection.execute(update(datasets).where(datasets.c.owner == email).values(stale=True))
    found = list(connection.scalars(select(requests.c.id).where(of_user)))
    connection.execute(
        delete(api_tokens).where(
            api_tokens.c.user_id.in_(select(users.c.id).where(users.c.email == email))
        )
    )
    connection.execute(delete(users).where(users.c.email == email))
    return found


# --- tokens --------------------------------------------------------------------------------

_TOKEN = [column for column in api_tokens.c if column.name != "hash"]


def add_token(
    connection: Connection, email: str, name: str, digest: str, expires_at: datetime
) -> ApiToken:
    """Add a token to an account, by its hash.

    Raises
    ------
    NotFoundError, RequestError
        There is no such account; it has a token of this name.
    """
    values = {
        "user_id": get(connection, email).id,
        "name": name,
        "hash": digest,
        "created_at": now(),
        "expires_at": expires_at,
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(api_tokens).values(**values))
    except IntegrityError:
        raise RequestError(
            f"name: {email} has a token {name!r} already", hint="revoke that one, or choose another"
        ) from None
    row = connection.execute(select(*_TOKEN).where(api_tokens.c.hash == digest)).one()
    return ApiToken(**row._mapping)  # noqa: SLF001  # documented


def tokens_of(connection: Connection, email: str) -> list[ApiToken]:
    """Return the tokens of an account, the oldest first.

    Raises
    ------
    NotFoundError
        There is no such account.
    """
    of_user = api_tokens.c.user_id == get(connection, email).id
    rows = connection.execute(select(*_TOKEN).where(of_user).order_by(api_tokens.c.id))
    return [ApiToken(**row._mapping) for row in rows]  # noqa: SLF001  # documented


def revoke(connection: Connection, email: str, name: str) -> None:
    """Remove a token of an account.

    Raises
    ------
    NotFoundError
        There is no such account, or token of it.
    """
    found = {one.name: one.id for one in tokens_of(connection, email)}
    if name not in found:
        raise NotFoundError(f"{email} has no token {name[:100]!r}")
    connection.execute(delete(api_tokens).where(api_tokens.c.id == found[name]))


def by_token(
    connection: Connection, *, digest: str = "", number: int = 0
) -> tuple[User, ApiToken] | None:
    """Return the account of a token, by its hash or its number; None if there is none."""
    which = api_tokens.c.hash == digest if digest else api_tokens.c.id == number
    row = connection.execute(select(*_TOKEN).where(which)).first()
    if row is None:
        return None
    token = ApiToken(**row._mapping)  # noqa: SLF001  # documented
    owner = connection.execute(select(users).where(users.c.id == token.user_id)).one()
    return _user(owner), token


def used(connection: Connection, token: ApiToken) -> None:
    """Note that a token was used, and its user seen."""
    moment = now()
    connection.execute(
        update(api_tokens).where(api_tokens.c.id == token.id).values(last_used=moment)
    )
    connection.execute(update(users).where(users.c.id == token.user_id).values(last_seen=moment))
