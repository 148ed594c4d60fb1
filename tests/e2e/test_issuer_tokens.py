"""Programs send tokens of an OIDC issuer, also while its keys change or it is down.

One issuer is a real provider. The test has the private key of the other one, and signs tokens
with it that no provider would issue.
"""

import hmac
import json
import sqlite3
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.e2e.test_accounts import bearer, command
from tests.identity_provider import IdentityProvider
from tests.support import Server, refused, until

PATH = "/servicex/transformation"
AUDIENCE = "https://servicex.test"
CLIENT = "servicex"


def new_key(name: str = "one") -> RSAKey:
    """Return a key of an issuer."""
    return RSAKey.generate_key(2048, {"kid": name, "use": "sig", "alg": "RS256"}, private=True)


@dataclass
class KeyHolder:
    """An issuer with metadata and public keys only. The test has the private key."""

    server: ThreadingHTTPServer
    key: RSAKey = field(default_factory=new_key)
    asked: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The name of the issuer."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def token(self, *, key: RSAKey | None = None, **changes: Any) -> str:
        """Return a token for a user, with other claims; None takes one away."""
        moment = int(time.time())
        claims = {"iss": self.url, "sub": "jo", "aud": AUDIENCE, "exp": moment + 600, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        signing = key or self.key
        return jwt.encode({"alg": "RS256", "kid": signing.kid}, claims, signing)

    def said(self, path: str) -> dict[str, Any]:
        """Return what it answers."""
        if path == "/keys":
            self.asked += 1
            return {"keys": [self.key.as_dict(private=False)]}
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
        } | self.more


@contextmanager
def key_holder() -> Iterator[KeyHolder]:
    """Run an issuer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(made.said(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = KeyHolder(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


@dataclass
class Service:
    """A server that accepts tokens of two issuers, with users who have signed in before."""

    server: Server
    holder: KeyHolder
    provider: IdentityProvider
    addresses: Iterator[int] = field(default_factory=lambda: iter(range(1, 255 << 8)))

    def ask(self, token: str) -> httpx.Response:
        """Ask with a token, from an address of its own, as wrong ones are counted so."""
        number = next(self.addresses)
        transport = httpx.HTTPTransport(local_address=f"127.2.{number >> 8}.{number & 255}")
        with httpx.Client(transport=transport, timeout=60) as client:
            return client.get(f"{self.server.url}{PATH}", headers=bearer(token))

    def refused(self, token: str) -> str:
        """Return why a token is not taken."""
        answer = self.ask(token)
        assert answer.status_code == 401, answer.text
        return str(answer.json()["message"])


def signed_in(server: Server, name: str, issuer: str, subject: str) -> None:
    """Add an account of whom an issuer calls by a subject."""
    email = f"{name}@example.org"
    command(server, "add", email)
    ((number,),) = server.rows("select id from users where email = ?", email)
    with sqlite3.connect(server.data_dir / "servicex.sqlite") as opened:
        row = "insert into identities (user_id, issuer, subject, created_at) values (?, ?, ?, ?)"
        opened.execute(row, (number, issuer, subject, "2026-01-01"))


def configured(name: str, url: str, **more: Any) -> dict[str, Any]:
    """Return what an operator says of an issuer."""
    metadata = f"{url}/.well-known/openid-configuration"
    about = {"name": name, "metadata_url": metadata, "client_id": CLIENT, "audience": [AUDIENCE]}
    return about | more


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a server with two issuers."""
    provider = IdentityProvider(audience=AUDIENCE, users={"jo": {"email": "jo@example.org"}})
    provider.start()
    with key_holder() as holder:
        issuers = [
            configured("holder", holder.url),
            configured("provider", provider.issuer, client_secret=provider.client_secret),
        ]
        environment = {
            "SERVICEX_SERVER_SIGN_IN": "true",
            "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
            "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps(issuers),
        }
        folder = tmp_path_factory.mktemp("issuers") / "data"
        server = Server(folder, ["--workers", "1"], environment).start()
        try:
            signed_in(server, "jo", holder.url, "jo")
            signed_in(server, "joan", provider.issuer, "jo")
            yield Service(server, holder, provider)
        finally:
            server.stop()
            provider.stop()


def later(seconds: int) -> int:
    """Return a moment."""
    return int(time.time()) + seconds


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"aud": ["https://other.test", AUDIENCE]},
        {"aud": [5, None, AUDIENCE]},
        {"exp": time.time() + 1e9, "nbf": time.time() - 0.5},
        {"nonce": "of an issuer that has it in all of its tokens"},
    ],
)
def test_valid_issuer_token_is_accepted(service: Service, claims: dict[str, Any]) -> None:
    """It may have several audiences, and times with fractions of a second."""
    assert service.ask(service.holder.token(**claims)).status_code == 200


def test_clocks_may_differ_by_a_minute(service: Service) -> None:
    """The server rejects a token if they differ by more."""
    assert service.ask(service.holder.token(exp=later(-50), nbf=later(50))).status_code == 200
    assert "has expired" in service.refused(service.holder.token(exp=later(-61)))
    assert "not valid yet (nbf)" in service.refused(service.holder.token(nbf=later(70)))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": None}, "has no expiry time (exp)"),
        ({"exp": "2099-01-01"}, "has no expiry time (exp)"),
        ({"exp": True}, "has no expiry time (exp)"),
        ({"exp": float("inf")}, "has no expiry time (exp)"),
        ({"exp": float("nan")}, "has no expiry time (exp)"),
        ({"nbf": "now"}, "not valid yet (nbf)"),
        ({"aud": None}, "for another service (aud)"),
        ({"aud": "https://other.test"}, "for another service (aud)"),
        ({"aud": AUDIENCE + "/"}, "for another service (aud)"),
        ({"aud": 5}, "for another service (aud)"),
        ({"aud": [{}, []]}, "for another service (aud)"),
        ({"aud": CLIENT}, "for another service (aud)"),
        ({"sub": None}, "or no subject (sub)"),
        ({"sub": 5}, "or no subject (sub)"),
        ({"sub": "somebody else"}, "its user has no account on this service"),
        ({"sub": "x" * 256}, "does not say who you are"),
    ],
)
def test_signed_token_with_wrong_claims_is_rejected(
    service: Service, claims: dict[str, Any], words: str
) -> None:
    """The server answers 401 with the fault."""
    assert words in service.refused(service.holder.token(**claims))


def encoded(value: Any) -> str:
    """Return a part of a token."""
    text = value if isinstance(value, str) else json.dumps(value)
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def by_secret(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """Return a token with an HMAC, as no library makes it with a public key."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    mark = hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{urlsafe_b64encode(mark).rstrip(b'=').decode()}"


def test_token_without_the_signature_of_its_issuer_is_rejected(service: Service) -> None:
    """It is unsigned, has the public key as an HMAC secret, or is signed by another key."""
    holder = service.holder
    head, said, signature = holder.token().split(".")
    public = holder.key.as_pem(private=False)
    claims = json.loads(json.dumps({"iss": holder.url, "sub": "jo", "aud": AUDIENCE}))
    claims["exp"] = later(600)
    embedded = encoded({"alg": "RS256", "kid": "one", "jwk": holder.key.as_dict(private=False)})
    wrong = [
        f"{encoded({'alg': 'none'})}.{said}.",
        f"{encoded({'alg': 'none', 'kid': 'one'})}.{said}.{signature}",
        by_secret({"alg": "HS256", "kid": "one"}, claims, public),
        by_secret({"alg": "HS256"}, claims, public),
        holder.token(key=new_key()),
        holder.token(key=new_key("two")),
        f"{head}.{encoded(claims | {'sub': 'boss'})}.{signature}",
        f"{encoded({'alg': 'RS256', 'kid': ['one']})}.{said}.{signature}",
        f"{encoded({'alg': 'RS256', 'kid': {}})}.{said}.{signature}",
        f"{encoded({'alg': ['RS256'], 'kid': 'one'})}.{said}.{signature}",
        f"{encoded({'alg': 'RS256', 'kid': 'one', 'crit': ['x']})}.{said}.{signature}",
        f"{embedded}.{said}.{signature}",
        f"{encoded('[' * 20_000)}.{said}.{signature}",
        f"{head}.{said}",
        f"{head}.{said}.",
    ]
    for token in wrong:
        assert "holder did not sign the token" in service.refused(token)


def test_token_of_an_unknown_issuer_is_rejected(service: Service) -> None:
    """The token may be correct, but its issuer is not in the settings; or it is malformed."""
    with key_holder() as third:
        assert "this service did not issue the access token" in service.refused(third.token())
        assert third.asked == 0
        assert "did not sign" in service.refused(third.token(iss=service.holder.url))
    for text in (f"{encoded('[' * 20_000)}.x.y", f"x.{encoded('[' * 20_000)}.y", "..", "a.b.c"):
        assert "this service did not issue the access token" in service.refused(text)
    cookie = {"Cookie": f"servicex-newcomer={encoded('[' * 2_000)}...."}
    assert service.server.get("/sign-up", headers=cookie).status_code == 303


def test_id_token_is_not_accepted_as_an_access_token(service: Service, tmp_path: Path) -> None:
    """It is for sign-in to this service only. Settings that would accept it stop the start."""
    url, verifier = service.provider.authorization("http://127.0.0.1:9/nobody-is-here")
    with httpx.Client() as client:
        back = service.provider.sign_in(client, url, "jo")
    given = service.provider.tokens(back, verifier)
    assert "for another service (aud)" in service.refused(given["id_token"])
    opaque = service.refused(given["access_token"])
    assert "this service did not issue the access token" in opaque
    issuers = json.dumps([configured("provider", service.provider.issuer, audience=[CLIENT])])
    options = {"SERVICEX_SERVER_SIGN_IN": "true", "SERVICEX_SERVER_ACCOUNTS__ISSUERS": issuers}
    assert "tokens for client_id are ID tokens" in refused("--data-dir", str(tmp_path), **options)


def test_new_keys_of_an_issuer_are_known_within_seconds(service: Service) -> None:
    """The service does not restart, and rejects tokens that the old keys signed."""
    old = service.provider.access_token("jo")
    assert service.ask(old).status_code == 200
    service.provider.stop()
    service.provider.start()
    new = service.provider.access_token("jo")
    until(lambda: service.ask(new).status_code == 200, "the new key is known", seconds=15)
    assert "provider did not sign the token" in service.refused(old)


def test_unknown_keys_cause_one_request_to_the_issuer(service: Service) -> None:
    """Nobody can make the service send an issuer as many requests as they want."""
    service.ask(service.holder.token())
    before = service.holder.asked
    strange = new_key("strange")
    for _ in range(20):
        assert "did not sign" in service.refused(service.holder.token(key=strange))
    assert service.holder.asked <= before + 1


def test_known_keys_stay_valid_while_their_issuer_is_down(
    service: Service, new_server: Callable[..., Server]
) -> None:
    """If a token needs an answer of the issuer, the service answers 503 with `Retry-After`."""
    good = service.provider.access_token("jo")
    until(lambda: service.ask(good).status_code == 200, "the key is known", seconds=15)
    _, said, signature = good.split(".")
    strange = f"{encoded({'alg': 'RS256', 'kid': 'strange'})}.{said}.{signature}"
    issuers = [configured("provider", service.provider.issuer)]
    fresh = new_server(
        *("--workers", "1"),
        SERVICEX_SERVER_SIGN_IN="true",
        SERVICEX_SERVER_SCALING__LEAST_WORKERS="0",
        SERVICEX_SERVER_ACCOUNTS__ISSUERS=json.dumps(issuers),
    )
    service.provider.stop()
    try:
        assert service.ask(good).status_code == 200
        until(lambda: service.ask(strange).status_code == 503, "it is asked anew", seconds=15)
        away = service.ask(strange)
        assert away.headers["Retry-After"] == "60"
        assert "provider does not answer as it should" in away.json()["message"]
        assert service.ask(good).status_code == 200
        assert service.ask(service.holder.token()).status_code == 200
        # a service that has never asked knows no key
        answer = fresh.get(PATH, headers=bearer(good))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    finally:
        service.provider.start()
    until(lambda: fresh.get(PATH, headers=bearer(good)).status_code == 401, "it is back")
    new = service.provider.access_token("jo")
    until(lambda: service.ask(new).status_code == 200, "its new key is known", seconds=15)


def test_log_has_no_traceback(service: Service) -> None:
    """No token in this file has caused an unexpected error."""
    assert "Traceback" not in service.server.output
