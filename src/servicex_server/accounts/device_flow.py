"""Device flow: a user signs in a program from a browser on any machine (RFC 8628)."""

import secrets
from datetime import timedelta

from servicex_server.accounts.access_tokens import digest
from servicex_server.accounts.authentication import make_token, token_name
from servicex_server.database import device_codes
from servicex_server.database import users as user_rows
from servicex_server.database.connection import Database
from servicex_server.model import now

WAIT = timedelta(minutes=10)
"""How long a program waits for its user."""

INTERVAL = 2
"""Seconds between two polls of a program."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Letters of a user code. They form no words, and they do not look alike (RFC 8628, 6.1)."""


def plain_code(text: str) -> str:
    """Return a user code in its stored form, whatever case and separators the user has typed.

    Examples
    --------
    >>> plain_code(" wdjb mjht")
    'WDJB-MJHT'
    """
    letters = "".join(one for one in text.upper() if one in _LETTERS)
    return f"{letters[:4]}-{letters[4:8]}"


class DeviceFlow:
    """Issues API tokens to programs whose user confirms them in a browser."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, name: str) -> tuple[str, str]:
        """Return the device code of a program, and the user code that its user types in a browser.

        Parameters
        ----------
        name
            Name of the API token that the program will get.

        Raises
        ------
        RequestError
            The name is not valid.
        """
        name = token_name(name)
        while True:
            secret = secrets.token_urlsafe(32)
            code = plain_code("".join(secrets.choice(_LETTERS) for _ in range(8)))
            ends = now() + WAIT
            if await self._database.write(
                device_codes.add_device, digest(secret), code, name, ends
            ):
                return secret, code

    async def ask(self, secret: str) -> device_codes.Device | None:
        """Return the state of a program's sign-in; None if its code is unknown or has expired."""
        found = await self._database.read(device_codes.device, digest(secret))
        return found if found is not None and found.expires_at > now() else None

    async def token(self, secret: str, found: device_codes.Device) -> str | None:
        """Return the API token of a program that its user has confirmed.

        None if the token was fetched before. The token gets a name that no other token of the user
        has: anybody may start a program and choose its name, so an existing token is not replaced.
        """
        assert found.user is not None  # noqa: S101  # a user has confirmed the program
        if not await self._database.write(device_codes.end_device, digest(secret)):
            return None
        taken = {one.name for one in await self._database.read(user_rows.tokens_of, found.user)}
        names = (found.name, *(f"{found.name[:90]} ({n})" for n in range(2, len(taken) + 3)))
        name = next(one for one in names if one not in taken)
        return (await make_token(self._database, found.user, name))[0]
