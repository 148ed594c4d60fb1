"""Paths of trees and objects in ROOT files: how to read them, and which ones a result can have."""

from collections.abc import Iterable

from servicex_server.errors import QueryError


def plain_path(name: str) -> str:
    """Return the path of an object without its cycle and without slashes around it.

    Examples
    --------
    >>> plain_path("/nominal/tree;1")
    'nominal/tree'
    """
    return name.split(";", maxsplit=1)[0].strip("/")


def checked_path(path: str, where: str) -> str:
    """Return a path, if a tree of the result can have it.

    Raises
    ------
    QueryError
        A part of the path is empty, or is ``.`` or ``..``.
    """
    for step in path.split("/"):
        if not step.strip() or step in (".", ".."):
            raise QueryError(
                f"{where}: {path[:200]} is not a path of a tree: it has a folder {step!r}",
                hint="write folder/tree, with one slash between two names",
            )
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths of objects if one of them would also have to be the folder of another.

    Raises
    ------
    QueryError
        Two objects have the same path, or the path of one continues the path of another.
    """
    known: set[str] = set()
    folders: dict[str, str] = {}
    for path in paths:
        if path in known:
            raise QueryError(f"selection: two objects of the result are called {path}")
        known.add(path)
        steps = path.split("/")
        folders |= {"/".join(steps[:depth]): path for depth in range(1, len(steps))}
    for path in sorted(known & folders.keys()):
        raise QueryError(
            f"selection: {path} cannot be an object of the result and the folder of "
            f"{folders[path]}",
            hint='rename one, as in {"treename": {"' + path + '": "other"}}',
        )
