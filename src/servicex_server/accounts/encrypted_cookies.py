"""Encrypted cookies: values that a browser stores for the service, but cannot read or change.

They carry a sign-in from one step to the next. So an unfinished sign-in needs no row, and any
process of the service can continue it.
"""

import hashlib
import hmac
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from servicex_server.accounts.signing_keys import SigningKeys

if TYPE_CHECKING:
    from joserfc.jwk import OctKey


def encrypt(keys: SigningKeys, use: str, values: dict[str, Any], seconds: float) -> str:
    """Return values as an encrypted text (JWE, A256GCM).

    Parameters
    ----------
    keys
        The signing keys of the service; the current one encrypts.
    use
        Purpose of the text. A text that was encrypted for one use cannot be decrypted for another.
    values
        The values, as JSON has them.
    seconds
        How long the text is valid.
    """
    from joserfc import jwe

    said = json.dumps({"values": values, "exp": time.time() + seconds})
    return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, said, _key(keys.current, use))


def decrypt(keys: SigningKeys, use: str, text: str) -> dict[str, Any] | None:
    """Return the values of an encrypted text; None if it is not valid for this use, or too old."""
    from joserfc import jwe
    from joserfc.errors import JoseError

    for key in keys.all:
        with suppress(JoseError, ValueError, RecursionError):
            found = jwe.decrypt_compact(text, _key(key, use), algorithms=["dir", "A256GCM"])
            said = json.loads(found.plaintext or b"{}")
            values: dict[str, Any] = said["values"]
            return values if said["exp"] > time.time() else None
    return None


def _key(key: bytes, use: str) -> "OctKey":
    from joserfc.jwk import OctKey

    return OctKey.import_key(hmac.new(key, f"sealed {use}".encode(), hashlib.sha256).digest())
