"""Sign-in with OIDC providers: the authorization code flow with PKCE, done by Authlib.

A provider returns an `Identity`: its issuer and subject, and an e-mail address that the provider
has verified. The address connects the identities that one person has at several providers.
"""

import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from servicex_server.accounts.oidc_keys import JwksCache
from servicex_server.errors import IssuerError, NotFoundError, SignInError, UnknownTokenError
from servicex_server.settings.issuers import WELL_KNOWN, Issuer

ANSWER_SECONDS = 10.0
"""Seconds in which a provider has to answer."""

LEEWAY = 60
"""Seconds by which the clocks of a provider and of the service may differ."""

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Accepted signature algorithms of access tokens of providers; all are asymmetric."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as an OIDC provider describes them.

    Parameters
    ----------
    issuer, subject
        The claims ``iss`` and ``sub``, which together identify the user permanently.
    email
        The verified e-mail address, as the provider writes it; empty if there is none.
    name
        Name of the user; empty if the provider does not give it.
    approved
        Whether the claims satisfy the provider's ``approve`` option, so that no administrator has
        to approve the account.
    """

    issuer: str
    subject: str
    email: str = ""
    name: str = ""
    approved: bool = False


class OidcProviders:
    """All OIDC providers of a service.

    Parameters
    ----------
    options
        The providers in the setting ``accounts.issuers``.
    """

    def __init__(self, options: Sequence[Issuer]) -> None:
        self.options = {one.name: one for one in options}
        self._clients: dict[str, Any] = {}
        self._keys: dict[str, JwksCache] = {}
        if options:
            from authlib.integrations.starlette_client import OAuth

            registry = OAuth()
            for one in options:
                client = registry.register(**_known_as(one))
                self._clients[one.name] = client
                self._keys[one.name] = JwksCache(partial(client.fetch_jwk_set, force=True))

    async def examine(self, name: str) -> str:
        """Check that a provider answers and supports what sign-in needs.

        Returns
        -------
        A remark on PKCE, which continues a sentence about the provider.

        Raises
        ------
        IssuerError
            The provider does not answer, or lacks something. The hint says what.
        """
        option = self._option(name)
        metadata = await self._metadata(option)
        for needed in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not metadata.get(needed):
                raise IssuerError(
                    f"{option.title} cannot be used", hint=f"its metadata have no {needed}"
                )
        methods = metadata.get("code_challenge_methods_supported")
        if methods is None:
            return ", and does not say whether it supports PKCE"
        if "S256" not in methods:
            raise IssuerError(
                f"{option.title} cannot be used", hint="it does not support PKCE with S256"
            )
        return ", with PKCE"

    async def begin(self, name: str, callback: str) -> tuple[str, dict[str, Any]]:
        """Return the authorization URL of a provider, and the values that `complete` needs later.

        Parameters
        ----------
        name
            Name of the provider.
        callback
            The redirect URL, to which the provider sends the browser back.

        Raises
        ------
        NotFoundError
            The provider does not exist.
        IssuerError
            The provider does not answer.
        """
        client, option = self._client(name), self._option(name)
        await self._metadata(option)
        begun = dict(await client.create_authorization_url(callback))
        return begun.pop("url"), {**begun, "redirect_uri": callback}

    async def complete(
        self, name: str, kept: Mapping[str, Any], answer: Mapping[str, str]
    ) -> Identity:
        """Return the identity of a user who comes back from a provider.

        Parameters
        ----------
        name
            Name of the provider.
        kept
            The values that `begin` returned.
        answer
            The query with which the provider has sent the browser back.

        Raises
        ------
        NotFoundError
            The provider does not exist.
        SignInError
            The provider refused the user, or its answer could not be verified.
        IssuerError
            The provider does not answer.
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
                if more.get("sub") == claims.get("sub"):
                    # `email_verified` is about the e-mail address in the same document only
                    if "email" not in claims:
                        claims.pop("email_verified", None)
                    elif "email" in more:
                        more.pop("email_verified", None)
                    claims = {**more, **claims}
        except (httpx.HTTPError, ValueError) as error:
            raise _unreachable(option) from error
        except (AuthlibBaseError, JoseError) as error:
            raise SignInError(
                f"the answer of {option.title} could not be verified: {error}",
                hint="sign in once more",
            ) from None
        return _identity(option, metadata["issuer"], claims)

    async def identity_of_token(self, token: str) -> Identity | None:
        """Return the identity in an access token of a provider; None if no provider issued it.

        Raises
        ------
        SignInError
            A provider issued the token, but it is not valid. The message says why.
        IssuerError
            The provider does not answer.
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
            raise UnknownTokenError(f"{option.title} did not sign the token", hint=_RENEW) from None
        _check(option, metadata["issuer"], claims)
        return _identity(option, metadata["issuer"], claims)

    def _issuer_of(self, token: str) -> Issuer | None:
        """Return the provider that the unverified claims of a token name."""
        named = str(_part(token, 1).get("iss", "")).rstrip("/")
        for option in self.options.values():
            if option.audience and named == _url(option):
                return option
        return None

    async def _key_set(self, option: Issuer, token: str) -> Any:
        """Return the keys of a provider, with the key of a token if the provider has it."""
        import httpx
        from joserfc.jwk import KeySet

        kid = _part(token, 0).get("kid")
        try:
            return KeySet.import_key_set(await self._keys[option.name].having(kid))  # type: ignore[arg-type]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _unreachable(option) from error

    async def _metadata(self, option: Issuer) -> Mapping[str, Any]:
        import httpx

        try:
            found: dict[str, Any] = await self._client(option.name).load_server_metadata()
        except (httpx.HTTPError, ValueError) as error:
            raise _unreachable(option) from error
        if str(found.get("issuer", "")).rstrip("/") != _url(option):
            raise IssuerError(
                f"the metadata of {option.title} are those of another issuer",
                hint=f"correct the metadata_url of {option.name} in the setting accounts.issuers",
            )
        return found

    def _option(self, name: str) -> Issuer:
        if name not in self.options:
            raise NotFoundError(f"there is nothing at /sign-in/{name}")
        return self.options[name]

    def _client(self, name: str) -> Any:
        return self._clients[self._option(name).name]


_RENEW = "get a new one from its issuer"


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


def _unreachable(option: Issuer) -> IssuerError:
    return IssuerError(
        f"{option.title} does not answer as it should; try again in a minute",
        hint="or use another way to sign in",
    )


def _part(token: str, which: int) -> dict[str, Any]:
    """Return the unverified header (0) or payload (1) of a token."""
    try:
        part = token.split(".")[which]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError):  # the text is untrusted
        return {}
    return found if isinstance(found, dict) else {}


def _check(option: Issuer, issuer: str, claims: Mapping[str, Any]) -> None:
    """Check the claims of a token whose signature is correct.

    Raises
    ------
    UnknownTokenError
        Another issuer is named, or the token has no subject.
    SignInError
        The token is not for this service, or not valid now. The message says why.
    """
    named = claims.get("aud")
    audiences = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if claims.get("iss") != issuer or not isinstance(claims.get("sub"), str):
        raise UnknownTokenError(
            f"the token has another issuer (iss) than {option.title}, or no subject (sub)",
            hint=_RENEW,
        )
    if not any(audience in audiences for audience in option.audience):
        shown = ", ".join(option.audience)
        raise SignInError(
            "the token is for another service (aud)", hint=f"request one with the audience {shown}"
        )
    end, start, moment = _moment(claims.get("exp")), _moment(claims.get("nbf", 0)), time.time()
    if end is None:
        raise SignInError(f"the token of {option.title} has no expiry time (exp)", hint=_RENEW)
    if end + LEEWAY <= moment:
        raise SignInError(f"the token of {option.title} has expired", hint=_RENEW)
    if start is None or start - LEEWAY > moment:
        raise SignInError(f"the token of {option.title} is not valid yet (nbf)", hint=_RENEW)


def _moment(claim: Any) -> float | None:
    """Return a time claim of a JWT, in seconds since the epoch; None if it is not a number."""
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
    """Whether a claim, which may be one value or a list, contains one of these values."""
    given = claim if isinstance(claim, list) else [claim]
    return any((one if isinstance(one, str) else json.dumps(one)) in values for one in given)
