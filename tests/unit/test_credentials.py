"""Who is shown which credential, where it is looked for, and when it is good no more."""

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
    """Return what looks like a token to who does not check its signature."""
    parts = [{"alg": "none"}, {"exp": int(time.time() + seconds), **claims}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*coded, b"signature"]).decode()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have nothing to be found on this machine."""
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
def test_the_first_that_is_for_a_host_is_taken(url: str, chosen: int | None) -> None:
    """A credential is shown to nobody else."""
    ours = (Credential(("*.cern.ch",)), Credential(("a.org", "*.DESY.de")), Credential(("*",)))
    assert chosen_for(url, ours) == (None if chosen is None else ours[chosen])
    assert chosen_for(url, ()) is None


def test_nothing_is_shown_that_was_not_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Be it there or not: a host that is asked for a file could keep it."""
    monkeypatch.setenv("BEARER_TOKEN", token())
    assert shown_to("https://anybody.org/x", ()) == Shown()
    assert shown_to("https://anybody.org/x", (Credential(("other.org",)),)) == Shown()
    assert "signature" not in repr(shown_to("https://a.org/x", (Credential(("*",)),)))


def test_tokens_are_found_in_the_order_of_the_wlcg(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each place is looked at only if there is none in those before."""
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


def test_a_token_that_is_renewed_is_read_anew(tmp_path: Path) -> None:
    """And one that is good no more says since when, before anybody is asked."""
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
def test_what_is_no_token_is_refused(tmp_path: Path, content: str) -> None:
    """A line of a header is made of it."""
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ExpiredError, match=f"{path}"):
        read_token(path)


@pytest.mark.parametrize(
    "text", ["opaque", "a.b.c", "a.e30.c", "a.eyJleHAiOiJ4In0.c", "..", "a.W10.c"]
)
def test_a_token_that_does_not_tell_its_end_is_good(tmp_path: Path, text: str) -> None:
    """Who issued it knows."""
    path = tmp_path / "token"
    path.write_text(text)
    assert read_token(path) == text
    assert end_of_token(text) is None


def test_of_a_proxy_and_a_token_one_has_to_be_good(tmp_path: Path) -> None:
    """A host takes either; what is good no more is not shown."""
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


def test_it_is_known_before_who_could_not_be_read_from(tmp_path: Path) -> None:
    """As far as the files are here; those that only workers have are for them to look at."""
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


def test_a_credential_is_for_somebody_and_is_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one name"):
        Credential(())
    with pytest.raises(ValueError, match="a path from /"):
        Credential(("*",), token=Path("token"))
    assert "find" in credentials.what_was_shown("root://a//x", (Credential(("*",)),))
    assert "no entry" in credentials.what_was_shown("root://a//x", ())
