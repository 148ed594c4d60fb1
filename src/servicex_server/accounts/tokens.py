"""Access tokens: signed, short-lived, with the ``exp`` that the published client insists on."""

import time

from servicex_server.model import Principal

ACCESS_SECONDS = 6 * 3600
"""How long an access token works."""


def access_token(key: bytes, principal: Principal) -> str:
    """Return a signed token (JWS, HS256) that names a principal.

    Parameters
    ----------
    key
        The service's own key; tokens are signed with one derived for that use.
    principal
        Whom it names.
    """
    import hashlib
    import hmac

    from joserfc import jwt
    from joserfc.jwk import OctKey

    signing = OctKey.import_key(hmac.new(key, b"servicex-access-token", hashlib.sha256).digest())
    moment = int(time.time())
    claims = {
        "sub": principal.user,
        "type": "access",
        "iat": moment,
        "exp": moment + ACCESS_SECONDS,
    }
    return jwt.encode({"alg": "HS256"}, claims, signing)
