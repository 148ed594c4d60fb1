"""Rows of accounts, sessions and device codes, on SQLite and on PostgreSQL."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from servicex_server.database import device_codes, sign_ins
from servicex_server.database import sessions as session_rows
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import devices, identities, sessions
from servicex_server.errors import RequestError
from servicex_server.model import Role, User, UserState, now

pytestmark = pytest.mark.anyio

ABOUT: dict[str, Any] = {
    "name": "Zoë",
    "institution": "CERN",
    "experiment": "ATLAS",
    "reason": "",
    "role": Role.USER,
    "state": UserState.PENDING,
}
SOON = timedelta(minutes=5)


def counts(connection: Connection) -> tuple[int, ...]:
    """Return how many rows there are of identities, sessions and devices."""
    tables = (identities, sessions, devices)
    return tuple(connection.scalar(select(func.count()).select_from(one)) or 0 for one in tables)


async def signed_up(database: Database, issuer: str = "https://one", subject: str = "1") -> User:
    """Return the account of somebody who has signed up."""
    user, _ = await database.write(sign_ins.sign_up, "zoe@x.org", ABOUT, issuer, subject)
    return user


async def test_concurrent_sign_ups_create_one_account(database: Database) -> None:
    """All sign-ups get this account, each by its OIDC provider."""
    found = await asyncio.gather(
        *(
            database.write(sign_ins.sign_up, "zoe@x.org", ABOUT, issuer, "1")
            for issuer in ("https://one", "https://two", "https://one")
        )
    )
    assert len({user.id for user, _ in found}) == 1
    assert sorted(made for _, made in found) == [False, False, True]
    assert await database.read(counts) == (2, 0, 0)
    for issuer in ("https://one", "https://two"):
        assert await database.read(sign_ins.by_identity, issuer, "1") == found[0][0]
    assert await database.read(sign_ins.by_identity, "https://one", "2") is None


async def test_session_ends_with_its_time_its_token_or_its_user(database: Database) -> None:
    """A new session removes those that have ended."""
    user = await signed_up(database)
    token = await database.write(rows.add_token, user.email, "t", "hash", now() + SOON)
    await database.write(session_rows.open_session, user.id, "late", now() - SOON)
    await database.write(session_rows.open_session, user.id, "plain", now() + SOON)
    await database.write(
        session_rows.open_session, user.id, "by token", now() + SOON, token_id=token.id
    )
    assert await database.read(counts) == (1, 2, 0)

    async def known() -> list[str]:
        every = ("late", "plain", "by token")
        return [one for one in every if await database.read(session_rows.by_session, one)]

    assert await known() == ["plain", "by token"]
    assert await database.read(session_rows.is_oidc_session, "plain")
    assert not await database.read(session_rows.is_oidc_session, "by token")
    await database.write(rows.revoke, user.email, "t")
    assert await known() == ["plain"]
    await database.write(rows.remove, user.email)
    assert await known() == []
    assert await database.read(counts) == (0, 0, 0)


async def test_all_browsers_of_one_user_are_signed_out(database: Database) -> None:
    """Other users stay signed in."""
    user = await signed_up(database)
    other, _ = await database.write(sign_ins.sign_up, "jo@x.org", ABOUT, "https://one", "2")
    for digest, who in (("a", user), ("b", user), ("c", other)):
        await database.write(session_rows.open_session, who.id, digest, now() + SOON)
    assert await database.write(session_rows.end_sessions, user.email) == 2
    assert await database.read(session_rows.by_session, "c") == await database.read(
        rows.get, "jo@x.org"
    )


async def test_device_code_is_answered_once(database: Database) -> None:
    """A user finds the program by its code while it waits. After its answer, the row is gone."""
    user = await signed_up(database)
    add, ends = device_codes.add_device, now() + SOON
    assert await database.write(add, "late", "AAAA-AAAA", "old", now() - SOON)
    assert await database.write(add, "one", "BBBB-BBBB", "laptop", ends)
    assert not await database.write(add, "two", "BBBB-BBBB", "other", ends)
    assert await database.read(counts) == (1, 0, 1)
    waiting = await database.read(device_codes.device_by_code, "BBBB-BBBB")
    assert waiting is not None
    assert (waiting.name, waiting.user, waiting.refused) == ("laptop", None, False)
    await database.write(device_codes.answer_device, "BBBB-BBBB", user.email, let_in=True)
    with pytest.raises(RequestError, match="already used"):
        await database.write(device_codes.answer_device, "BBBB-BBBB", user.email, let_in=False)
    answered = await database.read(device_codes.device, "one")
    assert answered is not None
    assert answered.user == user.email
    assert await database.write(device_codes.end_device, "one")
    assert not await database.write(device_codes.end_device, "one")
