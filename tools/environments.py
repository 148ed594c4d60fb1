"""Python environments for programs that cannot share the project's own, made when first needed."""

import fcntl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FUNC_ADL_UPROOT = (
    "func-adl-uproot==2.2.0",
    "awkward==2.14.0",
    "dask-awkward==2026.2.1",
    "dask==2025.3.1",  # dask-awkward does not go with the dask that the service has
    "func-adl==3.5.0",
    "numpy==2.4.6",
    "qastle==0.19.0",
    "uproot==5.7.7",
    "vector==1.9.0",
)
"""What runs func_adl queries in ServiceX's own transformers."""


def interpreter(folder: Path, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment that has some packages.

    Parameters
    ----------
    folder
        Where the environment is; made if it is not there, or has other packages.
    packages
        What pip is to install.

    Raises
    ------
    LookupError
        They could not be had; says why.
    """
    python, wanted = folder / "bin" / "python", "\n".join(packages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of pytest-xdist one installs
        if not is_made(folder) or _made(folder).read_text(encoding="utf-8") != wanted:
            _install(folder, python, packages)
            _made(folder).write_text(wanted, encoding="utf-8")
    return python


def is_made(folder: Path) -> bool:
    """Whether there is an environment, whatever its packages."""
    return _made(folder).exists()


def _made(folder: Path) -> Path:
    """Return the file that lists the packages of an environment, the last that is written."""
    return folder / ".packages"


def _install(folder: Path, python: Path, packages: Sequence[str]) -> None:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "--only-binary", ":all:", *packages],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise LookupError(f"{folder.name} could not be installed: {ran.stderr.strip()[-300:]}")
