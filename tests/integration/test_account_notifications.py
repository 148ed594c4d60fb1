"""Notifications of sign-ups and approvals, sent to real mail servers and webhooks."""

import os
import socket
import ssl
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.model import Role, User, UserState, now
from servicex_server.notifications import accounts
from servicex_server.notifications.accounts import AccountNotifier
from servicex_server.settings.groups import AccountSettings, MailSettings
from servicex_server.settings.service import Settings
from tests.integration.servers import certificate, free_port, webhook
from tests.mail_server import PASSWORD, known, post
from tests.support import refused

pytestmark = pytest.mark.anyio

BOSSES = ("boss@cern.ch", "chief@cern.ch")


def user(**changes: Any) -> User:
    """Return a user whose account is pending."""
    about: dict[str, Any] = {
        "id": 1,
        "email": "jane@cern.ch",
        "name": "Jané Müller-Žižek 王",
        "institution": "CERN",
        "experiment": "ATLAS",
        "reason": "to see the Z",
        "role": Role.USER,
        "state": UserState.PENDING,
        "created_at": now(),
    }
    return User(**about | changes)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Give a certificate of this machine that this process trusts."""
    public, private = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "WAITS", (0.3, 0.6))


def settings(mail: str = "", hook: str = "", **changes: Any) -> Settings:
    """Return settings with a mail server, a webhook, or both."""
    return Settings(
        public_url="https://sx.example.org/",
        mail=MailSettings(
            url=SecretStr(mail) if mail else None, sender="ServiceX <servicex@example.org>"
        ),
        accounts=AccountSettings(webhook=SecretStr(hook) if hook else None),
        **changes,
    )


async def told(chosen: Settings, who: User, *to: str) -> None:
    """Notify administrators of a sign-up, and wait until the notification ends."""
    made = AccountNotifier(chosen)
    await made.signed_up(who, to or BOSSES)
    await made.close()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings in the log about failed notifications."""
    said = [one for one in caplog.records if one.name == accounts.__name__]
    return [one.getMessage() for one in said if one.levelname == "WARNING"]


async def test_administrators_get_a_mail_about_a_sign_up() -> None:
    """The mail has the Unicode name unchanged, and the link for the approval."""
    with post() as server:
        await told(settings(f"smtp://127.0.0.1:{server.port}"), user())
    (mail,) = server.mails
    assert server.to == [list(BOSSES)]
    assert mail["To"] == ", ".join(BOSSES)
    assert mail["From"] == "ServiceX <servicex@example.org>"
    assert mail["Subject"] == "Jané Müller-Žižek 王 has signed up"
    assert mail["Date"].datetime is not None
    assert mail["Message-ID"].endswith("@example.org>")
    for word in ("王", "jane@cern.ch", "CERN", "ATLAS", "to see the Z"):
        assert word in server.said()
    assert "https://sx.example.org/users\n" in server.said()
    assert mail.defects == []


async def test_approved_user_gets_a_mail() -> None:
    """The mail has the address of the service."""
    with post() as server:
        made = AccountNotifier(settings(f"smtp://127.0.0.1:{server.port}"))
        await made.approved(user())
        await made.close()
    assert server.to == [["jane@cern.ch"]]
    assert server.mails[0]["Subject"] == "Your account is approved"
    assert "https://sx.example.org\n" in server.said()


async def test_text_of_a_user_cannot_forge_a_header_or_a_line() -> None:
    """Newlines of any kind and characters that cannot be encoded do not make the mail fail."""
    name = "Jane\r\nBcc: all@cern.ch\u2028\x00\ud800\u202eX"
    with post() as server:
        reason = "please\n\nApprove or delete the account: http://evil.example"
        await told(settings(f"smtp://127.0.0.1:{server.port}"), user(name=name, reason=reason))
    (mail,) = server.mails
    assert mail["Subject"] == "Jane Bcc: all@cern.ch X has signed up"
    assert "Bcc" not in mail
    assert server.to == [list(BOSSES)]
    ours = [line for line in server.said().splitlines() if line.startswith("Approve or")]
    assert ours == ["Approve or delete the account: https://sx.example.org/users"]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_password_is_sent_by_tls(tls: ssl.SSLContext, scheme: str) -> None:
    """The service uses STARTTLS, or TLS from the start. The URL percent-encodes the password."""
    options: dict[str, Any] = {"tls_context": tls, "auth_required": True}
    if scheme == "smtps":
        # with TLS from the start the server does not know that there is any
        options = {"ssl_context": tls, "auth_require_tls": False}
    with post(authenticator=known, **options) as server:
        await told(settings(f"{scheme}://sx:p%40ss%2Fword@127.0.0.1:{server.port}"), user())
    assert server.signed_in == ["sx"]
    assert server.secured == [scheme == "smtp"]


async def test_mail_without_a_password_uses_tls_if_the_server_offers_it(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service accepts any certificate: an attacker who forges it could also hide STARTTLS."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with post(tls_context=tls) as server:
        await told(settings(f"smtp://127.0.0.1:{server.port}"), user())
    assert server.secured == [True]


async def test_mail_with_a_password_needs_tls_and_a_trusted_certificate(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rejected password also makes the mail fail. The log does not have the password."""
    with post(authenticator=known, auth_require_tls=False) as open_server:
        await told(settings(f"smtp://sx:p%40ss%2Fword@127.0.0.1:{open_server.port}"), user())
    with post(authenticator=known, auth_required=True, tls_context=tls) as server:
        await told(settings(f"smtp://sx:secret@127.0.0.1:{server.port}"), user())
    monkeypatch.delenv("SSL_CERT_FILE")
    with post(authenticator=known, auth_require_tls=False, ssl_context=tls) as stranger:
        await told(settings(f"smtps://sx:p%40ss%2Fword@127.0.0.1:{stranger.port}"), user())
    assert open_server.mails == server.mails == stranger.mails == []
    said = complaints(caplog)
    assert len(said) == 3
    assert "does not offer STARTTLS, so the password is not sent" in said[0]
    assert "it answers 535" in said[1]
    assert "certificate verify failed" in said[2]
    for secret in ("p%40ss", PASSWORD, "secret"):
        assert secret not in "".join(said)


async def test_mail_is_sent_again_when_the_server_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sign-up itself does not wait for the mail."""
    caplog.set_level("INFO")
    monkeypatch.setattr(accounts, "WAITS", (1.0, 5.0))
    port = free_port()
    made = AccountNotifier(settings(f"smtp://127.0.0.1:{port}"))
    began = time.monotonic()
    await made.signed_up(user(), BOSSES)
    assert time.monotonic() - began < 0.9
    with anyio.fail_after(30):
        while "is tried again in 1 s: the mail server" not in caplog.text:
            await anyio.sleep(0.01)
    with post(port) as server:
        await made.close()
    assert len(server.mails) == 1


async def test_failed_notification_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line has the reason and no secret, after three tries by mail or by webhook."""
    with post() as server, webhook(500, 403, 500) as (url, sent):
        server.refuses = "550 no such user"
        await told(settings(f"smtp://127.0.0.1:{server.port}", url), user())
    assert server.mails == []
    assert len(sent) == 3
    by_mail, by_webhook = sorted(complaints(caplog))
    assert by_mail.startswith("could not notify by mail that jane@cern.ch has signed up: ")
    assert by_mail.endswith("the mail server 127.0.0.1: it refuses the recipients, with 550")
    assert by_webhook.endswith("has signed up: the webhook answers with status 500")
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("servicex_server")]
    assert not any("secret" in line for line in ours)


async def test_notification_without_a_recipient_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The service sends no mail without administrators, or to invalid addresses."""
    with post() as server:
        made = AccountNotifier(settings(f"smtp://127.0.0.1:{server.port}"))
        await made.signed_up(user(), [])
        await made.signed_up(user(), ["boss@cern.ch,all@cern.ch"])
        await made.close()
    assert server.mails == []
    assert "there is no administrator" in caplog.text
    assert "no mail can be sent to 'boss@cern.ch,all@cern.ch'" in caplog.text


async def test_webhook_gets_a_text_for_a_chat() -> None:
    """The service repeats a failed call. A user's name cannot be a link or a mention of all."""
    name = "<!channel> `@all` [Approve](http://evil.example)"
    with webhook(500, 200) as (url, sent):
        await told(settings(hook=url), user(name=name))
    assert sent[0] == sent[1]
    assert sent[1]["event"] == "signed_up"
    assert sent[1]["user"] == {
        "email": "jane@cern.ch",
        "name": name,
        "institution": "CERN",
        "experiment": "ATLAS",
        "reason": "to see the Z",
    }
    text = sent[1]["text"]
    assert "`&lt;!channel&gt; '@all' [Approve](http://evil.example)`" in text
    assert text.endswith("https://sx.example.org/users")


async def test_shutdown_does_not_wait_for_a_silent_mail_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service gives up the notification, and logs this."""
    monkeypatch.setattr(accounts, "CLOSE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        await told(settings(f"smtp://127.0.0.1:{silent.getsockname()[1]}"), user())
        assert 0.5 <= time.monotonic() - began < 5
    assert (
        "could not notify by mail that jane@cern.ch has signed up: the service ends" in caplog.text
    )


async def test_service_without_mail_and_webhook_notifies_nobody() -> None:
    """It starts no task for the notification."""
    made = AccountNotifier(Settings())
    await made.signed_up(user(), BOSSES)
    await made.approved(user())
    assert made._under_way == set()


async def test_command_line_notifies_an_approved_pending_user(tmp_path: Path) -> None:
    """A suspended user who is approved again gets no mail."""
    path = tmp_path / "servicex.sqlite"
    with closing(Database(f"sqlite:///{path}")) as database:
        database.migrate()
        for state in (UserState.PENDING, UserState.SUSPENDED):
            about = {"name": "", "institution": "", "experiment": "", "reason": ""}
            about |= {"role": Role.USER, "state": state}
            await database.write(rows.add, f"{state.value}@cern.ch", about)
    with post() as server:
        variables = {
            "SERVICEX_SERVER_MAIL__URL": f"smtp://127.0.0.1:{server.port}",
            "SERVICEX_SERVER_MAIL__SENDER": "servicex@example.org",
        }
        for state in (UserState.PENDING, UserState.SUSPENDED):
            program = str(Path(sys.executable).with_name("servicex-server"))
            command = [program, "user", "approve", f"{state.value}@cern.ch"]
            command += ["--data-dir", str(tmp_path)]
            ran = await anyio.run_process(command, env=os.environ | variables, check=False)
            assert (ran.returncode, ran.stderr) == (0, b"")
    assert server.to == [["pending@cern.ch"]]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "MAIL__URL",
            "mail.example.org",
            "needed is smtp://host:25 with user:password@",
        ),
        ("MAIL__URL", "smtp://mail.example.org:seven", "needed is smtp://"),
        ("MAIL__URL", "smtp://mail.example.org/path", "needed is smtp://"),
        ("MAIL__URL", "smtp://jane@mail.example.org", "a user needs a password"),
        ("MAIL__URL", "smtp://jane:s%C3%A9cret@mail.example.org", "have to be ASCII"),
        ("MAIL__SENDER", "ServiceX", "needed is an address"),
        ("MAIL__SENDER", "a@example.org, b@example.org", "needed is an address"),
        ("MAIL__SENDER", "a@example.org\nBcc: b@example.org", "needed is an address"),
    ],
)
def test_wrong_mail_setting_is_rejected_at_the_start(name: str, value: str, words: str) -> None:
    """The message has the right form, and does not quote a possible secret."""
    given = {
        "SERVICEX_SERVER_MAIL__SENDER": "servicex@example.org",
        f"SERVICEX_SERVER_{name}": value,
    }
    line = refused(**given)
    setting = name.lower().replace("__", ".")
    assert line.startswith(f"servicex-server: setting {setting} (or SERVICEX_SERVER_{name})")
    assert words in line
    assert "cret" not in line
    assert name == "MAIL__SENDER" or "mail.example.org" not in line


def test_a_mail_server_needs_a_sender() -> None:
    """The service reports this at the start, not when it sends the first mail."""
    line = refused(SERVICEX_SERVER_MAIL__URL="smtp://127.0.0.1")
    assert "setting mail.sender (or SERVICEX_SERVER_MAIL__SENDER): mail.url needs it" in line
