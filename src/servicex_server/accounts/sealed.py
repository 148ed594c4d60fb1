"""What a browser keeps for the service for a while, and can neither read nor change.

So whoever is on the way in costs no row, and comes back to whichever process of the service.
"""

import hashlib
import hmac
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from servicex_server.keys import Keys

if TYPE_CHECKING:
    from joserfc.jwk import OctKey


def seal(keys: Keys, use: str, values: dict[str, Any], seconds: float) -> str:
    """Return values as a text (JWE, A256GCM) that says nothing to others.

    Parameters
    ----------
    keys
        The service's own.
    use
        What it is for: what was sealed for one use is nothing for another.
    seconds
        How long it is good for.
    """
    from joserfc import jwe

    said = json.dumps({"values": values, "exp": time.time() + seconds})
    return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, said, _key(keys.newest, use))


def unseal(keys: Keys, use: str, text: str) -> dict[str, Any] | None:
    """Return what was sealed; None if it is nothing of ours for that use, or too old."""
    from joserfc import jwe
    from joserfc.errors import JoseError

    for key in keys.ring:
        with suppress(JoseError, ValueError, RecursionError):
            found = jwe.decrypt_compact(text, _key(key, use), algorithms=["dir", "A256GCM"])
            said = json.loads(found.plaintext or b"{}")
            values: dict[str, Any] = said["values"]
            return values if said["exp"] > time.time() else None
    return None


def _key(key: bytes, use: str) -> "OctKey":
    from joserfc.jwk import OctKey

    return OctKey.import_key(hmac.new(key, f"sealed {use}".encode(), hashlib.sha256).digest())
