"""What an administrator does to accounts: on the pages, or from a command line beside them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, TypeAlias, TypeVar

from servicex_server.accounts.access import email_of, make_token
from servicex_server.accounts.telling import Telling
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.model import Role, User, UserState
from servicex_server.objects.contract import ObjectStore
from servicex_server.objects.store import open_store
from servicex_server.retention import clear
from servicex_server.settings import Settings

T = TypeVar("T")

Deed: TypeAlias = Callable[[Database, ObjectStore], Awaitable[T]]
"""What is done, with the database and the results of the service."""


def run(settings: Settings, deed: Deed[T]) -> T:
    """Do something, whether the service runs or not.

    Raises
    ------
    StartupError
        The database cannot be opened.
    """

    async def work() -> T:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Database(settings.database)) as database:
            database.migrate()
            return await deed(database, open_store(settings.objects))

    return asyncio.run(work())


def add(email: str, **about: Any) -> Deed[User]:
    """Add an account that may be used at once."""

    async def deed(database: Database, objects: ObjectStore) -> User:
        del objects
        values = {"reason": "", "state": UserState.ACTIVE, **about}
        return await database.write(rows.add, email_of(email), values)

    return deed


def listed() -> Deed[list[User]]:
    """Return all accounts."""
    return lambda database, _: database.read(rows.listed)


def approve(email: str, telling: Telling) -> Deed[User]:
    """Let somebody in, and tell who has waited for it."""

    async def deed(database: Database, objects: ObjectStore) -> User:
        del objects
        before = await database.read(rows.get, email_of(email))
        user = await database.write(rows.change, before.email, {"state": UserState.ACTIVE})
        if before.state is UserState.PENDING:
            await telling.approved(user)
        return user

    return deed


def approve_and_wait(email: str, settings: Settings) -> Deed[None]:
    """Let somebody in from a command, which ends once they are told."""
    telling = Telling(settings)

    async def deed(database: Database, objects: ObjectStore) -> None:
        await approve(email, telling)(database, objects)
        await telling.close()

    return deed


def promote(email: str, role: Role) -> Deed[User]:
    """Give somebody another role."""
    return lambda database, _: database.write(rows.change, email_of(email), {"role": role})


def suspend(email: str) -> Deed[list[str]]:
    """Keep somebody out; return the requests that were cancelled.

    The leader sees it by the rows, and stops what runs of them.
    """
    return lambda database, _: database.write(rows.suspend, email_of(email))


def delete(email: str) -> Deed[list[str]]:
    """Remove an account, its requests and their results; return the requests."""

    async def deed(database: Database, objects: ObjectStore) -> list[str]:
        gone = await database.write(rows.remove, email_of(email))
        for request_id in gone:
            await clear(database, objects, request_id)
        return gone

    return deed


def token(email: str, name: str, days: float) -> Deed[str]:
    """Return a new API token of somebody."""

    async def deed(database: Database, objects: ObjectStore) -> str:
        del objects
        made, _ = await make_token(database, email_of(email), name, days=days)
        return made

    return deed


def revoke(email: str, name: str) -> Deed[None]:
    """End an API token of somebody."""
    return lambda database, _: database.write(rows.revoke, email_of(email), name)
