"""The search of the logs finds every kind of secret, and fails the test that has logged it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.storage.bucket import bucket_keys
from tests.leaks import Secrets, listening
from tests.support import Server

SIGNED = "X-Amz-Signature=" + "0123456789abcdef" * 4


def answered(request: httpx.Request) -> httpx.Response:
    """Answer with a secret in each place where the service may send one."""
    del request
    body = {
        "access_token": "an-access-token-of-this-test",
        "deep": [{"minio-secret-key": "the-key-of-some-bucket"}],
        "device_code": "the-code-of-some-device",
        "uris": {"x": [f"http://h/x?{SIGNED}"]},
        "title": "nothing secret",
    }
    cookie = {"Set-Cookie": "servicex=the-cookie-of-a-browser; Path=/"}
    return httpx.Response(200, json=body, headers=cookie)


def seen(secrets: Secrets, *texts: str) -> bool:
    """Return whether each text is reported as a leak, and is not shown whole."""
    found = [secrets.leaks(f"fine\nit is {text} there\nfine too") for text in texts]
    hidden = all(
        text not in line for text, lines in zip(texts, found, strict=True) for line in lines
    )
    return hidden and all(len(lines) == 1 for lines in found)


ASKED = "http://h/?code=what-an-issuer-has-sent&page=one-of-the-pages"
SENT = {"Authorization": "Bearer what-a-program-has-sent"}


def ask() -> None:
    """Send a request and wait for the answer."""
    with httpx.Client(transport=httpx.MockTransport(answered)) as client:
        client.get(ASKED, headers=SENT)


async def ask_asynchronously() -> None:
    """Send a request as the published client does."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as client:
        await client.get(ASKED, headers=SENT)


@pytest.mark.parametrize("way", [ask, lambda: asyncio.run(ask_asynchronously())])
def test_secrets_in_requests_and_answers_are_known(way: Callable[[], None]) -> None:
    """They are in the answer, the cookie, the header and the query of any client."""
    secrets = Secrets()
    with listening(secrets):
        way()
    assert seen(secrets, "an-access-token-of-this-test", "the-key-of-some-bucket")
    assert seen(secrets, "the-code-of-some-device")
    assert seen(secrets, "the-cookie-of-a-browser", "what-a-program-has-sent")
    assert seen(secrets, "what-an-issuer-has-sent", SIGNED.partition("=")[2])
    assert secrets.leaks("nothing secret, one-of-the-pages, servicex, Bearer") == []


def test_secrets_in_settings_and_files_are_known(tmp_path: Path) -> None:
    """They come from variables, JSON, URLs and files, or the service has made them."""
    token = tmp_path / "token"
    token.write_text("of-the-service-at-a-site\n")
    config = tmp_path / "settings.yaml"
    config.write_text(
        "mail: {url: smtp://me:in-a-file@host}\naccounts: {issuers: [{client_secret: in-a-list}]}\n"
    )
    (tmp_path / "service.key").write_bytes(bytes(range(64)))
    (tmp_path / "objects" / "a-request").mkdir(parents=True)
    secrets = Secrets()
    environment = {
        "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps(
            [{"name": "lab-one", "client_secret": "in-json"}]
        ),
        "SERVICEX_SERVER_STORAGE__DATABASE_URL": "postgresql://me:p%40ssword@host/data",
        "SERVICEX_SERVER_FINDERS__RUCIO__PASSWORD": "of-a-finder",
        "SERVICEX_SERVER_ACCOUNTS__WEBHOOK": "https://chat.example.org/hooks/abc",
        "AWS_SECRET_ACCESS_KEY": "of-the-environment",
        "SERVICEX_SERVER_READING__CREDENTIALS": json.dumps([{"token": str(token)}]),
        "SERVICEX_SERVER_STORAGE__SERVICE_KEYS": json.dumps(["ab" * 32]),
        "SERVICEX_SERVER_STORAGE__OBJECTS_URL": "s3://b?region=us-east-1&secret_access_key=of-the-store-of-results",
        "PASSWORD_OF_ANOTHER": "not-ours",
    }
    secrets.settings(environment, ["--workers", "1", "--config", str(config)])
    secrets.folder(tmp_path)
    assert seen(secrets, "in-json", "p%40ssword", "p@ssword", "of-a-finder", "ab" * 32)
    assert seen(secrets, "of-the-store-of-results", "in-a-file", "in-a-list")
    assert seen(secrets, "of-the-service-at-a-site", "of-the-environment")
    assert seen(secrets, "https://chat.example.org/hooks/abc")
    assert seen(secrets, bucket_keys(bytes(range(32)), "a-request").secret_key)
    assert seen(secrets, bytes(range(32)).hex(), bytes(range(32, 64)).hex())
    assert secrets.leaks(f"lab-one, not-ours, us-east-1, host, data, {token}") == []


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("made ", "sxt_" + "x" * 43),
        ("Bearer ", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJqbyJ9.c2lnbmF0dXJl"),
        ("GET /a?X-Amz-Expires=5&X-Amz-Signature=", "0123456789abcdef" * 4),
        ("DEBUG authlib: Using code_verifier: '", "v" * 48),
        ("{'code_verifier': '", "v" * 48),
        ("Cookie: servicex=", "c" * 43),
    ],
)
def test_unknown_secret_is_recognized_by_its_form(before: str, secret: str) -> None:
    """A browser or another program may have got it."""
    (found,) = Secrets().leaks(f"fine\n{before}{secret}'")
    assert found.startswith(before[:10])
    assert secret[:20] not in found


@pytest.mark.parametrize("killed", [True, False])
def test_server_that_logs_a_secret_fails_its_test(tmp_path: Path, *, killed: bool) -> None:
    """The test fails when it stops the server, or at its end if the server has already ended."""
    server = Server(tmp_path / "data", environment={"SERVICEX_SERVER_X__TOKEN": "told-to-all"})
    code = "import time; print('it is told-to-all', flush=True); time.sleep(60)"
    with server.log.open("wb") as log:
        server.process = subprocess.Popen([sys.executable, "-c", code], stdout=log)
    Server.watched.append(server)
    assert server.says("(it is)") == "it is"
    if killed:
        server.process.kill()
        server.process.wait()
    end: Callable[[], Any] = partial(Server.hold_logs, ended=True) if killed else server.stop
    with pytest.raises(pytest.fail.Exception, match="secrets in the log of a server:\nit is told…"):
        end()
    assert server.process.poll() is not None
    Server.hold_logs(ended=True)  # it is said once
