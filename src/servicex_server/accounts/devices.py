"""Programs that wait for somebody to sign them in, in a browser anywhere (RFC 8628)."""

import secrets
from contextlib import suppress
from datetime import timedelta

from servicex_server.accounts.access import make_token, token_name
from servicex_server.accounts.tokens import digest
from servicex_server.database import sign_ins as rows
from servicex_server.database import users as user_rows
from servicex_server.database.connection import Database
from servicex_server.errors import NotFoundError
from servicex_server.model import now

WAIT = timedelta(minutes=10)
"""How long a program waits."""

INTERVAL = 2
"""Seconds between two of its questions."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Which make no word, and none of which is taken for another (RFC 8628, 6.1)."""


def plain_code(text: str) -> str:
    """Return a code as it is kept, however somebody has typed it.

    Examples
    --------
    >>> plain_code(" wdjb mjht")
    'WDJB-MJHT'
    """
    letters = "".join(one for one in text.upper() if one in _LETTERS)
    return f"{letters[:4]}-{letters[4:8]}"


class Devices:
    """Signs programs in that somebody has started who can use a browser."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, name: str) -> tuple[str, str]:
        """Return a secret for a program, and the code that its user types in a browser.

        Parameters
        ----------
        name
            What its token is to be called.

        Raises
        ------
        RequestError
            The name cannot be one.
        """
        name = token_name(name)
        while True:
            secret = secrets.token_urlsafe(32)
            code = plain_code("".join(secrets.choice(_LETTERS) for _ in range(8)))
            ends = now() + WAIT
            if await self._database.write(rows.add_device, digest(secret), code, name, ends):
                return secret, code

    async def ask(self, secret: str) -> rows.Device | None:
        """Return how it stands with a program; None if it waits no more."""
        found = await self._database.read(rows.device, digest(secret))
        return found if found is not None and found.expires_at > now() else None

    async def token(self, secret: str, found: rows.Device) -> str | None:
        """Return the API token of a program that was let in; None if it has been asked for before.

        It takes the place of the one that the program had.
        """
        assert found.user is not None  # noqa: S101  # somebody has let it in
        if not await self._database.write(rows.end_device, digest(secret)):
            return None
        with suppress(NotFoundError):  # it had none
            await self._database.write(user_rows.revoke, found.user, found.name)
        return (await make_token(self._database, found.user, found.name))[0]
