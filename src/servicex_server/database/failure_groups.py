"""Grouping similar failures, for the failure text of a request, its report and its page.

Error messages contain the name of the file. Failures are similar if their errors differ only in
names of files and in measured amounts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from servicex_server.errors import ErrorRecord

THE_FILE = "(the file)"
"""Placeholder for the name of a file in the common message of several failures."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>,;]*[^\s\"'<>,;:.)]")
_AMOUNT = re.compile(r"\b\d+(?:\.\d+)?(?= ?(?:[kMGT]?B|bytes|s|seconds|entries|events)\b)")

_T = TypeVar("_T")


@dataclass(eq=False)
class Group(Generic[_T]):
    """Similar failures, in the order in which they came.

    ``error`` is the error of the first one; ``shared`` is the same without names of files.
    """

    error: ErrorRecord
    shared: ErrorRecord
    count: int = 0
    members: list[_T] = field(default_factory=list)

    @property
    def shown(self) -> ErrorRecord:
        """The error to show. It names the file only if one file failed."""
        return self.error if self.count == 1 else self.shared


def grouped(failures: Iterable[tuple[ErrorRecord, str, int, _T]]) -> list[Group[_T]]:
    """Return failures in groups, the largest first.

    Parameters
    ----------
    failures
        For each failure: its error, the name of its file, the number of files with this error, and
        an object that becomes a member of the group.
    """
    groups: dict[ErrorRecord, Group[_T]] = {}
    for error, path, count, member in failures:
        shared = _without_files(error, path)
        key = replace(
            shared, message=_AMOUNT.sub("N", shared.message), hint=_AMOUNT.sub("N", shared.hint)
        )
        group = groups.setdefault(key, Group(error, shared))
        group.count += count
        group.members.append(member)
    return sorted(groups.values(), key=lambda group: -group.count)


def _without_files(error: ErrorRecord, path: str) -> ErrorRecord:
    """Return an error with a placeholder for names of files.

    Examples
    --------
    >>> found = ErrorRecord("Missing", "replica", "/data/x.root does not exist")
    >>> _without_files(found, "/data/x.root").message
    '(the file) does not exist'
    """

    def without(text: str) -> str:
        return _URL.sub(THE_FILE, text.replace(path, THE_FILE) if path else text)

    return replace(error, message=without(error.message), hint=without(error.hint))
