"""The service's own keys, newest first: what it signs with, and what it accepts.

With the newest it makes access tokens, the keys of buckets and links to results; what was made with
an older one is good as long as that is kept. They are in ``service.key`` in the data folder, 32
bytes each and nothing else, or in the setting ``service_keys``.
"""

import logging
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from servicex_server.errors import StartupError
from servicex_server.settings import Settings

log = logging.getLogger(__name__)

BYTES = 32
"""Length of a key that is made here."""

_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys that the service knows, newest first; there is at least one."""

    ring: tuple[bytes, ...] = field(repr=False)

    @property
    def newest(self) -> bytes:
        """The one that everything is made with."""
        return self.ring[0]


def keys_of(settings: Settings) -> Keys:
    """Return the keys by the settings: those that are set, or those of the data folder.

    Raises
    ------
    StartupError
        The file cannot be read, is damaged, or is for others to read.
    """
    if settings.service_keys:
        given = (key.get_secret_value() for key in settings.service_keys)
        return Keys(tuple(bytes.fromhex(key) for key in given))
    return kept_keys(settings.data_dir)


def kept_keys(folder: Path) -> Keys:
    """Return the keys in a data folder; the first is made at the first start, mode 600.

    Of processes that start at the same time one makes it, and all return the same.

    Raises
    ------
    StartupError
        As for `keys_of`.
    """
    path = _file(folder)
    if not path.exists():
        made = _written(folder, secrets.token_bytes(BYTES))
        try:
            with suppress(FileExistsError):  # another process was first
                os.link(made, path)
        finally:
            made.unlink()
    return _read(path)


def rotate(settings: Settings, keep: int) -> tuple[int, int]:
    """Put a new key before those of the data folder; return how many are kept, and are dropped.

    Processes that run go on with the keys that they have.

    Parameters
    ----------
    keep
        How many there are to be, with the new one.

    Raises
    ------
    StartupError
        There are none yet, they are elsewhere, or the file cannot be read or written.
    """
    if settings.service_keys:
        raise StartupError(
            "the keys are in the setting service_keys, and not in the data folder",
            hint="put a new one there, before the others",
        )
    path = _file(settings.data_dir)
    if not path.exists():
        raise StartupError(
            f"there is no {path}: no service has been started with this data folder",
            hint="name that of the service with --data-dir or --config",
        )
    old = _read(path).ring
    ring = (secrets.token_bytes(BYTES), *old)[:keep]
    made = _written(settings.data_dir, b"".join(ring))
    try:
        # who rotates as root leaves it to the user that the service runs as
        os.chown(made, path.stat().st_uid, -1)
        made.replace(path)
    except OSError as error:
        made.unlink()
        raise StartupError(f"{path} cannot be replaced: {error.strerror}") from error
    return len(ring), len(old) + 1 - len(ring)


def _file(folder: Path) -> Path:
    return folder / "service.key"


def _written(folder: Path, content: bytes) -> Path:
    """Write a file beside that of the keys, whole, and for nobody else to read."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".key-", dir=folder)
    except OSError as error:
        raise StartupError(f"{_file(folder)} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return Path(name)


def _read(path: Path) -> Keys:
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}") from error
    if not content or len(content) % BYTES:
        raise StartupError(
            f"{path} has {len(content)} bytes, and {BYTES} for each key are right: it is damaged",
            hint="put back a copy, or remove it: all tokens and links there are become void",
        )
    if mode & _OTHERS:
        _shut(path, mode)
    return Keys(tuple(content[at : at + BYTES] for at in range(0, len(content), BYTES)))


def _shut(path: Path, mode: int) -> None:
    """Take a file of keys away from everybody else; what they have read they have."""
    try:
        path.chmod(0o600)
    except OSError as error:
        raise StartupError(
            f"{path} can be read by others (mode {mode & 0o777:o})",
            hint="it has to belong to the user of the service, with mode 600",
        ) from error
    log.warning(
        "%s could be read by others (mode %o) and is shut now; if somebody may have, "
        "`servicex-server rotate-keys --keep 1`",
        path,
        mode & 0o777,
    )
