"""Walks the folders of a ROOT file; a broken or hostile file may nest them in a circle."""

import itertools
from typing import Any

from servicex_server.errors import CorruptError

FOLDERS = ("TDirectory", "TDirectoryFile")

DEEPEST = 100
"""Levels of nested folders that are followed."""

MOST = 1_000_000
"""Objects that are listed; no file that people make has more."""


def classes_of(url: str, top: Any) -> dict[str, str]:
    """Return the class names of all objects in a file by path.

    Raises
    ------
    CorruptError
        A folder contains itself or is in two places, or there are too many objects or levels.
    """
    classes: dict[str, str] = {}
    known = {top.fSeekKeys}
    seen = itertools.count(1)

    def walk(folder: Any, above: str, depth: int) -> None:
        for name, kind in folder.iterclassnames(recursive=False, cycle=True):
            path = above + name.rpartition(";")[0]
            classes.setdefault(path, kind)
            if next(seen) > MOST or depth > DEEPEST:  # cycles of one name count too
                raise CorruptError(f"{url} has more than {MOST:,} objects or {DEEPEST} levels")
            if kind not in FOLDERS:
                continue
            found = folder.key(name).get()
            if found.fSeekKeys in known:
                raise CorruptError(f"{url} has a folder {path[:200]} that contains itself")
            if found.fSeekKeys:  # an empty folder has none
                known.add(found.fSeekKeys)
            walk(found, f"{path}/", depth + 1)

    walk(top, "", 0)
    return classes
