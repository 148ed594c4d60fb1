"""Mails, and the server that takes them.

What users have written comes from outside: it is put on one line, so that it can end no header and
look like no line of ours.
"""

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from urllib.parse import unquote, urlsplit

from servicex_server.errors import UploadError
from servicex_server.model import now

SECONDS = 15.0
"""Seconds that the server has for each answer."""

MOST = 2000
"""Characters of what a user has written that are passed on."""

_NO_ADDRESS = (MessageError, ValueError, IndexError)
"""What `Address` raises if it is given none."""

_SHAPE = "smtp://[user:password@]host[:port], or smtps:// for TLS from the start"


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mails are handed in: with a password only if nobody else can read it."""

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)

    def send(self, message: EmailMessage, to: Sequence[str]) -> None:
        """Hand a mail in; blocks.

        Raises
        ------
        UploadError
            The server did not take it for anybody; says why, without the password.
        """
        try:
            with self._connected() as server:
                self._secure(server)
                server.send_message(message, to_addrs=to)
        except OSError as error:  # that of smtplib is one
            raise UploadError(f"the mail server {self.host}: {_why(error)}") from error

    def _connected(self) -> smtplib.SMTP:
        if self.tls:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self.host, self.port, timeout=SECONDS, context=context)
        return smtplib.SMTP(self.host, self.port, timeout=SECONDS)

    def _secure(self, server: smtplib.SMTP) -> None:
        server.ehlo_or_helo_if_needed()
        if not self.tls and server.has_extn("starttls"):
            context = ssl.create_default_context()
            if not self.user:
                # who could put a certificate there could as well have hidden that there is TLS
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            server.starttls(context=context)
        elif self.user and not self.tls:
            raise UploadError(
                f"the mail server {self.host} offers no STARTTLS, so the password is not sent"
            )
        if self.user:
            server.login(self.user, self.password)


def mail_server(url: str) -> MailServer:
    """Return the server of a URL.

    Raises
    ------
    ValueError
        It is none; says what would be right, without the URL, which may hold a password.

    Examples
    --------
    >>> mail_server("smtp://jane:p%40ss@mail.example.org")
    MailServer(host='mail.example.org', port=587, tls=False, user='jane')
    """
    try:
        place = urlsplit(url)
        host, port = place.hostname, place.port
    except ValueError:
        raise ValueError(f"needed is {_SHAPE}") from None
    if place.scheme not in ("smtp", "smtps") or not host or place.path.strip("/") or place.query:
        raise ValueError(f"needed is {_SHAPE}")
    if bool(place.username) != bool(place.password):
        raise ValueError(
            "a user needs a password, and a password a user: smtp://user:password@host"
        )
    user, password = unquote(place.username or ""), unquote(place.password or "")
    if not (user + password).isascii():
        raise ValueError("the user and the password have to be ASCII")
    tls = place.scheme == "smtps"
    usual = 465 if tls else 587 if user else 25
    return MailServer(host, port or usual, tls, user, password)


def sender(text: str) -> str:
    """Return who mails are from, if it is one who can be.

    Raises
    ------
    ValueError
        It is no address.

    Examples
    --------
    >>> sender("ServiceX <servicex@example.org>")
    'ServiceX <servicex@example.org>'
    """
    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = text
        (found,) = message["From"].addresses
        Address(addr_spec=found.addr_spec)
    except (*_NO_ADDRESS, AttributeError):
        found = None
    if found is None or not found.domain:
        raise ValueError("needed is an address: servicex@example.org, or Name <servicex@…>")
    return text


def mail(sent_by: str, to: Sequence[str], subject: str, body: str) -> EmailMessage:
    """Return a mail.

    Raises
    ------
    UploadError
        An address is none that a mail can be sent to.
    """
    message = EmailMessage(policy=SMTP)
    message["From"] = sent_by
    try:
        message["To"] = [Address(addr_spec=one) for one in to]
    except _NO_ADDRESS as error:
        raise UploadError(f"no mail can be sent to {', '.join(map(repr, to))}") from error
    message["Subject"] = one_line(subject)
    message["Date"] = format_datetime(now())
    message["Message-ID"] = make_msgid(domain=message["From"].addresses[0].domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: who is away does not answer
    message.set_content(body, cte="quoted-printable")
    return message


def one_line(text: str) -> str:
    r"""Return a text without what breaks lines, is not to be seen, or cannot be encoded.

    Examples
    --------
    >>> one_line("Jane\r\nBcc: all@example.org")
    'Jane Bcc: all@example.org'
    """
    seen = "".join(character if character.isprintable() else " " for character in text[:MOST])
    return " ".join(seen.split())


def _why(error: OSError) -> str:
    """Say what went wrong, in words of which none can be a password."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({code for code, _ in error.recipients.values()})
        return f"it refuses whom the mail is for, with {', '.join(map(str, codes))}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it answers {error.smtp_code} ({type(error).__name__})"
    return error.strerror or type(error).__name__
