"""Tokens: those that users keep for their programs, and the short-lived ones they get for them."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servicex_server.errors import SignInError, UnknownTokenError
from servicex_server.keys import Keys

if TYPE_CHECKING:
    from joserfc.jwk import OctKey

ACCESS_SECONDS = 6 * 3600
"""How long an access token works."""

PREFIX = "sxt_"
"""How an API token begins: so that it is seen for what it is, in a log or a repository."""

ISSUER = "servicex-server"

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
"""By which a program asks for a token that waits for its user (RFC 8628, 3.4)."""

_NEW = "get one at POST /token/refresh, as programs with the servicex client do when they start"


def new_api_token() -> tuple[str, str]:
    """Return an API token, which its user is shown once, and its hash, which is kept."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, digest(token)


def digest(token: str) -> str:
    """Return the hash by which an API token is known: one round, for nobody guesses 256 bits."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Claims:
    """What an access token says: whose it is, and the number of the API token it was got for."""

    user: str
    token: int = 0


def access_token(key: bytes, claims: Claims) -> str:
    """Return a signed token (JWS, HS256), with the ``exp`` that the published client insists on.

    Parameters
    ----------
    key
        The newest key of the service; tokens are signed with one derived for that use.
    claims
        What it says.
    """
    from joserfc import jwt

    moment = int(time.time())
    said = {
        "iss": ISSUER,
        "sub": claims.user,
        "tid": claims.token,
        "type": "access",
        "iat": moment,
        "exp": moment + ACCESS_SECONDS,
    }
    return jwt.encode({"alg": "HS256"}, said, _signing(key))


def read_access_token(keys: Keys, token: str) -> Claims:
    """Return what an access token says that was signed with one of the service's keys.

    Raises
    ------
    SignInError
        It is none of ours, or has expired; says what to do.
    """
    if token.startswith(PREFIX):
        raise UnknownTokenError(
            "this is an API token, and an access token is needed",
            hint="exchange it at POST /token/refresh, as the servicex client does",
        )
    said = next(filter(None, (_read(key, token) for key in keys.ring)), {})
    user, number, end = said.get("sub"), said.get("tid"), said.get("exp")
    known = said.get("iss") == ISSUER and said.get("type") == "access"
    if not (known and isinstance(user, str) and isinstance(number, int) and isinstance(end, int)):
        raise UnknownTokenError("the access token is not one of this service", hint=_NEW)
    if end <= time.time():
        raise SignInError(
            "the access token has expired", hint="get a new one at POST /token/refresh"
        )
    return Claims(user, number)


def _read(key: bytes, token: str) -> dict[str, Any] | None:
    """Return what a token says; None if it was not signed with this key."""
    from joserfc import jwt
    from joserfc.errors import JoseError

    try:
        return jwt.decode(token, _signing(key), algorithms=["HS256"]).claims
    except (JoseError, ValueError, TypeError, RecursionError):  # anybody may write anything
        return None


def _signing(key: bytes) -> "OctKey":
    from joserfc.jwk import OctKey

    return OctKey.import_key(hmac.new(key, b"servicex-access-token", hashlib.sha256).digest())
