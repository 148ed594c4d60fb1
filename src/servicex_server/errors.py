"""Every error a user, an operator or a client can be shown.

::

    ServiceXError
    ├── RequestError              400  a field of the request is wrong
    │   ├── QueryError            400  the query cannot mean anything
    │   │   ├── UnknownNameError  400  no such tree, branch, function; the nearest are named
    │   │   ├── QueryTypeError    400  shapes or types do not fit together
    │   │   ├── FormatError       400  the output format cannot hold the result
    │   │   └── FunctionError     400  the user's own function failed
    │   ├── DatasetError          400  the dataset reference is wrong
    │   │   └── UnknownDatasetError    the catalogue does not have it
    │   ├── TooLargeError         413  over a limit that is named
    │   └── TooManyError          429  a user, or an address, has as much as it may; says until when
    ├── CatalogueError                 the catalogue does not answer, or refuses us
    │   └── CatalogueDeniedError       its answer will not change by itself
    ├── NotFoundError             404  no such thing, or not yours
    ├── StateError                400  it is too late for that
    ├── SignInError               401  who are you?
    │   └── UnknownTokenError     401  a token that is none of this service
    ├── IssuerError               503  who would vouch for you does not answer
    ├── ForbiddenError            403  you may look, and not touch
    ├── ReplicaError                   one copy of one file could not be read
    │   ├── MissingError               it is not there
    │   ├── UnreachableError           nobody answers at that door
    │   ├── DeniedError                the credential was refused
    │   │   └── ExpiredError           which is known before anybody is asked
    │   ├── SlowError                  no bytes came in time
    │   ├── TruncatedError             it ends too early
    │   └── CorruptError               its content cannot be right
    │       └── ChecksumError          which its catalogue proves
    ├── UnreadableError                a branch no reader understands
    ├── ResourceError                  a limit of the machine was met
    │   ├── OutOfMemoryError
    │   ├── OutOfTimeError
    │   ├── OverdueError
    │   ├── DiskFullError
    │   └── WorkerDiedError
    ├── UploadError                    the object store did not take a result
    ├── InternalError             500  our fault
    └── StartupError                   the service cannot start; one line says why

``blame`` names whose it is; ``retryable`` says whether trying again can help. Errors of a file
travel from the worker to the database as an `ErrorRecord`, which is plain data.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Blame = Literal["query", "dataset", "file", "replica", "site", "credential", "service", "resource"]


class ServiceXError(Exception):
    """Base of everything this package raises on purpose.

    Parameters
    ----------
    message
        What was wrong, in a sentence a physicist understands.
    hint
        What would be right, or what to do; empty when the message says it all.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    blame: ClassVar[Blame] = "service"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint))

    def record(self) -> "ErrorRecord":
        """Return the error as plain data."""
        return ErrorRecord(
            kind=type(self).__name__.removesuffix("Error"),
            blame=self.blame,
            message=self.message,
            hint=self.hint,
            retryable=self.retryable,
        )


def _rebuild(cls: type[ServiceXError], message: str, hint: str) -> ServiceXError:
    return cls(message, hint=hint)


class RequestError(ServiceXError):
    """A field of the request is wrong; ``message`` starts with the field's wire name."""

    status = 400
    blame: ClassVar[Blame] = "query"


class QueryError(RequestError):
    """The query is not sound."""


class UnknownNameError(QueryError):
    """A tree, branch, alias or function does not exist."""


class QueryTypeError(QueryError):
    """Shapes or types do not fit together."""


class FormatError(QueryError):
    """The output format cannot hold the result."""


class FunctionError(QueryError):
    """The user's own function failed or returned something that is not columns."""


class DatasetError(RequestError):
    """The dataset reference is wrong."""

    blame: ClassVar[Blame] = "dataset"


class UnknownDatasetError(DatasetError):
    """The catalogue does not have this dataset."""


class CatalogueError(ServiceXError):
    """The catalogue does not answer, or answers nonsense."""

    status = 503
    retryable = True
    blame: ClassVar[Blame] = "site"


class CatalogueDeniedError(CatalogueError):
    """The catalogue refuses the service: a credential is missing, has expired, or is not enough."""

    retryable = False
    blame: ClassVar[Blame] = "credential"


class TooLargeError(RequestError):
    """Something is over a limit; the message names the limit."""

    status = 413


class TooManyError(RequestError):
    """A user, or an address, has as much as it may; the message names the limit, and what is used.

    ``seconds`` is after how long it is worth trying again, as far as that is known.
    """

    status = 429
    seconds: float | None = None


class NotFoundError(ServiceXError):
    """There is no such thing, or it belongs to somebody else."""

    status = 404
    blame: ClassVar[Blame] = "query"


class StateError(ServiceXError):
    """The thing exists, but is in a state in which this cannot be done."""

    status = 400
    blame: ClassVar[Blame] = "query"


class SignInError(ServiceXError):
    """The caller is not known."""

    status = 401
    blame: ClassVar[Blame] = "credential"


class UnknownTokenError(SignInError):
    """The caller shows a token that this service has never made, or knows no more."""


class IssuerError(ServiceXError):
    """Who vouches for users does not answer, or not as it should."""

    status = 503
    blame: ClassVar[Blame] = "credential"


class ForbiddenError(ServiceXError):
    """The thing may be looked at by the caller, and not be changed."""

    status = 403
    blame: ClassVar[Blame] = "credential"


class ReplicaError(ServiceXError):
    """One copy of one file could not be read; another copy may work."""

    blame: ClassVar[Blame] = "replica"


class MissingError(ReplicaError):
    """The file is not there."""


class UnreachableError(ReplicaError):
    """Nobody answers at that door: refused, unknown host, TLS, time-out on connecting."""

    retryable = True
    blame: ClassVar[Blame] = "site"


class DeniedError(ReplicaError):
    """The credential was refused."""

    retryable = True
    blame: ClassVar[Blame] = "credential"


class ExpiredError(DeniedError):
    """The credential is good no more, or cannot be read; nobody was asked with it."""


class SlowError(ReplicaError):
    """No bytes came in time."""

    retryable = True
    blame: ClassVar[Blame] = "site"


class TruncatedError(ReplicaError):
    """The file ends before its content does."""


class CorruptError(ReplicaError):
    """The content cannot be right: no ROOT file, bad compression, unreadable structure."""


class ChecksumError(CorruptError):
    """All of it was read, and its checksum is not the one that its catalogue has."""


class UnreadableError(ServiceXError):
    """A branch has a type that no reader here understands."""

    blame: ClassVar[Blame] = "file"


class ResourceError(ServiceXError):
    """A limit of the machine was met."""

    blame: ClassVar[Blame] = "resource"


class OutOfMemoryError(ResourceError):
    """The work needed more memory than a worker may use."""


class OutOfTimeError(ResourceError):
    """The function of a query took longer than it may."""


class OverdueError(ResourceError):
    """The work took too long, or did not go on, and was ended with its worker."""

    retryable = True


class DiskFullError(ResourceError):
    """No space is left where the result is written."""

    retryable = True


class WorkerDiedError(ResourceError):
    """The worker process ended while it worked on this file."""

    retryable = True


class UploadError(ServiceXError):
    """The object store did not take a result, or did not answer."""

    retryable = True


class InternalError(ServiceXError):
    """Our fault."""


class StartupError(ServiceXError):
    """The service cannot start; the message is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as plain data: what the database keeps and a user reads.

    ``kind`` is the class name without ``Error``; ``blame`` says whose it is; ``place`` is the
    replica or branch it happened at, empty when there is none.
    """

    kind: str
    blame: Blame
    message: str
    hint: str = ""
    retryable: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return asdict(self)


def refusal(record: ErrorRecord, name: str, url: str) -> QueryError | None:
    """Return the error that refuses a request for what a worker found; None if it is no such one.

    Parameters
    ----------
    record
        What it found.
    name
        The field of the request that is at fault.
    url
        The file in which that was seen.
    """
    kinds = {kind.__name__.removesuffix("Error"): kind for kind in _with_subclasses(QueryError)}
    if record.kind not in kinds:
        return None
    hint = "; ".join(filter(None, (record.hint, f"seen in {url}")))
    return kinds[record.kind](f"{name}: {record.message}", hint=hint)


def _with_subclasses(kind: type[QueryError]) -> Iterator[type[QueryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)


_SHOWN = 8
"""Names that are listed where none is near."""

_LONGEST = 300
"""Characters of names that are compared, which takes the square of their number."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return the known names most like ``name``, best first.

    Examples
    --------
    >>> nearest("Muon_ptt", ["Muon_pt", "Muon_eta", "run"])
    ['Muon_pt', 'Muon_eta']
    """
    folded: dict[str, str] = {}
    for one in known if len(name) <= _LONGEST else ():
        if len(one) <= _LONGEST:
            folded.setdefault(one.lower(), one)
    return [folded[hit] for hit in difflib.get_close_matches(name.lower(), folded, n=most)]


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "there is") -> str:
    """Return a hint that names the nearest known names, or some of those there are.

    Examples
    --------
    >>> did_you_mean("evnts", ["events", "runs"])
    'did you mean events?'
    >>> did_you_mean("x", ["events", "runs"], otherwise="the trees are")
    'the trees are events, runs'
    """
    known = list(known)
    if close := nearest(name, known):
        return f"did you mean {' or '.join(close)}?"
    if not known:
        return f"{otherwise} none"
    shown = ", ".join(known[:_SHOWN])
    return f"{otherwise} {shown}" + (", …" if len(known) > _SHOWN else "")
