"""Looks for leaks of the sandbox: ``sandbox_trial.py HIDDEN``, run as a file inside of it.

It prints the leaks that it finds.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534
NEW_USER_NAMESPACE = 0x10000000
NEEDED = ("numpy", "awkward", "uproot", "pyarrow", "servicex_server")


def leaks(hidden: Path) -> Iterator[str]:
    """Yield the leaks. ``hidden`` is a file of the machine that the sandbox should hide."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    if os.getuid() != NOBODY or os.getgid() != NOBODY:
        yield "the user is another one"
    if any(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")):
        yield "capabilities are left"
    if status["NoNewPrivs"].strip() != "1":
        yield "programs can gain privileges"
    if hidden.exists() or Path("/etc/shadow").exists():
        yield "files of others are there"
    if sum(path.name.isdigit() for path in Path("/proc").iterdir()) > len(("bwrap", "this")):
        yield "processes of others are there"
    # the first line of each is a heading
    if any(len(_lines(f"/proc/net/{name}")) > 1 for name in ("route", "unix")):
        yield "there is a network"
    if any(Path("/proc/sys").iterdir()):
        yield "settings of the kernel are there"
    if ctypes.CDLL(None).unshare(NEW_USER_NAMESPACE) == 0:
        yield "namespaces can be made"
    for folder in ("/", "/dev", "/usr", str(Path(sys.executable).parent)):
        if os.access(folder, os.W_OK):
            yield f"{folder} can be written"
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        yield f"functions would have no {', '.join(missing)}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


if __name__ == "__main__":
    sys.stdout.write("; ".join(leaks(Path(sys.argv[1]))))
