"""The data folder: only the account of the service may look into it."""

import logging
import os
from pathlib import Path

from servicex_server.errors import StartupError

log = logging.getLogger(__name__)

UMASK = 0o077
"""Everything that the service writes is for its own account."""

_OTHERS = 0o077


def write_privately() -> None:
    """Have this process, and those that it starts, write files that nobody else can read."""
    os.umask(UMASK)


def close_to_others(folder: Path) -> None:
    """Take a data folder, and what is directly in it, away from other accounts of the machine.

    Raises
    ------
    StartupError
        The folder belongs to another account, and others can read or write it.
    """
    opened = []
    for path in (folder, *sorted(folder.iterdir())):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        if not mode & _OTHERS:
            continue
        try:
            path.chmod(mode & 0o7777 & ~_OTHERS)
        except OSError as error:
            raise StartupError(
                f"other accounts can get at {path} (mode {mode & 0o777:o}): {error.strerror}",
                hint=f"run `chmod -R go= {folder}` as the owner of the folder",
            ) from error
        opened.append(f"{path.name} ({mode & 0o777:o})")
    if opened:
        log.warning(
            "other accounts could get at %s in the data folder %s; it is closed to them now",
            ", ".join(opened),
            folder,
        )
