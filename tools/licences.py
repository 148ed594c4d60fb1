"""Check the licence of every library that the service installs, extras included.

Reads the metadata of what is installed, so it needs no network. A licence that is not in the list
below fails the check: someone has to decide whether the project can depend on it.
"""

import re
import sys
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "servicex-server"

ACCEPTED = (
    r"0BSD|Apache(-2\.0)?|BSD(-[23]-Clause)?|BSL-1\.0|CC0-1\.0|ISC|MIT(-0|-CMU)?|MPL-2\.0"
    r"|PSF-2\.0|Python-2\.0|Unlicense|Zlib"
    r"|LGPL-3\.0-(only|or-later)"  # of extras, used as libraries that their users can exchange
)
"""SPDX identifiers, any of which may stand in an expression with AND, OR and brackets."""

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
"""The SPDX identifiers of the licences that older metadata names by a trove classifier."""

READ_BY_HAND = {
    "dask-jobqueue": "BSD-3-Clause",
    "dask-kubernetes": "BSD-3-Clause",
    "multidict": "Apache-2.0",
    "pykube-ng": "Apache-2.0",
}
"""SPDX identifiers of packages whose metadata uses other words, from their licence files."""


def dependencies(name: str, extras: frozenset[str]) -> dict[str, Distribution]:
    """Return what a package needs, with extras, and what that needs in turn, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        wanted, of = waiting.pop()
        if (wanted, of) in seen:
            continue
        seen.add((wanted, of))
        found[wanted] = distribution(wanted)
        for text in found[wanted].requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in of | {""}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def licence(package: Distribution) -> str:
    """Return the licence of a package as an SPDX expression, or as whatever its metadata says."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    named = [
        CLASSIFIERS.get(one.rpartition(" :: ")[2], one)
        for one in about.get_all("Classifier") or ()
        if one.startswith("License ::") and not one.endswith("OSI Approved")
    ]
    return " AND ".join(named) or str(about.get("License") or "unknown").splitlines()[0]


def accepted(expression: str) -> bool:
    """Whether all licences of an expression are in the list.

    Examples
    --------
    >>> accepted("Apache-2.0 AND (MIT OR 0BSD)"), accepted("GPL-3.0-only"), accepted("unknown")
    (True, False, False)
    """
    names = re.sub(r"[()]|\b(AND|OR)\b", " ", expression).split()
    return bool(names) and all(re.fullmatch(ACCEPTED, name) for name in names)


def main() -> None:
    """Print each licence that is not accepted; exit with 1 if there is one."""
    own = distribution(PROJECT)
    extras = frozenset(own.metadata.get_all("Provides-Extra") or ())
    found = dependencies(PROJECT, extras)
    wrong = {}
    for name, package in sorted(found.items()):
        expression = READ_BY_HAND.get(name) or licence(package)
        if not accepted(expression):
            wrong[name] = expression
            print(f"{name} {package.version}: {expression}")
    print(f"{len(found)} packages, {len(wrong)} with a licence that nobody has accepted")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
