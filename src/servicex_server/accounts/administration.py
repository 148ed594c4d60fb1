"""Operations of administrators on accounts, for the pages and for the command line."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, TypeAlias, TypeVar

from servicex_server.accounts.authentication import email_of, make_token
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.model import Role, User, UserState
from servicex_server.notifications.accounts import AccountNotifier
from servicex_server.requests.deletion import clear
from servicex_server.settings.data_folder import write_privately
from servicex_server.settings.service import Settings
from servicex_server.storage.choose import open_store
from servicex_server.storage.contract import ObjectStore

T = TypeVar("T")

Operation: TypeAlias = Callable[[Database, ObjectStore], Awaitable[T]]
"""An operation; it gets the database and the object store of the service."""


def run(settings: Settings, operation: Operation[T]) -> T:
    """Run an operation from the command line. The service may run at the same time.

    Raises
    ------
    StartupError
        The database cannot be opened.
    """
    write_privately()

    async def work() -> T:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Database(settings.database)) as database:
            database.migrate()
            return await operation(database, open_store(settings.objects))

    return asyncio.run(work())


def add(email: str, **about: Any) -> Operation[User]:
    """Add an active account. Its user needs no approval."""

    async def operation(database: Database, objects: ObjectStore) -> User:
        del objects
        values = {"reason": "", "state": UserState.ACTIVE, **about}
        return await database.write(rows.add, email_of(email), values)

    return operation


def listed() -> Operation[list[User]]:
    """Return all accounts."""
    return lambda database, _: database.read(rows.listed)


def approve(email: str, notifier: AccountNotifier) -> Operation[User]:
    """Activate an account. A user whose account was pending is notified."""

    async def operation(database: Database, objects: ObjectStore) -> User:
        del objects
        before = await database.read(rows.get, email_of(email))
        user = await database.write(rows.change, before.email, {"state": UserState.ACTIVE})
        if before.state is UserState.PENDING:
            await notifier.approved(user)
        return user

    return operation


def approve_and_wait(email: str, settings: Settings) -> Operation[None]:
    """Activate an account, and return after the notification was sent or has failed."""
    notifier = AccountNotifier(settings)

    async def operation(database: Database, objects: ObjectStore) -> None:
        await approve(email, notifier)(database, objects)
        await notifier.close()

    return operation


def promote(email: str, role: Role) -> Operation[User]:
    """Change the role of an account."""
    return lambda database, _: database.write(rows.change, email_of(email), {"role": role})


def suspend(email: str) -> Operation[list[str]]:
    """Suspend an account; return the ids of the requests that were canceled.

    The leader reads the change from the rows, and stops the tasks of these requests.
    """
    return lambda database, _: database.write(rows.suspend, email_of(email))


def delete(email: str) -> Operation[list[str]]:
    """Delete an account, its requests and their results; return the ids of the requests."""

    async def operation(database: Database, objects: ObjectStore) -> list[str]:
        gone = await database.write(rows.remove, email_of(email))
        for request_id in gone:
            await clear(database, objects, request_id)
        return gone

    return operation


def token(email: str, name: str, days: float) -> Operation[str]:
    """Create an API token for an account, and return it."""

    async def operation(database: Database, objects: ObjectStore) -> str:
        del objects
        made, _ = await make_token(database, email_of(email), name, days=days)
        return made

    return operation


def revoke(email: str, name: str) -> Operation[None]:
    """Revoke an API token of an account."""
    return lambda database, _: database.write(rows.revoke, email_of(email), name)
