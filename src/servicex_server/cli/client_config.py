"""The configuration file of the published client, with the URLs of services and their tokens."""

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servicex_server.errors import StartupError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

NAMES = (".servicex", "servicex.yaml")
"""The names of the file; the client uses the first that it finds."""


def token_for(url: str, *, folder: Path | None = None) -> str | None:
    """Return the token for a service from the file that the client would use; None without one.

    Parameters
    ----------
    url
        The URL of the service.
    folder
        The first folder of the search, which continues in its parents and in the home folder. The
        default is the current folder.

    Raises
    ------
    StartupError
        The file is not a file of the client.
    """
    for place in _places(folder or Path.cwd()):
        if place.is_file():
            for one in _endpoints(_read(place), place):
                if _same(one.get("endpoint"), url):
                    return one.get("token") or None
            return None
    return None


def remember(url: str, token: str, path: Path) -> Path:
    """Store the token for a service in a file; return the path.

    Other entries, comments and the order stay as they are.

    Raises
    ------
    StartupError
        The file cannot be written, or is not a file of the client.
    """
    found: dict[str, Any] = _read(path) if path.exists() else {"api_endpoints": []}
    endpoints = _endpoints(found, path)
    mine = next((one for one in endpoints if _same(one.get("endpoint"), url)), None)
    if mine is None:
        names = {one.get("name") for one in endpoints}
        host = url.partition("://")[2].rstrip("/")
        mine = {"name": host if host not in names else url, "endpoint": url}
        endpoints.append(mine)
    mine["token"] = token
    try:
        _write(path, _text(found))
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _places(folder: Path) -> Iterator[Path]:
    for place in (folder, *folder.parents, Path.home()):
        for name in NAMES:
            yield place / name


def _same(given: object, url: str) -> bool:
    return isinstance(given, str) and given.rstrip("/") == url.rstrip("/")


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml.error import YAMLError

    try:
        found = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise StartupError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise StartupError(f"{path} is not a file of the servicex client")
    return found


def _endpoints(found: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    endpoints = found.setdefault("api_endpoints", [])
    if not isinstance(endpoints, list) or not all(isinstance(one, dict) for one in endpoints):
        raise StartupError(f"{path}: api_endpoints has to be a list of entries with an endpoint")
    return endpoints


def _text(found: dict[str, Any]) -> str:
    text = io.StringIO()
    _yaml().dump(found, text)
    return text.getvalue()


def _yaml() -> "YAML":
    """Return a parser that keeps comments, quotes and the order, and makes plain values only."""
    from ruamel.yaml import YAML

    parser = YAML(typ="rt")
    parser.preserve_quotes = True
    parser.width = 1 << 20  # no line is broken
    parser.indent(mapping=2, sequence=4, offset=2)
    return parser


def _write(path: Path, text: str) -> None:
    """Write a file atomically, readable for the owner only."""
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(made).replace(path)
    except OSError:
        Path(made).unlink()
        raise
