"""Hints in errors: the nearest known names, and how to install what is missing."""

import difflib
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

_SHOWN = 8
"""Known names that are listed if none is similar."""


_LONGEST = 100
"""Characters of a name that are compared; the time grows with their square."""


_COMPARED = 2_000_000
"""Pairs of characters of a name and the known names that are compared at most."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return the known names that are most similar to ``name``, best first.

    Examples
    --------
    >>> nearest("Muon_ptt", ["Muon_pt", "Muon_eta", "run"])
    ['Muon_pt', 'Muon_eta']
    """
    folded: dict[str, str] = {}
    left = _COMPARED
    for one in known if len(name) <= _LONGEST else ():
        # names of very different lengths cannot be similar
        if len(one) <= _LONGEST and len(one) <= 3 * len(name) and len(name) <= 3 * len(one):
            left -= len(name) * len(one)
            if left < 0:
                break
            folded.setdefault(one.lower(), one)
    return [folded[hit] for hit in difflib.get_close_matches(name.lower(), folded, n=most)]


def install(extra: str) -> str:
    """Return the command that installs what an optional part needs, without the service itself.

    The packages are those that the service was installed with as ``extra``, so the command works
    from a clone, from a wheel and from a package index.

    Examples
    --------
    >>> install("xrootd")
    'pip install xrootd'
    """
    from importlib.metadata import requires
    from shlex import join

    wanted = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    lines = (one.partition(";") for one in requires("servicex-server") or ())
    packages = [name.strip() for name, _, marker in lines if wanted.search(marker)]
    return join(["pip", "install", *(packages or [extra])])


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "there is") -> str:
    """Return a hint with the most similar known names, or else with some of the known names.

    Examples
    --------
    >>> did_you_mean("evnts", ["events", "runs"])
    'did you mean events?'
    >>> did_you_mean("x", ["events", "runs"], otherwise="the trees are")
    'the trees are events, runs'
    >>> did_you_mean("x", {"sum", "any", "num"}, otherwise="the functions are")
    'the functions are any, num, sum'
    """
    # the order of a set differs between processes
    known = sorted(known) if isinstance(known, AbstractSet) else list(known)
    if close := nearest(name, known):
        return f"did you mean {' or '.join(close)}?"
    if not known:
        return f"{otherwise} none"
    shown = ", ".join(known[:_SHOWN])
    return f"{otherwise} {shown}" + (", …" if len(known) > _SHOWN else "")
