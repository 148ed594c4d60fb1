"""No secret in a log: what is secret is collected by itself, and every log is held against it.

`listening` hears all that the tests and the servers say to each other by httpx; `Server` says what
it was started with, and holds its log against all that is known by then. Some secrets never come by
here, those of browsers and of other programs: they are known by their shape.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx
import pytest
import yaml

from servicex_server.storage.bucket import bucket_keys

LEAST = 6
"""Characters of what an operator has chosen: what is shorter is in every log."""

LONG = 20
"""Characters of what was made by a program: fields of the same name may hold other words."""

_NAMES = re.compile(
    r"(^|_)(token|secret|password|keys?|device_code|code_verifier|code|signature|webhook"
    r"|authz|sig|credential)$",
    re.IGNORECASE,
)
"""Fields whose values are secret, with _ for -: of JSON, of forms, of queries, and settings."""

SHAPES = re.compile(
    r"""
    sxt_[\w-]{20,}                            # an API token
    | eyJ[\w-]{8,}\.[\w-]*\.[\w-]*            # an access token, or what a browser keeps (JWT, JWE)
    | (?<=Signature=)[0-9a-f]{32,}            # of a link to a result
    | (?<=code_verifier)\W{1,4}[\w~.-]{20,}   # of a sign-in by an issuer
    | (?<=servicex=)[\w-]{43}                 # of a browser that is signed in
    | (?<=authz=)[\w~.%+/-]{8,}               # in the URL of a file
    | (?<=://)[^\s/:@'"]{1,64}:[^\s/@'"]{6,64}(?=@)  # user and password in a URL
    """,
    re.VERBOSE,
)


_WORD = re.compile(rf"[\w~.+/=-]{{{LONG},}}")
"""What most secrets are: one word, and a long one."""

LARGEST = 1 << 20
"""Bytes of the largest body that is searched: what is larger are files, rows or an attack."""


class Secrets:
    """What nobody may read in a log."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    def add(self, value: Any, least: int) -> None:
        """Keep a value, if it is one that would be seen; of a path what is in the file."""
        if isinstance(value, str) and value.startswith("/"):
            with suppress(OSError, ValueError):
                self.add(Path(value).read_text(encoding="utf-8").strip(), LONG)
        elif isinstance(value, str) and len(value) >= least:
            self.known.add(value)

    def walk(self, value: Any, least: int = LONG, name: str = "") -> None:
        """Keep what is secret in plain data, by the names in it, and what its texts show."""
        if isinstance(value, Mapping):
            for key, one in value.items():
                self.walk(one, least, str(key))
        elif isinstance(value, list):
            for one in value:
                self.walk(one, least, name)
        elif isinstance(value, str):
            self.text(value)
            if _NAMES.search(name.replace("-", "_")):
                self.add(value, least)

    def text(self, text: str) -> None:
        """Keep what looks like a secret in a text, and the passwords of a URL."""
        for found in SHAPES.finditer(text):
            self.add(found[0].strip("\"': ="), LONG)
        with suppress(ValueError):
            parts = urlsplit(text) if "://" in text[:40] else None
            if parts is not None:
                self.add(parts.password, LEAST)
                self.add(unquote(parts.password or ""), LEAST)
                self.walk(dict(parse_qsl(parts.query)))

    def heard(self, response: httpx.Response) -> None:
        """Keep what is secret in an answer, in those that led to it, and in what was asked."""
        for one in (*response.history, response):
            self._asked(one.request)
            for cookie in one.headers.get_list("set-cookie"):
                self.add(cookie.partition(";")[0].partition("=")[2], LONG)
            self.text(one.headers.get("location", ""))
            with suppress(httpx.ResponseNotRead, httpx.StreamConsumed):
                self._body(one.headers.get("content-type", ""), one.content)

    def _asked(self, request: httpx.Request) -> None:
        self.add(request.headers.get("authorization", "").rpartition(" ")[2], LONG)
        for cookie in request.headers.get("cookie", "").split("; "):
            self.add(cookie.partition("=")[2], LONG)
        self.text(str(request.url))
        with suppress(httpx.RequestNotRead):
            self._body(request.headers.get("content-type", ""), request.content)

    def _body(self, kind: str, content: bytes) -> None:
        if len(content) > LARGEST:
            return
        if "json" in kind:
            with suppress(ValueError, RecursionError):
                self.walk(json.loads(content))
        elif "form" in kind:
            self.walk(dict(parse_qsl(content.decode(errors="replace"))))
        elif "html" in kind or "yaml" in kind:
            self.text(content.decode(errors="replace"))

    def settings(self, environment: Mapping[str, str], options: list[str]) -> None:
        """Keep what an operator has given: by variables, and by a file."""
        for name, text in environment.items():
            if name.startswith(("SERVICEX_SERVER_", "AWS_")):
                self._setting(name, text)
        for option, path in pairwise(options):
            if option == "--config":
                with suppress(OSError, yaml.YAMLError):
                    self.walk(yaml.safe_load(Path(path).read_text(encoding="utf-8")), LEAST)

    def _setting(self, name: str, text: str) -> None:
        value: Any = text
        with suppress(ValueError):
            value = json.loads(text)
        self.walk(value if isinstance(value, list | dict) else text, LEAST, name)

    def folder(self, folder: Path) -> None:
        """Keep the keys of a service, as they may be written, and those of its results."""
        requests = [path.name for path in folder.glob("objects/*")]
        with suppress(OSError):
            ring = (folder / "service.key").read_bytes()
            for start in range(0, len(ring), 32):
                key = ring[start : start + 32]
                forms = (base64.b64encode(key), base64.urlsafe_b64encode(key))
                self.known |= {key.hex(), *(form.decode().rstrip("=") for form in forms)}
                self.known |= {bucket_keys(key, one).secret_key for one in requests}

    def leaks(self, log: str) -> list[str]:
        """Return the lines of a log that have a secret in them, of which only the beginning."""
        # nearly all are long words, of which a log has few, most of them many times
        words = "\n".join(set(_WORD.findall(log)))
        shown = {one for one in self.known if one in (words if _WORD.fullmatch(one) else log)}
        shown |= {found[0] for found in SHAPES.finditer(log)}
        lines = []
        for line in log.splitlines():
            if there := sorted((one for one in shown if one in line), key=len, reverse=True):
                for secret in there:
                    line = line.replace(secret, f"{secret[:4]}…")  # noqa: PLW2901
                lines.append(line)
        return lines


SECRETS = Secrets()
"""Of all tests of this process: what one server has given away is nothing for another's log."""


@contextmanager
def listening(secrets: Secrets = SECRETS) -> Iterator[None]:
    """Hear everything that is asked by httpx in this process, whoever asks."""
    plain, asynchronous = httpx.Client.send, httpx.AsyncClient.send

    def send(self: httpx.Client, *given: Any, **options: Any) -> httpx.Response:
        response = plain(self, *given, **options)
        secrets.heard(response)
        return response

    async def send_async(self: httpx.AsyncClient, *given: Any, **options: Any) -> httpx.Response:
        response = await asynchronous(self, *given, **options)
        secrets.heard(response)
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", send)
        patch.setattr(httpx.AsyncClient, "send", send_async)
        yield
