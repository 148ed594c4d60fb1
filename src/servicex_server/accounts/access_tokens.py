"""API tokens, which users store for their programs, and the access tokens exchanged for them.

An access token is short-lived. A program gets one for its API token at ``POST /token/refresh``.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servicex_server.accounts.signing_keys import SigningKeys
from servicex_server.errors import SignInError, UnknownTokenError

if TYPE_CHECKING:
    from joserfc.jwk import OctKey

ACCESS_SECONDS = 6 * 3600
"""Seconds for which an access token is valid."""

PREFIX = "sxt_"
"""Prefix of every API token, so that people and secret scanners recognise one in a log or a
repository."""

_API_TOKEN = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")

ISSUER = "servicex-server"

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
"""The ``grant_type`` with which a program asks for its token (RFC 8628, 3.4)."""

_NEW = "get one at POST /token/refresh, as programs with the servicex client do when they start"


def new_api_token() -> tuple[str, str]:
    """Return a new API token and its hash. The user sees the token once; the hash is stored."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, digest(token)


def is_api_token(text: str) -> bool:
    """Whether a text has the form of an API token. Any other text need not be looked up."""
    return _API_TOKEN.fullmatch(text) is not None


def digest(token: str) -> str:
    """Return the hash under which an API token is stored.

    One round of SHA-256 is enough, because nobody can guess 256 random bits.
    """
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of an access token: its user, and the id of the API token it was issued for."""

    user: str
    token: int = 0


def access_token(key: bytes, claims: Claims) -> str:
    """Return a signed token (JWS, HS256), with the ``exp`` that the published client insists on.

    Parameters
    ----------
    key
        The current signing key of the service. The token is signed with a key derived from it.
    claims
        The claims of the token.
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


def read_access_token(keys: SigningKeys, token: str) -> Claims:
    """Return the claims of an access token that was signed with one of the service's keys.

    Raises
    ------
    UnknownTokenError
        The service did not issue the token.
    SignInError
        The token has expired. The hint says what to do.
    """
    if token.startswith(PREFIX):
        raise UnknownTokenError(
            "this is an API token, and an access token is needed",
            hint="exchange it at POST /token/refresh, as the servicex client does",
        )
    said = next(filter(None, (_read(key, token) for key in keys.all)), {})
    user, number, end = said.get("sub"), said.get("tid"), said.get("exp")
    known = said.get("iss") == ISSUER and said.get("type") == "access"
    if not (known and isinstance(user, str) and isinstance(number, int) and isinstance(end, int)):
        raise UnknownTokenError("this service did not issue the access token", hint=_NEW)
    if end <= time.time():
        raise SignInError(
            "the access token has expired", hint="get a new one at POST /token/refresh"
        )
    return Claims(user, number)


def _read(key: bytes, token: str) -> dict[str, Any] | None:
    """Return the claims of a token; None if it was not signed with this key."""
    from joserfc import jwt
    from joserfc.errors import JoseError

    try:
        return jwt.decode(token, _signing(key), algorithms=["HS256"]).claims
    except (JoseError, ValueError, TypeError, RecursionError):  # the text is untrusted
        return None


def _signing(key: bytes) -> "OctKey":
    from joserfc.jwk import OctKey

    return OctKey.import_key(hmac.new(key, b"servicex-access-token", hashlib.sha256).digest())
