"""The signing keys of the service, newest first.

The newest key, the current one, signs access tokens, the keys of buckets and links to results. What
an older key signed stays valid for as long as that key is kept. The keys are in ``service.key`` in
the data folder, 32 bytes each and nothing else, or in the setting ``storage.service_keys``.
"""

import logging
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from servicex_server.errors import StartupError
from servicex_server.settings.service import Settings

log = logging.getLogger(__name__)

BYTES = 32
"""Length of a key in ``service.key``, in bytes."""

_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """All keys that the service accepts, newest first; there is at least one."""

    all: tuple[bytes, ...] = field(repr=False)

    @property
    def current(self) -> bytes:
        """The newest key, with which the service signs."""
        return self.all[0]


def load_signing_keys(settings: Settings) -> SigningKeys:
    """Return the keys in the setting ``storage.service_keys``, or else those in the data folder.

    Raises
    ------
    StartupError
        The file cannot be read, is damaged, or can be read by other accounts.
    """
    if settings.storage.service_keys:
        given = (key.get_secret_value() for key in settings.storage.service_keys)
        return SigningKeys(tuple(bytes.fromhex(key) for key in given))
    return signing_keys_in(settings.data_dir)


def signing_keys_in(folder: Path) -> SigningKeys:
    """Return the keys in a data folder. The first start creates the file, with mode 600.

    When several processes start at the same time, one of them creates it and all return its key.

    Raises
    ------
    StartupError
        As for `load_signing_keys`.
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
    """Put a new key before those in the data folder; return how many are kept and dropped.

    Running processes continue to use the keys that they have loaded.

    Parameters
    ----------
    keep
        How many keys the file has afterwards, with the new one.

    Raises
    ------
    StartupError
        The keys are in the settings, or the file does not exist, or cannot be read or written.
    """
    if settings.storage.service_keys:
        raise StartupError(
            "the keys are in the setting storage.service_keys, and not in the data folder",
            hint="put a new one there, before the others",
        )
    path = _file(settings.data_dir)
    if not path.exists():
        raise StartupError(
            f"there is no {path}: no service has been started with this data folder",
            hint="name that of the service with --data-dir or --config",
        )
    old = _read(path).all
    ring = (secrets.token_bytes(BYTES), *old)[:keep]
    made = _written(settings.data_dir, b"".join(ring))
    try:
        # when root rotates, the file still has to belong to the user that the service runs as
        os.chown(made, path.stat().st_uid, -1)
        made.replace(path)
    except OSError as error:
        made.unlink()
        raise StartupError(f"{path} cannot be replaced: {error.strerror}") from error
    return len(ring), len(old) + 1 - len(ring)


def _file(folder: Path) -> Path:
    return folder / "service.key"


def _written(folder: Path, content: bytes) -> Path:
    """Write a complete temporary file beside the key file, with mode 600; return its path."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".key-", dir=folder)
    except OSError as error:
        raise StartupError(f"{_file(folder)} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return Path(name)


def _read(path: Path) -> SigningKeys:
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
    return SigningKeys(tuple(content[at : at + BYTES] for at in range(0, len(content), BYTES)))


def _shut(path: Path, mode: int) -> None:
    """Remove the permissions of other accounts from a key file, and warn: they may have read it."""
    try:
        path.chmod(0o600)
    except OSError as error:
        raise StartupError(
            f"{path} can be read by others (mode {mode & 0o777:o})",
            hint="make it belong to the user that the service runs as, with mode 600",
        ) from error
    log.warning(
        "%s could be read by other accounts (mode %o); its mode is now 600. If another account may "
        "have read it, run `servicex-server rotate-keys --keep 1`",
        path,
        mode & 0o777,
    )
