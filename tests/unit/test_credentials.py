"""Credentials: the choice for a host, the places to look, and their expiry."""

import base64
import json
import os
import time
from pathlib import Path

import pytest

from servicex_server import credentials
from servicex_server.credentials import (
    Shown,
    chosen_for,
    end_of_token,
    find_token,
    read_token,
    refused,
    shown_to,
)
from servicex_server.errors import ExpiredError
from servicex_server.model import Credential
from tests.integration.servers import certificate


def token(seconds: float = 3600, **claims: object) -> str:
    """Return a text in the form of a token, with a signature that is not valid."""
    parts = [{"alg": "none"}, {"exp": int(time.time() + seconds), **claims}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*coded, b"signature"]).decode()


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide all credentials of this machine."""
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "none"))
    monkeypatch.setattr(os, "geteuid", lambda: 987654321)
    monkeypatch.setattr(credentials, "_taken", {})


@pytest.mark.parametrize(
    ("url", "chosen"),
    [
        ("root://eos.cern.ch:1094//x.root", 0),
        ("https://EOS.cern.ch/x.root", 0),
        ("root://cern.ch//x.root", 2),
        ("https://dcache.desy.de:2880/x", 1),
        ("root://cache.edu//root://eos.cern.ch//x", 2),
        ("/data/x.root", None),
        ("file:///data/x.root", None),
        ("root://[::1//x", None),
    ],
)
def test_first_credential_for_a_host_is_chosen(url: str, chosen: int | None) -> None:
    """No other host gets the credential."""
    ours = (Credential(("*.cern.ch",)), Credential(("a.org", "*.DESY.de")), Credential(("*",)))
    assert chosen_for(url, ours) == (None if chosen is None else ours[chosen])
    assert chosen_for(url, ()) is None


def test_host_without_a_configured_credential_gets_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service does not send a token that it could find, because the host could keep it."""
    monkeypatch.setenv("BEARER_TOKEN", token())
    assert shown_to("https://anybody.org/x", ()) == Shown()
    assert shown_to("https://anybody.org/x", (Credential(("other.org",)),)) == Shown()
    assert "signature" not in repr(shown_to("https://a.org/x", (Credential(("*",)),)))


def test_token_discovery_follows_the_order_of_the_wlcg(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service looks in a place only if the places before it have no token."""
    ours = (Credential(("*",)),)
    assert shown_to("https://a.org/x", ours) == Shown()
    places = [tmp_path / "run" / "bt_u987654321", tmp_path / "named"]
    found = {name: token(name=name) for name in ("folder", "file", "text")}
    places[0].parent.mkdir()
    places[0].write_text(found["folder"] + "\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places[0].parent))
    assert find_token() == (found["folder"], places[0])
    places[1].write_text(found["file"])
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(places[1]))
    assert find_token() == (found["file"], places[1])
    monkeypatch.setenv("BEARER_TOKEN", found["text"])
    assert find_token() == (found["text"], None)
    assert shown_to("root://a.org//x", ours) == Shown(None, found["text"], None)


def test_renewed_token_is_read_again(tmp_path: Path) -> None:
    """The error for an expired token states its end, before the service asks any host."""
    path = tmp_path / "token"
    ours = (Credential(("*",), token=path),)
    with pytest.raises(ExpiredError, match="cannot be read: No such file"):
        shown_to("https://a.org/x", ours)
    path.write_text(token(-60))
    end = end_of_token(path.read_text())
    with pytest.raises(ExpiredError, match=f"the token {path} expired at {end:%Y-%m-%d %H:%M} UTC"):
        shown_to("https://a.org/x", ours)
    path.write_text(token())
    assert shown_to("https://a.org/x", ours).token == path.read_text()


@pytest.mark.parametrize("content", ["", "\n", "two words", "über", "a\0b"])
def test_text_that_is_not_a_token_is_refused(tmp_path: Path, content: str) -> None:
    """The token becomes a part of a header line."""
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ExpiredError, match=f"{path}"):
        read_token(path)


@pytest.mark.parametrize(
    "text", ["opaque", "a.b.c", "a.e30.c", "a.eyJleHAiOiJ4In0.c", "..", "a.W10.c"]
)
def test_token_without_a_readable_expiry_is_accepted(tmp_path: Path, text: str) -> None:
    """Only the issuer knows when it expires."""
    path = tmp_path / "token"
    path.write_text(text)
    assert read_token(path) == text
    assert end_of_token(text) is None


def test_valid_proxy_or_valid_token_is_enough(tmp_path: Path) -> None:
    """A host accepts either; the service does not send an expired one."""
    good, _ = certificate(tmp_path, stem="good")
    old, _ = certificate(tmp_path, days=-1, stem="old")
    fresh, stale = tmp_path / "fresh", tmp_path / "stale"
    fresh.write_text(token())
    stale.write_text(token(-1))

    def shown(proxy: Path, of: Path) -> Shown:
        return shown_to("root://a.org//x", (Credential(("*",), proxy=proxy, token=of),))

    assert shown(good, fresh) == Shown(good, fresh.read_text(), fresh)
    assert shown(good, stale) == Shown(good)
    assert shown(old, fresh) == Shown(None, fresh.read_text(), fresh)
    with pytest.raises(ExpiredError, match=f"the proxy {old} expired at"):
        shown(old, stale)


def test_expired_credentials_are_reported_before_reading(tmp_path: Path) -> None:
    """The service checks the files of this machine; workers check the files that only they have."""
    old, _ = certificate(tmp_path, days=-1, stem="old")
    ours = (Credential(("a.org",), proxy=old), Credential(("b.org",), proxy=tmp_path / "none"))
    a, b, c = "root://a.org//x", "root://b.org//x", "root://c.org//x"
    error = refused([a, a], ours)
    assert error is not None
    assert "expired at" in error.message
    assert refused([a, b], ours) is None
    assert refused([a, c], ours) is None
    assert refused(["/data/x"], ours) is None
    assert refused([], ours) is None


def test_credential_needs_a_host_and_an_absolute_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one name"):
        Credential(())
    with pytest.raises(ValueError, match="a path from /"):
        Credential(("*",), token=Path("token"))
    assert "find" in credentials.what_was_shown("root://a//x", (Credential(("*",)),))
    assert "no entry" in credentials.what_was_shown("root://a//x", ())
