"""The owner's token: it protects a service without sign-in where client accounts are not known.

The token is derived from the signing key of the service. So it survives restarts without a file,
and changes only when the keys are rotated.
"""

import hashlib
import hmac

from servicex_server.accounts.access_tokens import PREFIX, read_access_token
from servicex_server.accounts.signing_keys import SigningKeys
from servicex_server.errors import SignInError, UnknownTokenError
from servicex_server.model import LOCAL_USER

_HINT = (
    "`servicex-server serve` prints it: open the address with the token in a browser, and put the "
    "token into servicex.yaml"
)


class OwnerToken:
    """Checks the owner's token.

    Parameters
    ----------
    keys
        The signing keys of the service.
    """

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    @property
    def text(self) -> str:
        """The token, derived from the current key."""
        return _derived(self._keys.current)

    def matches(self, text: str) -> bool:
        """Whether a text is the token that one of the keys gives."""
        given = text.encode("utf-8", "surrogatepass")
        return any(hmac.compare_digest(_derived(key).encode(), given) for key in self._keys.all)

    def check_token(self, authorization: str | None) -> None:
        """Accept a header with the owner's token itself.

        Raises
        ------
        SignInError
            The header is missing.
        UnknownTokenError
            The header has another token.
        """
        if not self.matches(_bearer(authorization)):
            raise UnknownTokenError("the token is not the one of this service", hint=_HINT)

    def check(self, authorization: str | None) -> None:
        """Accept a header with the owner's token, or with an access token exchanged for it.

        Raises
        ------
        SignInError
            The header is missing, or the access token has expired.
        UnknownTokenError
            The header has another token.
        """
        token = _bearer(authorization)
        if self.matches(token):
            return
        if token.startswith(PREFIX):
            raise UnknownTokenError("the token is not the one of this service", hint=_HINT)
        if read_access_token(self._keys, token).user != LOCAL_USER.user:
            raise UnknownTokenError("the access token is of an account", hint=_HINT)


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise SignInError("this service asks for its owner's token", hint=_HINT)
    return token.strip()


def _derived(key: bytes) -> str:
    return PREFIX + hmac.new(key, b"servicex-owner-token", hashlib.sha256).hexdigest()
