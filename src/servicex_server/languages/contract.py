"""The contract of a query language: it compiles the user's text into what a worker can run.

A language is a class with a ``name``, registered under the entry point group
``servicex_server.languages``; the name is what clients send as ``codegen``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError, RequestError
from servicex_server.model import ResultFormat


@dataclass(frozen=True, slots=True)
class Program:
    """A query that is code: it runs apart from the worker, once for each file.

    ``command`` runs in a scratch folder that holds ``files`` (names and texts). It gets three more
    arguments: the path or URL of the input file, the path of the output file, the result format.

    It reports with one JSON object, written to the file descriptor that the environment variable
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
    """Whether queries are code, which compile to a `Program`.

    Where users sign in, code is accepted only if the sandbox works (`language_policy`).
    """

    formats: ClassVar[Sequence[ResultFormat]] = tuple(ResultFormat)

    @abstractmethod
    def compile(self, selection: str, result_format: ResultFormat) -> Query | Program:
        """Compile the user's text, without opening any input file.

        It is called when a request is submitted, to find errors, and again on the worker; each time
        first in a helper process with limits on time and memory
        (`servicex_server.query_processes`). Helpers are forked from a process that has imported
        the module of the language, so the import must not start threads or open connections.

        Raises
        ------
        QueryError
            The text is not a valid query; the message says where.
        FormatError
            The format cannot hold what the query asks for.
        """

    def compile_accepted(self, selection: str, result_format: ResultFormat) -> Query | Program:
        """Compile a query that `compile` has accepted before, without checking it again.

        It is called in the process of a worker, which has other work to do. Override it in a
        language whose checks take longer than the rest.
        """
        return self.compile(selection, result_format)

    def compiled(
        self, selection: str, result_format: ResultFormat, *, accepted: bool = False
    ) -> Query | Program:
        """Compile a query; refuse a program from a language without ``runs_code``.

        Parameters
        ----------
        accepted
            Whether the query has compiled before, in a helper process.

        Raises
        ------
        RequestError
            `compile` raises it; or the query is a program although the language does not declare
            ``runs_code``, which would evade `language_policy`.
        """
        compile_query = self.compile_accepted if accepted else self.compile
        meaning = compile_query(selection, result_format)
        if isinstance(meaning, Program) and not self.runs_code:
            raise RequestError(
                f"codegen: {self.name!r} is refused: it runs code of users without declaring it",
                hint="its author has to set runs_code = True in the class of the language",
            )
        return meaning

    def check_format(self, result_format: ResultFormat) -> None:
        """Refuse a result format that this language does not write."""
        if result_format not in self.formats:
            raise FormatError(
                f"result-format: {self.name} does not write {result_format.value}",
                hint=f"it writes {', '.join(self.formats)}",
            )
