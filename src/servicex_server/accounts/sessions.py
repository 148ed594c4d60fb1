"""Sessions of signed-in browsers; each browser holds a secret in its session cookie."""

import secrets
from datetime import timedelta

from servicex_server.accounts.access_tokens import digest
from servicex_server.database import sessions
from servicex_server.database.connection import Database
from servicex_server.model import ApiToken, User, now

SESSION = timedelta(days=7)
"""Lifetime of a session. After it, the user has to sign in again."""


class Sessions:
    """Opens, finds and ends sessions. The database stores only the hashes of their secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, user: User, token: ApiToken | None = None) -> str:
        """Open a session and return its secret.

        A session that was opened with an API token ends when that token ends.
        """
        secret = secrets.token_urlsafe(32)
        ends = now() + SESSION
        await self._database.write(
            sessions.open_session,
            user.id,
            digest(secret),
            min(ends, token.expires_at) if token else ends,
            token_id=token.id if token else None,
        )
        return secret

    async def user(self, secret: str | None) -> User | None:
        """Return the user of a session, in whatever state their account is."""
        if not secret:
            return None
        return await self._database.read(sessions.by_session, digest(secret))

    async def is_oidc_session(self, secret: str | None) -> bool:
        """Whether the session was opened with an OIDC provider, and not with an API token."""
        return secret is not None and await self._database.read(
            sessions.is_oidc_session, digest(secret)
        )

    async def end(self, secret: str | None) -> None:
        """End a session."""
        if secret:
            await self._database.write(sessions.end_session, digest(secret))
