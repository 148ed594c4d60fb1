"""Authentication: from the ``Authorization`` header to the principal on whose behalf rows are read.

Every database query that serves a user takes a `Principal`, which decides what the user may see.
"""

import re
import unicodedata
from datetime import timedelta

from servicex_server.accounts.access_tokens import (
    Claims,
    access_token,
    digest,
    is_api_token,
    new_api_token,
    read_access_token,
)
from servicex_server.accounts.oidc import Identity, OidcProviders
from servicex_server.accounts.signing_keys import SigningKeys
from servicex_server.database import sign_ins
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.errors import RequestError, SignInError, UnknownTokenError
from servicex_server.model import ApiToken, Principal, User, UserState, now

TOKEN_DAYS = 365
"""Days for which an API token is valid, unless its user chooses another number."""

MOST_DAYS = 5 * 365
"""Longest lifetime of an API token, in days."""

_EMAIL = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+")


def email_of(text: str) -> str:
    """Return an e-mail address in the form that identifies an account: stripped, in lower case.

    Addresses that differ only in case are the same. An address with a character that Unicode
    normalises to another one, such as the Kelvin sign to a K, is rejected.

    Raises
    ------
    RequestError
        The text is not an e-mail address.

    Examples
    --------
    >>> email_of(" Jane.Doe@CERN.ch ")
    'jane.doe@cern.ch'
    """
    text = text.strip()
    email = text.lower()
    if unicodedata.normalize("NFKC", text) != text:
        raise RequestError(f"email: {text[:100]!r} has a character that looks like another one")
    if not _EMAIL.fullmatch(email) or len(email) > 320:  # noqa: PLR2004  # RFC 3696
        raise RequestError(f"email: {text[:100]!r} is not an e-mail address")
    return email


class Authenticator:
    """Authenticates programs and browsers by the tokens that they send.

    Parameters
    ----------
    database
        The database with the accounts and the API tokens.
    keys
        The signing keys of the service.
    providers
        The OIDC providers, whose access tokens are accepted too.
    """

    def __init__(self, database: Database, keys: SigningKeys, providers: OidcProviders) -> None:
        self._database = database
        self._keys = keys
        self._providers = providers

    async def principal(self, authorization: str | None) -> Principal:
        """Return the principal of the access token in an ``Authorization`` header.

        The token is one of this service, or of an OIDC provider.

        Raises
        ------
        SignInError
            The header is missing, the token is not valid, or its account is not active. The hint
            says what to do.
        ForbiddenError
            The account of the e-mail address belongs to another identity of the OIDC provider.
        IssuerError
            The OIDC provider of the token does not answer.
        """
        token = _bearer(authorization)
        if identity := await self._providers.identity_of_token(token):
            return allowed(await self._of(identity))
        claims = read_access_token(self._keys, token)
        found = await self._database.read(rows.by_token, number=claims.token)
        if found is None or found[0].email != claims.user:
            raise SignInError(_REVOKED, hint="make a new API token")
        return allowed(*found)

    async def exchange(self, authorization: str | None) -> str:
        """Return an access token for the API token in an ``Authorization`` header.

        Raises
        ------
        SignInError
            As for `principal`.
        """
        user, token = await self.by_api_token(_bearer(authorization))
        await self._database.write(rows.used, token)
        return access_token(self._keys.current, Claims(user.email, token.id))

    async def by_api_token(self, token: str) -> tuple[User, ApiToken]:
        """Return the account of an API token, which is active, and the token's row.

        Raises
        ------
        SignInError
            As for `principal`.
        """
        found = None
        if is_api_token(token):
            found = await self._database.read(rows.by_token, digest=digest(token))
        if found is None:
            raise UnknownTokenError(
                "Invalid or outdated refresh token",
                hint="make a new API token, and put it into servicex.yaml",
            )
        allowed(*found)
        return found

    async def _of(self, identity: Identity) -> User:
        """Return the account that belongs to an identity of an OIDC provider."""
        email = email_of(identity.email) if identity.email else ""
        found = await self._database.read(
            sign_ins.account_of, identity.issuer, identity.subject, email
        )
        if found is None:
            raise SignInError(
                "the token is valid, but its user has no account on this service",
                hint="sign in once with a browser, with the same provider",
            )
        return found


_REVOKED = "the API token of this access token was revoked, or its account deleted"


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
    """Return the principal of an account.

    Parameters
    ----------
    user
        The account.
    token
        The API token with which the user was authenticated, if any.

    Raises
    ------
    SignInError
        The account is not active, or the token has expired.
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
    return Principal(
        user.email,
        user.role,
        number=user.id,
        token=token.id if token is not None else 0,
        key_epoch=user.key_epoch,
    )


def token_name(text: str) -> str:
    """Return the name of a token, stripped.

    Raises
    ------
    RequestError
        The name is empty, too long, or has characters that cannot be printed.
    """
    name = text.strip()
    if not name or len(name) > 100 or not name.isprintable():  # noqa: PLR2004  # for people to read
        raise RequestError("name: a token needs one, of at most 100 characters")
    return name


async def make_token(
    database: Database, email: str, name: str, *, days: float = TOKEN_DAYS
) -> tuple[str, ApiToken]:
    """Create an API token for an account; return the token and its row.

    Only the hash of the token is stored, so the token cannot be read again.

    Raises
    ------
    NotFoundError
        The account does not exist.
    RequestError
        The name or the number of days is not valid, or a token with this name exists.
    """
    name = token_name(name)
    if not 0 < days <= MOST_DAYS:
        raise RequestError(f"days: {days:g} is not between 0 and {MOST_DAYS}")
    token, known_by = new_api_token()
    ends = now() + timedelta(days=days)
    return token, await database.write(rows.add_token, email, name, known_by, ends)
