"""Browsers in which somebody has signed in, each known by a secret in its cookie."""

import secrets
from datetime import timedelta

from servicex_server.accounts.tokens import digest
from servicex_server.database import sign_ins as rows
from servicex_server.database.connection import Database
from servicex_server.model import ApiToken, User, now

SESSION = timedelta(days=7)
"""After which one has to sign in again."""


class Sessions:
    """The browsers that are signed in; the database has the hashes of their secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, user: User, token: ApiToken | None = None) -> str:
        """Sign somebody in, and return the secret; it dies with the API token, if it was by one."""
        secret = secrets.token_urlsafe(32)
        ends = now() + SESSION
        await self._database.write(
            rows.open_session,
            user.id,
            digest(secret),
            min(ends, token.expires_at) if token else ends,
            token_id=token.id if token else None,
        )
        return secret

    async def user(self, secret: str | None) -> User | None:
        """Return who has signed in, whether their account may be used or not."""
        if not secret:
            return None
        return await self._database.read(rows.by_session, digest(secret))

    async def is_vouched(self, secret: str | None) -> bool:
        """Whether it was by an issuer that somebody has signed in."""
        return secret is not None and await self._database.read(rows.is_vouched, digest(secret))

    async def end(self, secret: str | None) -> None:
        """Sign out."""
        if secret:
            await self._database.write(rows.end_session, digest(secret))
