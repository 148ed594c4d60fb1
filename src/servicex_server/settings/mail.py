"""Settings of mail: the URL of the server, and the address that mails are from."""

from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import unquote, urlsplit

NO_ADDRESS = (MessageError, ValueError, IndexError)
"""What `Address` raises if it is given none."""


_SHAPE = "smtp://host:25 with user:password@ before the host, or smtps:// for TLS from the start"


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mails are handed in: with a password only if nobody else can read it."""

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)


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
    except (*NO_ADDRESS, AttributeError):
        found = None
    if found is None or not found.domain:
        raise ValueError("needed is an address: servicex@example.org, or Name <servicex@…>")
    return text
