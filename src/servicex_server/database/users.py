"""Rows of accounts and of their API tokens."""

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
    """Add an account.

    Parameters
    ----------
    email
        The e-mail address, in lower case.
    about
        Other values, by names of `User`.

    Raises
    ------
    RequestError
        An account with this address exists.
    """
    try:
        with connection.begin_nested():
            connection.execute(insert(users).values(email=email, created_at=now(), **about))
    except IntegrityError:
        raise RequestError(f"email: {email} already has an account") from None
    return get(connection, email)


def first(connection: Connection, *which: ColumnElement[bool]) -> User | None:
    """Return an account that meets all conditions; None if there is none."""
    row = connection.execute(select(users).where(*which)).first()
    return _user(row) if row is not None else None


def get(connection: Connection, email: str) -> User:
    """Return an account by its e-mail address.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    found = first(connection, users.c.email == email)
    if found is None:
        raise NotFoundError(f"{email} has no account")
    return found


def by_number(connection: Connection, number: int) -> User:
    """Return an account by its id.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    found = first(connection, users.c.id == number)
    if found is None:
        raise NotFoundError(f"account {number} does not exist")
    return found


def listed(connection: Connection) -> list[User]:
    """Return all accounts, first those that wait for approval, then by e-mail address."""
    waits = not_(users.c.state == UserState.PENDING)
    return [_user(row) for row in connection.execute(select(users).order_by(waits, users.c.email))]


def administrators(connection: Connection) -> list[str]:
    """Return the e-mail addresses of active administrators, sorted."""
    may = (users.c.role == Role.ADMINISTRATOR) & (users.c.state == UserState.ACTIVE)
    return list(connection.scalars(select(users.c.email).where(may).order_by(users.c.email)))


def change(connection: Connection, email: str, values: Mapping[str, Any]) -> User:
    """Change values of an account, by names of `User`; return it.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    get(connection, email)
    connection.execute(update(users).where(users.c.email == email).values(**values))
    return get(connection, email)


def revoke_keys(connection: Connection, email: str) -> None:
    """Revoke all keys and links to results that were issued to an account.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    change(connection, email, {"key_epoch": users.c.key_epoch + 1})


def suspend(connection: Connection, email: str) -> list[str]:
    """Suspend an account and cancel its active requests; return the ids of these.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    change(connection, email, {"state": UserState.SUSPENDED})
    revoke_keys(connection, email)
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
    """Delete an account with its tokens; return the ids of its requests, which the caller clears.

    Its file lists stay in the database while a request refers to them; no user can use them again.

    Raises
    ------
    NotFoundError
        The account does not exist.
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
    """Add an API token to an account, by the hash of the token.

    Raises
    ------
    NotFoundError, RequestError
        The account does not exist; it has a token with this name.
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
    """Return the API tokens of an account, the oldest first.

    Raises
    ------
    NotFoundError
        The account does not exist.
    """
    of_user = api_tokens.c.user_id == get(connection, email).id
    rows = connection.execute(select(*_TOKEN).where(of_user).order_by(api_tokens.c.id))
    return [ApiToken(**row._mapping) for row in rows]  # noqa: SLF001  # documented


def revoke(connection: Connection, email: str, name: str) -> None:
    """Delete an API token of an account.

    Raises
    ------
    NotFoundError
        The account or the token does not exist.
    """
    found = {one.name: one.id for one in tokens_of(connection, email)}
    if name not in found:
        raise NotFoundError(f"{email} has no token {name[:100]!r}")
    connection.execute(delete(api_tokens).where(api_tokens.c.id == found[name]))


def by_token(
    connection: Connection, *, digest: str = "", number: int = 0
) -> tuple[User, ApiToken] | None:
    """Return an API token, by its hash or its id, with its account; None if it does not exist."""
    which = api_tokens.c.hash == digest if digest else api_tokens.c.id == number
    row = connection.execute(select(*_TOKEN).where(which)).first()
    if row is None:
        return None
    token = ApiToken(**row._mapping)  # noqa: SLF001  # documented
    owner = connection.execute(select(users).where(users.c.id == token.user_id)).one()
    return _user(owner), token


def used(connection: Connection, token: ApiToken) -> None:
    """Record that a token was used now, and its user seen."""
    moment = now()
    connection.execute(
        update(api_tokens).where(api_tokens.c.id == token.id).values(last_used=moment)
    )
    connection.execute(update(users).where(users.c.id == token.user_id).values(last_seen=moment))
