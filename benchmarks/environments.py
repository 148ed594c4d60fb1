"""The Python environments of peers that cannot, or should not, share the project's own."""

import subprocess
import sys
from pathlib import Path

from benchmarks.samples import folder

PACKAGES = {
    # dask-awkward does not go with the dask that the service has
    "peers": ("func-adl-uproot==2.2.0", "pyarrow", "deflate", "cramjam"),
    "root": ("--pre", "root", "numpy"),
}

_FOR = {"ours": "", "plain": "", "rdataframe": "root"}
"""Which environment has a contender: the project's own, or by default that of the peers."""


def python_of(contender: str) -> Path:
    """Return the interpreter that has what a contender needs.

    Raises
    ------
    LookupError
        It is not installed; says why.
    """
    name = _FOR.get(contender, "peers")
    if not name:
        return Path(sys.executable)
    python = folder() / f"venv-{name}" / "bin" / "python"
    if name == "peers" and not _ready(name).exists():
        install(name)
    if not _ready(name).exists():
        raise LookupError(f'not installed: make bench ARGS="--install-{name}"')
    return python


def install(name: str) -> None:
    """Make an environment in the cache folder.

    Raises
    ------
    LookupError
        The packages could not be had.
    """
    path = folder() / f"venv-{name}"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    pip = [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    ran = subprocess.run(
        [*pip, "--quiet", *PACKAGES[name]], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise LookupError(f"could not be installed: {ran.stderr.strip()[-200:]}")
    _ready(name).touch()


def _ready(name: str) -> Path:
    return folder() / f"venv-{name}" / ".ready"
