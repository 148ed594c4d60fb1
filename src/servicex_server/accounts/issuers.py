"""Asking those who vouch for users: OpenID Connect, the code flow with PKCE, by Authlib.

What they say of somebody is an `Identity`: who it is for that issuer, and an e-mail that it has
verified, by which the same person is known from one issuer to another.
"""

import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from servicex_server.accounts.issuer_keys import IssuerKeys
from servicex_server.accounts.options import WELL_KNOWN, Issuer
from servicex_server.errors import IssuerError, NotFoundError, SignInError, UnknownTokenError

ANSWER_SECONDS = 10.0
"""How long an issuer may take to answer."""

LEEWAY = 60
"""Seconds that the clocks of an issuer and of the service may be apart."""

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""By which a token may be signed that programs bring: with a key that only its issuer has."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an issuer vouches for.

    Parameters
    ----------
    issuer, subject
        Who it is, for ever.
    email
        Verified, as it was written; empty if there is none.
    name
        Of the person; empty if it is not told.
    approved
        Whether what the issuer says is enough to let them in.
    """

    issuer: str
    subject: str
    email: str = ""
    name: str = ""
    approved: bool = False


class Issuers:
    """All issuers of a service.

    Parameters
    ----------
    options
        What the operator says of them.
    """

    def __init__(self, options: Sequence[Issuer]) -> None:
        self.options = {one.name: one for one in options}
        self._clients: dict[str, Any] = {}
        self._keys: dict[str, IssuerKeys] = {}
        if options:
            from authlib.integrations.starlette_client import OAuth

            registry = OAuth()
            for one in options:
                client = registry.register(**_known_as(one))
                self._clients[one.name] = client
                self._keys[one.name] = IssuerKeys(partial(client.fetch_jwk_set, force=True))

    async def examine(self, name: str) -> str:
        """Look whether an issuer can be used; return what it leaves open, to go on with.

        Raises
        ------
        IssuerError
            It does not answer, or cannot do what is needed; says what.
        """
        option = self._option(name)
        metadata = await self._metadata(option)
        for needed in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not metadata.get(needed):
                raise IssuerError(f"{option.title} cannot be used", hint=f"it names no {needed}")
        methods = metadata.get("code_challenge_methods_supported")
        if methods is None:
            return ", and does not say whether it supports PKCE"
        if "S256" not in methods:
            raise IssuerError(f"{option.title} cannot be used", hint="it supports no PKCE by S256")
        return ", with PKCE"

    async def begin(self, name: str, callback: str) -> tuple[str, dict[str, Any]]:
        """Return the URL at an issuer where somebody signs in, and what has to be kept until then.

        Parameters
        ----------
        name
            Of the issuer.
        callback
            The URL to which it is to lead back.

        Raises
        ------
        NotFoundError, IssuerError
            There is no such issuer; it does not answer.
        """
        client, option = self._client(name), self._option(name)
        await self._metadata(option)
        begun = dict(await client.create_authorization_url(callback))
        return begun.pop("url"), {**begun, "redirect_uri": callback}

    async def complete(
        self, name: str, kept: Mapping[str, Any], answer: Mapping[str, str]
    ) -> Identity:
        """Return whom an issuer vouches for.

        Parameters
        ----------
        kept
            What `begin` gave.
        answer
            What the browser has brought back in its query.

        Raises
        ------
        SignInError, IssuerError
            It did not let them in, or its answer proves nothing; it does not answer.
        """
        import httpx
        from authlib.common.errors import AuthlibBaseError
        from joserfc.errors import JoseError

        client, option = self._client(name), self._option(name)
        if "error" in answer:
            said = answer.get("error_description") or answer["error"]
            raise SignInError(f"{option.title} did not let you in: {said[:300]}")
        try:
            token = await client.fetch_access_token(
                code=answer.get("code", ""),
                redirect_uri=kept["redirect_uri"],
                code_verifier=kept["code_verifier"],
            )
            claims = dict(await client.parse_id_token(token, nonce=kept["nonce"]) or {})
            metadata = await self._metadata(option)
            if "userinfo_endpoint" in metadata:
                more = dict(await client.userinfo(token=token))
                claims = {**more, **claims} if more.get("sub") == claims.get("sub") else claims
        except (httpx.HTTPError, ValueError) as error:
            raise _away(option) from error
        except (AuthlibBaseError, JoseError) as error:
            raise SignInError(
                f"what {option.title} answered proves nothing: {error}",
                hint="sign in once more",
            ) from None
        return _identity(option, metadata["issuer"], claims)

    async def vouched(self, token: str) -> Identity | None:
        """Return whose a token is that an issuer gave to a program; None if it is of no issuer.

        Raises
        ------
        SignInError, IssuerError
            It is of an issuer, and not good: says why. The issuer does not answer.
        """
        from joserfc import jwt
        from joserfc.errors import JoseError

        option = self._issuer_of(token)
        if option is None:
            return None
        metadata, keys = await self._metadata(option), await self._key_set(option, token)
        try:
            claims = jwt.decode(token, keys, ALGORITHMS).claims
        except (JoseError, ValueError, TypeError, RecursionError):
            raise UnknownTokenError(
                f"the signature of the token is not one of {option.title}", hint=_ANEW
            ) from None
        _check(option, metadata["issuer"], claims)
        return _identity(option, metadata["issuer"], claims)

    def _issuer_of(self, token: str) -> Issuer | None:
        """Return the issuer that a token says it is of, which proves nothing yet."""
        named = str(_part(token, 1).get("iss", "")).rstrip("/")
        for option in self.options.values():
            if option.audience and named == _url(option):
                return option
        return None

    async def _key_set(self, option: Issuer, token: str) -> Any:
        """Return the keys of an issuer, with the one of a token if there is such a one."""
        import httpx
        from joserfc.jwk import KeySet

        kid = _part(token, 0).get("kid")
        try:
            return KeySet.import_key_set(await self._keys[option.name].having(kid))  # type: ignore[arg-type]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _away(option) from error

    async def _metadata(self, option: Issuer) -> Mapping[str, Any]:
        import httpx

        try:
            found: dict[str, Any] = await self._client(option.name).load_server_metadata()
        except (httpx.HTTPError, ValueError) as error:
            raise _away(option) from error
        if str(found.get("issuer", "")).rstrip("/") != _url(option):
            raise IssuerError(
                f"the metadata of {option.title} are those of another issuer",
                hint=f"setting issuers: metadata_url of {option.name} is to be looked at",
            )
        return found

    def _option(self, name: str) -> Issuer:
        if name not in self.options:
            raise NotFoundError(f"there is nothing at /sign-in/{name}")
        return self.options[name]

    def _client(self, name: str) -> Any:
        return self._clients[self._option(name).name]


_ANEW = "get a new one from its issuer"


def _known_as(option: Issuer) -> dict[str, Any]:
    secret = option.client_secret
    return {
        "name": option.name,
        "server_metadata_url": option.metadata_url,
        "client_id": option.client_id,
        "client_secret": secret.get_secret_value() if secret else None,
        "client_kwargs": {
            "scope": option.scope,
            "code_challenge_method": "S256",
            "timeout": ANSWER_SECONDS,
            **({} if secret else {"token_endpoint_auth_method": "none"}),
        },
    }


def _url(option: Issuer) -> str:
    return option.metadata_url.removesuffix(WELL_KNOWN).rstrip("/")


def _away(option: Issuer) -> IssuerError:
    return IssuerError(
        f"{option.title} does not answer as it should; try again in a minute",
        hint="or sign in by another way",
    )


def _part(token: str, which: int) -> dict[str, Any]:
    """Return what the header (0) or the payload (1) of a token says, which proves nothing."""
    try:
        part = token.split(".")[which]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError):  # anybody may write anything
        return {}
    return found if isinstance(found, dict) else {}


def _check(option: Issuer, issuer: str, claims: Mapping[str, Any]) -> None:
    """Refuse a token that its issuer did sign, if it is not for here and now.

    Raises
    ------
    SignInError
        It is not; says why.
    """
    named = claims.get("aud")
    audiences = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if claims.get("iss") != issuer or not isinstance(claims.get("sub"), str):
        raise UnknownTokenError(f"the token is not one of {option.title}", hint=_ANEW)
    if not any(audience in audiences for audience in option.audience):
        shown = ", ".join(option.audience)
        raise SignInError("the token is for somebody else (aud)", hint=f"ask for one for {shown}")
    end, start, moment = _moment(claims.get("exp")), _moment(claims.get("nbf", 0)), time.time()
    if end is None:
        raise SignInError(f"the token of {option.title} says no end (exp)", hint=_ANEW)
    if end + LEEWAY <= moment:
        raise SignInError(f"the token of {option.title} has expired", hint=_ANEW)
    if start is None or start - LEEWAY > moment:
        raise SignInError(f"the token of {option.title} is not good yet (nbf)", hint=_ANEW)


def _moment(claim: Any) -> float | None:
    """Return a moment as JWT has them; None if it is none, as an end that is never is."""
    number = isinstance(claim, int | float) and not isinstance(claim, bool)
    return claim if number and math.isfinite(claim) else None


def _identity(option: Issuer, issuer: str, claims: Mapping[str, Any]) -> Identity:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:  # noqa: PLR2004  # by OIDC
        raise SignInError(f"{option.title} does not say who you are (sub)")
    email, name = claims.get("email"), claims.get("name")
    verified = claims.get("email_verified", option.trust_email) in (True, "true")
    return Identity(
        issuer=issuer,
        subject=subject,
        email=email if isinstance(email, str) and verified else "",
        name=name if isinstance(name, str) else "",
        approved=any(_has(claims.get(claim), values) for claim, values in option.approve.items()),
    )


def _has(claim: Any, values: Sequence[str]) -> bool:
    """Whether a claim, which may be one value or a list, has one of these."""
    given = claim if isinstance(claim, list) else [claim]
    return any((one if isinstance(one, str) else json.dumps(one)) in values for one in given)
