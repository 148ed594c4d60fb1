"""``doctor`` checks sign-in: whether the OIDC providers work, and who approves accounts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servicex_server.cli import doctor as doctor_checks
from tests.command_line import invoke
from tests.e2e.test_issuer_tokens import key_holder
from tests.identity_provider import IdentityProvider
from tests.support import doctor


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """Give a real provider."""
    made = IdentityProvider().start()
    yield made
    made.stop()


def issuer(name: str, url: str, **more: Any) -> dict[str, Any]:
    """Return what an operator says of an issuer."""
    metadata = f"{url}/.well-known/openid-configuration"
    return {
        "name": name,
        "metadata_url": metadata,
        "client_id": "x",
        "client_secret": "hush",
        **more,
    }


Found = Callable[..., str]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Give a function that returns what is said of sign-in, without looking at anything else."""
    monkeypatch.setattr(doctor_checks, "_CHECKS", {"Sign-in": doctor_checks._CHECKS["Sign-in"]})

    def ask(code: int, *issuers: dict[str, Any], **environment: str) -> str:
        options = ("doctor", "--data-dir", str(tmp_path / "data"))
        ended, said = invoke(*options, environment=sign_in(*issuers) | environment)
        assert ended == code, said
        assert "hush" not in said
        return said.partition("\nSign-in\n")[2].partition("\n\n")[0]

    return ask


def sign_in(*issuers: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a service with these issuers."""
    return {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps(issuers),
    }


def test_working_provider_is_reported_as_ok(provider: IdentityProvider, tmp_path: Path) -> None:
    """``doctor`` runs in a process of its own, and shows the redirect URI to register."""
    ran = doctor(
        *("--data-dir", str(tmp_path / "data")),
        **sign_in(issuer("lab", provider.issuer, title="The Lab")),
        SERVICEX_SERVER_PUBLIC_URL="https://servicex.example.org/",
        SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS='["Jane@Example.org"]',
        SERVICEX_SERVER_ACCOUNTS__APPROVE_DOMAINS='["cern.ch"]',
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "hush" not in ran.stdout + ran.stderr
    said = ran.stdout.partition("\nSign-in\n")[2].partition("\n\n")[0]
    assert f"ok      The Lab answers at {provider.metadata}, with PKCE" in said
    assert "redirect URI: https://servicex.example.org/sign-in/lab/callback" in said
    assert "administrators: jane@example.org" in said
    assert "accounts with e-mails of cern.ch do not need approval" in said
    assert "missing" not in said


def test_fault_of_each_provider_is_reported(found: Found) -> None:
    """One is down, one has another name, two lack PKCE or keys, and one does not mention PKCE."""
    with key_holder() as open_, key_holder() as other, key_holder() as plain, key_holder() as bare:
        other.more = {"issuer": "https://elsewhere.example.org"}
        plain.more = {"code_challenge_methods_supported": ["plain"]}
        bare.more = {"jwks_uri": None}
        issuers = [
            issuer("away", "http://127.0.0.1:9"),
            issuer("open", open_.url),
            issuer("other", other.url),
            issuer("plain", plain.url),
            issuer("bare", bare.url),
        ]
        said = found(1, *issuers)
    assert "wrong   away does not answer as it should; try again in a minute: " in said
    assert "ok      open answers" in said
    assert "does not say whether it supports PKCE" in said
    assert "wrong   the metadata of other are those of another issuer" in said
    assert "wrong   plain cannot be used: it does not support PKCE with S256" in said
    assert "wrong   bare cannot be used: its metadata have no jwks_uri" in said
    assert "missing public_url" in said
    assert "https://<this service>/sign-in/open/callback" in said


def test_missing_administrator_is_reported(found: Found, tmp_path: Path) -> None:
    """A name in the settings does not count without a provider. An administrator account counts."""
    said = found(0, SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS='["jane@example.org"]')
    assert "missing there is no administrator" in said
    assert "servicex-server user add you@example.org --role administrator" in said
    add = ("user", "add", "jo@example.org", "--role", "administrator")
    assert invoke(*add, "--data-dir", str(tmp_path / "data"))[0] == 0
    assert "administrators: jo@example.org" in found(0)


def test_providers_without_sign_in_are_reported_as_unused(found: Found) -> None:
    """Such settings are probably a mistake."""
    said = found(0, issuer("x", "http://127.0.0.1:9"), SERVICEX_SERVER_SIGN_IN="false")
    assert "sign-in is off" in said
    assert "the issuers are not used" in said
