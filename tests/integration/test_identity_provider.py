"""The OIDC provider that the sign-in tests use. These tests check the provider itself."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tests.identity_provider import IdentityProvider

CALLBACK = "http://127.0.0.1:9/callback"
JANE = {"email": "jane@cern.ch", "email_verified": True, "name": "Jané Müller", "groups": ["atlas"]}


@pytest.fixture(scope="module", params=["RS256", "ES256"])
def provider(request: pytest.FixtureRequest) -> Iterator[IdentityProvider]:
    """Give a provider; the one that signs with ES256 has its claims in ID tokens too.

    Tests that change it change it back.
    """
    users: dict[str, dict[str, Any]] = {"jane": JANE, "bare": {"email": "bare@cern.ch"}}
    elliptic = request.param == "ES256"
    made = IdentityProvider(users, algorithm=request.param, claims_in_id_token=elliptic).start()
    made.redirect_to(CALLBACK)
    yield made
    made.stop()


def read(provider: IdentityProvider, token: str) -> dict[str, Any]:
    """Return the claims of a token, after a check of its signature with the published keys."""
    keys = KeySet.import_key_set(httpx.get(provider.described()["jwks_uri"]).json())
    return jwt.decode(token, keys, algorithms=[provider.algorithm]).claims


def signed_in(provider: IdentityProvider, login: str) -> dict[str, Any]:
    """Sign a user in as a service does; return the tokens."""
    url, verifier = provider.authorization(CALLBACK, state="s", nonce="n")
    with httpx.Client() as client:
        redirected = provider.sign_in(client, url, login)
    place = redirected.headers["Location"]
    assert place.startswith(f"{CALLBACK}?")
    assert parse_qs(urlsplit(place).query)["state"] == ["s"]
    tokens: dict[str, Any] = provider.tokens(redirected, verifier)
    return tokens


def about(provider: IdentityProvider, tokens: dict[str, Any]) -> dict[str, Any]:
    """Return what userinfo says."""
    header = {"Authorization": f"Bearer {tokens['access_token']}"}
    found: dict[str, Any] = httpx.get(
        provider.described()["userinfo_endpoint"], headers=header
    ).json()
    return found


def test_provider_returns_the_claims_of_the_user(provider: IdentityProvider) -> None:
    """Userinfo has the configured claims only. The ID token has them if the provider is set so."""
    tokens = signed_in(provider, "jane")
    claims = read(provider, tokens["id_token"])
    assert claims["iss"] == provider.issuer
    assert (claims["sub"], claims["aud"], claims["nonce"]) == ("jane", provider.client_id, "n")
    assert about(provider, tokens) == {"sub": "jane"} | JANE
    assert (claims.items() >= JANE.items()) == provider.claims_in_id_token
    assert ("email" in claims) == provider.claims_in_id_token
    tokens = signed_in(provider, "bare")
    assert about(provider, tokens) == {"sub": "bare", "email": "bare@cern.ch"}
    provider.change("jane", email="jane@fnal.gov", email_verified=None)
    changed = about(provider, signed_in(provider, "jane"))
    assert changed == {"sub": "jane", "email": "jane@fnal.gov"} | {
        name: JANE[name] for name in ("name", "groups")
    }
    provider.change("jane", **JANE)


def test_signed_in_browser_is_not_asked_again(provider: IdentityProvider) -> None:
    """The provider redirects a browser with a session at once."""
    with httpx.Client() as client:
        for _ in range(2):
            url, verifier = provider.authorization(CALLBACK)
            redirected = provider.sign_in(client, url, "jane")
            assert provider.tokens(redirected, verifier)["id_token"]
        assert client.get(provider.authorization(CALLBACK)[0]).is_redirect


def test_provider_rejects_invalid_requests(provider: IdentityProvider) -> None:
    """PKCE is missing, the redirect is not registered, or the verifier of the code is wrong."""
    with httpx.Client() as client:
        place = provider.described()["authorization_endpoint"]
        query = {"client_id": provider.client_id, "response_type": "code", "scope": "openid"}
        url = f"{place}?{urlencode(query | {'redirect_uri': CALLBACK})}"
        refused = provider.sign_in(client, url, "jane").headers["Location"]
        assert parse_qs(urlsplit(refused).query)["error"] == ["invalid_request"]
        url, _ = provider.authorization("http://127.0.0.1:9/elsewhere")
        assert client.get(url).status_code == 400
        redirected = provider.sign_in(client, provider.authorization(CALLBACK)[0], "jane")
    with pytest.raises(AssertionError, match="invalid_grant"):
        provider.tokens(redirected, "x" * 43)


def test_an_access_token_is_signed_for_an_audience(provider: IdentityProvider) -> None:
    """It names its user. After a restart, the provider signs with other keys."""
    token = provider.access_token("jane")
    claims = read(provider, token)
    assert (claims["iss"], claims["sub"]) == (provider.issuer, "jane")
    assert claims["aud"] == provider.audience
    assert claims["exp"] - claims["iat"] == 3600
    other = provider.access_token("jane", audience="https://other.test")
    assert read(provider, other)["aud"] == "https://other.test"
    provider.stop()
    with pytest.raises(httpx.ConnectError):
        provider.described()
    provider.token_seconds = 1
    provider.start()
    with pytest.raises((JoseError, ValueError)):
        read(provider, token)
    claims = read(provider, provider.access_token("jane"))
    assert claims["exp"] - claims["iat"] == 1
    provider.stop()
    provider.token_seconds = 3600
    provider.start()
