"""What a query language does: it turns the user's text into something a worker can run.

A language is a class with a ``name``, registered under the entry point group
``servicex_server.languages``; the name is what clients send as ``codegen``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError
from servicex_server.model import ResultFormat


@dataclass(frozen=True, slots=True)
class Program:
    """A query that is code: run apart from the worker, once for each file.

    ``command`` is run in a scratch folder that holds ``files`` (names and texts), with three words
    appended: the path or URL of the input file, the path of the output file, the result format.

    It says how it went by one JSON object, written to the file descriptor that the variable
    ``SERVICEX_REPORT`` names: ``{"events": 7}``, or ``{"error": {"kind": "Function", "message":
    "...", "hint": "...", "traceback": "..."}}``. ``SERVICEX_MEMORY`` and ``SERVICEX_DISK`` tell
    how many bytes it may use.
    """

    command: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()


class Language(ABC):
    """A query language."""

    name: ClassVar[str]
    description: ClassVar[str] = ""
    runs_code: ClassVar[bool] = False
    """Whether queries are code, which is refused where users sign in and no sandbox is set up."""

    formats: ClassVar[Sequence[ResultFormat]] = tuple(ResultFormat)

    @abstractmethod
    def compile(self, selection: str, result_format: ResultFormat) -> Query | Program:
        """Turn the user's text into what is run, without touching any file.

        Called when a request is submitted, for the errors, and again on the worker.

        Raises
        ------
        QueryError
            The text means nothing; the message says where.
        FormatError
            The format cannot hold what the query asks for.
        """

    def check_format(self, result_format: ResultFormat) -> None:
        """Refuse a format this language does not write."""
        if result_format not in self.formats:
            raise FormatError(
                f"result-format: {self.name} does not write {result_format.value}",
                hint=f"it writes {', '.join(self.formats)}",
            )
