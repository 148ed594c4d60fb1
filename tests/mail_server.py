"""A real mail server for tests, PyPI's ``aiosmtpd``, that keeps what was handed in."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.integration.servers import free_port

PASSWORD = "p@ss/word"


@dataclass
class Post:
    """A mail server, and what was handed in."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    to: list[list[str]] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    signed_in: list[Any] = field(default_factory=list)
    refuses: str = ""

    async def handle_RCPT(  # noqa: N802  # the library calls it so
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a mail for somebody, or for nobody."""
        if self.refuses:
            return self.refuses
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802  # as above
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Keep it."""
        assert isinstance(envelope.content, bytes)
        self.mails.append(
            email.message_from_bytes(envelope.content, EmailMessage, policy=email.policy.default)
        )
        self.to.append(envelope.rcpt_tos)
        self.secured.append(session.ssl is not None)
        self.signed_in.append(session.auth_data)
        return "250 OK"

    def said(self) -> str:
        """Return what the last mail says."""
        return str(self.mails[-1].get_content()).replace("\r\n", "\n")


def known(server: SMTP, session: Session, envelope: Envelope, how: str, who: Any) -> AuthResult:
    """Sign somebody in."""
    right = isinstance(who, LoginPassword) and who == LoginPassword(b"sx", PASSWORD.encode())
    return AuthResult(success=right, handled=False, auth_data="sx")


@contextmanager
def post(port: int = 0, **options: Any) -> Iterator[Post]:
    """Run a mail server."""
    made = Post(port or free_port())
    server = Controller(made, hostname="127.0.0.1", port=made.port, **options)
    server.start()
    try:
        yield made
    finally:
        server.stop()
