"""Escaping and redaction of foreign texts for logs, terminals and spreadsheets."""

import codecs
import re

codecs.lookup("unicode_escape")  # now, as its file may be unreadable later

REDACTED = "***"
"""The replacement of a secret."""

_PUBLIC_FIELDS = frozenset(
    """
    dataset download eos.app event file filename format id name page path record run scitag.flow
    svcclass version year
    """.split()
)
"""URL fields whose values are shown: they name files and do not grant access."""

_URL = re.compile(r"(?<!rucio):/+[^\s\"<>]*")
"""URLs of servers; ``rucio://`` is followed by a DID, ``scope:name``, and not by a password."""

_USER = re.compile(
    r"(:/+)(?:[^/?#\s:\[]*:(?![0-9]{0,5}(?:[/?#'),;.\]]|:?$))\S*@"  # a password may hold a slash
    r"|[^/\s]*@)"
)
_CUT_OFF = re.compile(r"(:/+(?!\[)[^/?#\s:@]*:)(?![0-9]{0,5}(?:[/?#'),;.:\]]|$))[^/?#\s]+")
"""A URL that ends within its password."""

_QUERY = re.compile(r"[?#]")
_FIELD = re.compile(r"([?&;#])([^\s=&;?#]*)(=?)([^\s&;?#]*)")
_BEHIND = "')]}.,:"
"""Punctuation that may follow a URL in a sentence."""

_NAMED = re.compile(
    r"(?<![\w.-])((?:authz|access_token|id_token|refresh_token|client_secret|password|passwd|sig"
    r"|signature|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)"
    r"|awsaccesskeyid|cap\.sym|cap\.msg|xrd\.ztn)=)(?!=)[^\s&;?#\"'<>,)\]]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]*\.[\w-]*")


def redacted(text: str) -> str:
    """Replace the secrets in a text: those of its URLs, and tokens.

    In a URL, the user-info and the values of all query fields that are not known to be public are
    replaced, as each provider has other names for signatures and tokens. Tokens (JWT) are replaced
    anywhere in the text.

    Examples
    --------
    >>> redacted("404: https://jane:pw@host/x.root?X-Sig=abc&run=7, and root://host//x?authz=abc")
    '404: https://***@host/x.root?X-Sig=***&run=7, and root://host//x?authz=***'
    >>> redacted("write rucio://data18:x")
    'write rucio://data18:x'
    """
    if ":/" in text:
        text = _URL.sub(_redacted_url, text)
    if "=" in text:
        text = _NAMED.sub(rf"\1{REDACTED}", text)
    return _TOKEN.sub(REDACTED, text) if "eyJ" in text else text


def _redacted_url(found: re.Match[str]) -> str:
    before, user, rest = found[0].rpartition("@")
    if user:
        before = _USER.sub(rf"\1{REDACTED}@", before + user)
    url = _CUT_OFF.sub(rf"\1{REDACTED}", before + rest)
    query = _QUERY.search(url)
    if query is None:
        return url
    return url[: query.start()] + _FIELD.sub(_redacted_field, url[query.start() :])


def _redacted_field(found: re.Match[str]) -> str:
    separator, name, equals, value = found.groups()
    secret = value if equals else name
    kept = secret.rstrip(_BEHIND)
    if not kept or (equals and name.lower() in _PUBLIC_FIELDS):
        return found[0]
    shown = f"{name}=" if equals else ""
    return f"{separator}{shown}{REDACTED}{secret[len(kept) :]}"


def escaped(text: str) -> str:
    r"""Escape control and formatting characters in a text.

    A line break cannot forge another log record, an escape sequence does not reach the terminal,
    and a character that changes the direction of writing is visible.

    Examples
    --------
    >>> print(escaped("Zμμ\n2026-01-01 INFO \x1b[2J\u202e"))
    Zμμ\n2026-01-01 INFO \x1b[2J\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


_FORMULA = re.compile(r"(^|;)(\s*)(?=[=+@\-\uff1d\uff0b\uff20\uff0d])")
"""Where a spreadsheet would see a formula, also one in which a semicolon separates cells."""


def spreadsheet_cell(text: str) -> str:
    """Escape a text so that no spreadsheet reads it as a formula (OWASP: CSV injection).

    Examples
    --------
    >>> spreadsheet_cell("=HYPERLINK(1)"), spreadsheet_cell("root://host//a=b")
    ("'=HYPERLINK(1)", 'root://host//a=b')
    """
    return _FORMULA.sub(r"\1\2'", escaped(text))
