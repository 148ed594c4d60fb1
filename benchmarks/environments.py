"""The Python environments of peers that cannot, or should not, share the project's own."""

import sys
from pathlib import Path

from benchmarks.samples import folder
from tools.environments import FUNC_ADL_UPROOT, interpreter, is_made

PACKAGES = {
    "peers": (*FUNC_ADL_UPROOT, "pyarrow", "deflate"),
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
    if name != "peers" and not is_made(_folder(name)):
        raise LookupError(f'not installed: make bench ARGS="--install-{name}"')
    return install(name)


def install(name: str) -> Path:
    """Return the interpreter of an environment in the cache folder, made if need be.

    Raises
    ------
    LookupError
        The packages could not be had.
    """
    return interpreter(_folder(name), PACKAGES[name])


def _folder(name: str) -> Path:
    return folder() / f"venv-{name}"
