"""The file of the published client, which says where services are and has the tokens for them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servicex_server.errors import StartupError

NAMES = (".servicex", "servicex.yaml")
"""What it is called; the client takes the first that it finds."""


def token_for(url: str, *, folder: Path | None = None) -> str | None:
    """Return the token for a service, from the file that the client would take; None if none.

    Parameters
    ----------
    url
        Of the service.
    folder
        From where on upwards it is looked for, and then at home; the current one if not given.

    Raises
    ------
    StartupError
        The file is none of the client's.
    """
    for place in _places(folder or Path.cwd()):
        if place.is_file():
            for one in _endpoints(_read(place), place):
                if _same(one.get("endpoint"), url):
                    return one.get("token") or None
            return None
    return None


def remember(url: str, token: str, path: Path) -> Path:
    """Put the token for a service into a file, beside what it has of others; return its path.

    The file as it was before is kept with the suffix ``.bak``, as its comments are lost.

    Raises
    ------
    StartupError
        It cannot be written, or is none of the client's.
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
        if path.exists():
            _write(path.with_name(f"{path.name}.bak"), path.read_text(encoding="utf-8"))
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
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartupError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise StartupError(f"{path} is no file of the servicex client")
    return found


def _endpoints(found: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    endpoints = found.setdefault("api_endpoints", [])
    if not isinstance(endpoints, list) or not all(isinstance(one, dict) for one in endpoints):
        raise StartupError(f"{path}: api_endpoints is to be a list, each with name and endpoint")
    return endpoints


def _text(found: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for nobody else to read."""
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(made).replace(path)
    except OSError:
        Path(made).unlink()
        raise
