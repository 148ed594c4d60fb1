"""Composing e-mails, and sending them by SMTP.

Texts that users have written are untrusted. Each is put on one line, so that it can neither add a
header nor imitate a line of the service.
"""

import smtplib
import ssl
from collections.abc import Sequence
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid

from servicex_server.errors import UploadError
from servicex_server.model import now
from servicex_server.settings.mail import NO_ADDRESS, MailServer

SECONDS = 15.0
"""Seconds in which the mail server has to answer each command."""

MOST = 2000
"""Most characters of a user's text in an e-mail; the rest is cut."""


def send(mail_server: MailServer, message: EmailMessage, to: Sequence[str]) -> None:
    """Hand an e-mail to the mail server; blocks.

    Raises
    ------
    UploadError
        The server did not accept it for any recipient. The message says why, without the password.
    """
    try:
        with _connected(mail_server) as server:
            _secure(mail_server, server)
            server.send_message(message, to_addrs=to)
    except OSError as error:  # the errors of smtplib are OSErrors
        raise UploadError(f"the mail server {mail_server.host}: {_why(error)}") from error


def _connected(mail_server: MailServer) -> smtplib.SMTP:
    if mail_server.tls:
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(
            mail_server.host, mail_server.port, timeout=SECONDS, context=context
        )
    return smtplib.SMTP(mail_server.host, mail_server.port, timeout=SECONDS)


def _secure(mail_server: MailServer, server: smtplib.SMTP) -> None:
    server.ehlo_or_helo_if_needed()
    if not mail_server.tls and server.has_extn("starttls"):
        context = ssl.create_default_context()
        if not mail_server.user:
            # an attacker who could forge the certificate could also hide that the server has TLS
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        server.starttls(context=context)
    elif mail_server.user and not mail_server.tls:
        raise UploadError(
            f"the mail server {mail_server.host} does not offer STARTTLS, so the password is not "
            "sent"
        )
    if mail_server.user:
        server.login(mail_server.user, mail_server.password)


def mail(sent_by: str, to: Sequence[str], subject: str, body: str) -> EmailMessage:
    """Return an e-mail with its headers.

    Raises
    ------
    UploadError
        An address is not valid.
    """
    message = EmailMessage(policy=SMTP)
    message["From"] = sent_by
    try:
        message["To"] = [Address(addr_spec=one) for one in to]
    except NO_ADDRESS as error:
        raise UploadError(f"no mail can be sent to {', '.join(map(repr, to))}") from error
    message["Subject"] = one_line(subject)
    message["Date"] = format_datetime(now())
    message["Message-ID"] = make_msgid(domain=message["From"].addresses[0].domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: suppresses automatic replies
    message.set_content(body, cte="quoted-printable")
    return message


def one_line(text: str) -> str:
    r"""Return a text on one line, without characters that cannot be printed or encoded.

    Examples
    --------
    >>> one_line("Jane\r\nBcc: all@example.org")
    'Jane Bcc: all@example.org'
    """
    seen = "".join(character if character.isprintable() else " " for character in text[:MOST])
    return " ".join(seen.split())


def _why(error: OSError) -> str:
    """Describe an error without any text of the server, which could contain the password."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({code for code, _ in error.recipients.values()})
        return f"it refuses the recipients, with {', '.join(map(str, codes))}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it answers {error.smtp_code} ({type(error).__name__})"
    return error.strerror or type(error).__name__
