"""Who asks: from what a program sends to the principal through whom every row is read."""

import re
from datetime import timedelta

from servicex_server.accounts.issuers import Identity, Issuers
from servicex_server.accounts.tokens import (
    Claims,
    access_token,
    digest,
    new_api_token,
    read_access_token,
)
from servicex_server.database import sign_ins
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.errors import RequestError, SignInError, UnknownTokenError
from servicex_server.keys import Keys
from servicex_server.model import ApiToken, Principal, User, UserState, now

TOKEN_DAYS = 365
"""Days for which an API token works, if its user does not want it to end earlier or later."""

MOST_DAYS = 5 * 365

_EMAIL = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+")


def email_of(text: str) -> str:
    """Return an e-mail as accounts are known by it: those that differ in case only are the same.

    Raises
    ------
    RequestError
        It is none.

    Examples
    --------
    >>> email_of(" Jane.Doe@CERN.ch ")
    'jane.doe@cern.ch'
    """
    email = text.strip().lower()
    if not _EMAIL.fullmatch(email) or len(email) > 320:  # noqa: PLR2004  # RFC 3696
        raise RequestError(f"email: {text[:100]!r} is no e-mail address")
    return email


class Access:
    """Signs programs in, and browsers.

    Parameters
    ----------
    keys
        The service's own keys.
    issuers
        Those that vouch for users.
    """

    def __init__(self, database: Database, keys: Keys, issuers: Issuers) -> None:
        self._database = database
        self._keys = keys
        self._issuers = issuers

    async def principal(self, authorization: str | None) -> Principal:
        """Return whom an access token in a header is of: one of ours, or of an issuer.

        Raises
        ------
        SignInError
            There is none, it is good no more, or its account may not be used; says what to do.
        IssuerError
            The issuer of the token does not answer.
        """
        token = _bearer(authorization)
        if identity := await self._issuers.vouched(token):
            return allowed(await self._of(identity))
        claims = read_access_token(self._keys, token)
        found = await self._database.read(rows.by_token, number=claims.token)
        if found is None or found[0].email != claims.user:
            raise SignInError(_GONE, hint="make a new API token")
        return allowed(*found)

    async def exchange(self, authorization: str | None) -> str:
        """Return an access token for an API token in a header.

        Raises
        ------
        SignInError
            As for `principal`.
        """
        user, token = await self.by_api_token(_bearer(authorization))
        await self._database.write(rows.used, token)
        return access_token(self._keys.newest, Claims(user.email, token.id))

    async def by_api_token(self, token: str) -> tuple[User, ApiToken]:
        """Return the account of an API token, which may be used, and what is known of the token.

        Raises
        ------
        SignInError
            As for `principal`.
        """
        found = await self._database.read(rows.by_token, digest=digest(token))
        if found is None:
            raise UnknownTokenError(
                "Invalid or outdated refresh token",
                hint="make a new API token, and put it into servicex.yaml",
            )
        allowed(*found)
        return found

    async def _of(self, identity: Identity) -> User:
        """Return the account of somebody for whom an issuer vouches."""
        found = await self._database.read(sign_ins.by_identity, identity.issuer, identity.subject)
        if found is None and identity.email:
            email = email_of(identity.email)
            found = await self._database.read(sign_ins.by_email, email)
        if found is None:
            raise SignInError(
                "the token is good, but there is no account of whom it is",
                hint="sign in once with a browser, by the same issuer",
            )
        return found


_GONE = "the API token of this access token was revoked, or its account deleted"


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise SignInError(
            "Missing Authorization Header",
            hint="put an API token into servicex.yaml, or send `Authorization: Bearer <token>`",
        )
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise SignInError("the Authorization header is not `Bearer <token>`")
    return token.strip()


def allowed(user: User, token: ApiToken | None = None) -> Principal:
    """Return the principal of an account, which came in with an API token if there is one.

    Raises
    ------
    SignInError
        The account may not be used, or the token not any more.
    """
    if user.state is UserState.PENDING:
        raise SignInError(
            "Not Authorized: Your account is still pending",
            hint="an administrator has to approve it",
        )
    if user.state is UserState.SUSPENDED:
        raise SignInError(
            "Not Authorized: Your account is suspended", hint="ask an administrator why"
        )
    if token is not None and token.expires_at <= now():
        raise SignInError(
            f"the API token {token.name!r} expired at {token.expires_at:%Y-%m-%d %H:%M} UTC",
            hint="make a new one",
        )
    return Principal(user.email, user.role)


def token_name(text: str) -> str:
    """Return what a token is to be called.

    Raises
    ------
    RequestError
        It is no name.
    """
    name = text.strip()
    if not name or len(name) > 100 or not name.isprintable():  # noqa: PLR2004  # for people to read
        raise RequestError("name: a token needs one, of at most 100 characters")
    return name


async def make_token(
    database: Database, email: str, name: str, *, days: float = TOKEN_DAYS
) -> tuple[str, ApiToken]:
    """Make an API token for an account; return it, which is known to nobody after that.

    Raises
    ------
    NotFoundError, RequestError
        There is no such account; or a name, or a number of days, that cannot be.
    """
    name = token_name(name)
    if not 0 < days <= MOST_DAYS:
        raise RequestError(f"days: {days:g} is not between 0 and {MOST_DAYS}")
    token, known_by = new_api_token()
    ends = now() + timedelta(days=days)
    return token, await database.write(rows.add_token, email, name, known_by, ends)
