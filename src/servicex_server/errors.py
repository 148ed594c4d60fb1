"""All errors that a user, an operator or a client can see.

::

    ServiceXError
    ├── RequestError              400  a field of the request is invalid
    │   ├── QueryError            400  the query is invalid
    │   │   ├── UnknownNameError  400  a tree, branch or function does not exist
    │   │   ├── QueryTypeError    400  shapes or types do not fit together
    │   │   ├── FormatError       400  the output format cannot store the result
    │   │   └── FunctionError     400  the user's own function failed
    │   ├── DatasetError          400  the dataset reference is invalid
    │   │   └── UnknownDatasetError    the catalogue does not have the dataset
    │   ├── TooLargeError         413  a size limit is exceeded
    │   └── TooManyError          429  a rate limit or a quota is reached
    ├── CatalogueError                 the catalogue does not answer, or refuses the service
    │   └── CatalogueDeniedError       the catalogue denies access, so a retry does not help
    ├── NotFoundError             404  it does not exist, or belongs to another user
    ├── StateError                400  its state does not allow the operation
    ├── SignInError               401  the caller is not authenticated
    │   └── UnknownTokenError     401  the service did not issue the token, or has revoked it
    ├── IssuerError               503  the OIDC provider does not answer
    ├── ForbiddenError            403  the role of the caller does not allow the operation
    ├── ReplicaError                   one replica of a file could not be read
    │   ├── MissingError               the file does not exist there
    │   ├── UnreachableError           the server cannot be reached
    │   ├── DeniedError                the server refused the credential
    │   │   └── ExpiredError           the credential expired, so no server was asked
    │   ├── ForbiddenHostError         the settings forbid a connection to the server
    │   ├── SlowError                  the server sent no bytes in time
    │   ├── TruncatedError             the file ends too early
    │   └── CorruptError               the content of the file is invalid
    │       └── ChecksumError          the checksum differs from that of the catalogue
    ├── UnreadableError                the branch has a type that no reader supports
    ├── ResourceError                  the work reached a limit of the machine
    │   ├── OutOfMemoryError
    │   ├── OutOfTimeError
    │   ├── OverdueError
    │   ├── DiskFullError
    │   │   └── ScratchFullError       no attempt is counted
    │   └── WorkerDiedError
    ├── SandboxError                   the sandbox of a worker does not work
    ├── UploadError                    the object store refused a result
    │   └── StoreUnavailableError 503  it cannot be reached, or is full; no attempt is counted
    ├── DatabaseFullError         503  the disk of SQLite is full
    ├── DownloadError                  the object store did not return the result of a split
    ├── InternalError             500  a defect of the service
    └── StartupError                   the service cannot start; the message is one line

``blame`` says who or what has to change. ``retryable`` says whether a retry can help. A worker
reports the error of a file as an `ErrorRecord`, which is plain data and is stored in the database.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeGuard

from servicex_server.text.escaping import redacted

Blame = Literal["query", "dataset", "file", "replica", "site", "credential", "service", "resource"]


class ServiceXError(Exception):
    """Base class of the errors that this package raises on purpose.

    Parameters
    ----------
    message
        What is wrong, in a sentence that a physicist understands.
    hint
        What to do. Empty if the message says it.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    blame: ClassVar[Blame] = "service"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = storable(redacted(message))
        self.hint = storable(redacted(hint))
        super().__init__(self.message)

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


def storable(text: str) -> str:
    r"""Escape the characters that a database or a JSON response cannot store.

    Names in files and queries may contain lone surrogates and NUL characters.

    Examples
    --------
    >>> print(storable("no branch \udcff\0"))
    no branch \udcff\0
    """
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def _rebuild(cls: type[ServiceXError], message: str, hint: str) -> ServiceXError:
    return cls(message, hint=hint)


class RequestError(ServiceXError):
    """A field of the request is not valid. The message begins with the name of the field."""

    status = 400
    blame: ClassVar[Blame] = "query"


class QueryError(RequestError):
    """The query is not valid."""


class UnknownNameError(QueryError):
    """A tree, branch, alias or function does not exist.

    The message names the nearest existing names.
    """


class QueryTypeError(QueryError):
    """Shapes or types do not fit together."""


class FormatError(QueryError):
    """The output format cannot hold the result."""


class FunctionError(QueryError):
    """The user's Python function failed, or did not return columns."""


class DatasetError(RequestError):
    """The dataset reference is not valid."""

    blame: ClassVar[Blame] = "dataset"


class UnknownDatasetError(DatasetError):
    """The catalogue does not have this dataset."""


class CatalogueError(ServiceXError):
    """The catalogue does not respond, or its response cannot be used."""

    status = 503
    retryable = True
    blame: ClassVar[Blame] = "site"


class CatalogueDeniedError(CatalogueError):
    """The catalogue refuses the service.

    A credential is missing, has expired, or is not sufficient.
    """

    retryable = False
    blame: ClassVar[Blame] = "credential"


class TooLargeError(RequestError):
    """A limit on size is exceeded. The message names the limit."""

    status = 413


class TooManyError(RequestError):
    """A user has reached a quota, or an address a rate limit.

    The message names the limit, the present use, and when to try again.

    ``seconds`` is the time until a retry can succeed, if it is known.
    """

    status = 429
    seconds: float | None = None


class NotFoundError(ServiceXError):
    """The object does not exist, or belongs to another user."""

    status = 404
    blame: ClassVar[Blame] = "query"


class StateError(ServiceXError):
    """The object is in a state in which this action is not possible."""

    status = 400
    blame: ClassVar[Blame] = "query"


class SignInError(ServiceXError):
    """The caller is not authenticated."""

    status = 401
    blame: ClassVar[Blame] = "credential"


class UnknownTokenError(SignInError):
    """The service did not issue this token, or the token is no longer valid."""


class IssuerError(ServiceXError):
    """The OpenID Connect provider does not respond, or its response is not valid."""

    status = 503
    blame: ClassVar[Blame] = "credential"


class ForbiddenError(ServiceXError):
    """The caller's role may not change this object, or may not use this query language."""

    status = 403
    blame: ClassVar[Blame] = "credential"


class ReplicaError(ServiceXError):
    """One replica of a file could not be read."""

    blame: ClassVar[Blame] = "replica"


class MissingError(ReplicaError):
    """The file does not exist at this location."""


class UnreachableError(ReplicaError):
    """The connection to the storage endpoint fails.

    It is refused, the host is unknown, TLS fails, or connecting times out.
    """

    retryable = True
    blame: ClassVar[Blame] = "site"


class DeniedError(ReplicaError):
    """The server rejected the credential."""

    retryable = True
    blame: ClassVar[Blame] = "credential"


class ExpiredError(DeniedError):
    """The credential has expired or cannot be read. The service sent it to no server."""


class ForbiddenHostError(ReplicaError):
    """The settings of the service forbid connections to this server. Nothing was sent to it."""

    blame: ClassVar[Blame] = "dataset"


class SlowError(ReplicaError):
    """The server sent no bytes in time."""

    retryable = True
    blame: ClassVar[Blame] = "site"


class TruncatedError(ReplicaError):
    """The file ends before its content does."""


class CorruptError(ReplicaError):
    """The content of the file is not valid.

    It is not a ROOT file, its compression is bad, or its structure cannot be read.
    """


class ChecksumError(CorruptError):
    """The file was read completely, and its checksum differs from the catalogue's."""


class UnreadableError(ServiceXError):
    """A branch has a type that no reader supports. The message names the branch."""

    blame: ClassVar[Blame] = "file"


class ResourceError(ServiceXError):
    """The work reached a limit of the machine."""

    blame: ClassVar[Blame] = "resource"


class OutOfMemoryError(ResourceError):
    """The work needed more memory than a worker may use."""


class OutOfTimeError(ResourceError):
    """The user's Python function exceeded its time limit."""


class OverdueError(ResourceError):
    """The work exceeded its time limit or made no progress.

    The service ended it together with its worker.
    """

    retryable = True


class DiskFullError(ResourceError):
    """The disk on which the result is written is full."""

    retryable = True


class ScratchFullError(DiskFullError):
    """The worker has no space to write a result.

    It is not the fault of a file, so it costs a file none of its attempts: the file waits, and then
    runs on another worker if there is one.
    """


class WorkerDiedError(ResourceError):
    """The worker process ended while it worked on this file."""

    retryable = True


class SandboxError(ServiceXError):
    """The sandbox of this worker does not work, so the worker runs no user code.

    Another worker may succeed.
    """

    retryable = True


class UploadError(ServiceXError):
    """The object store refused a result."""

    retryable = True


class ResultTooLargeError(UploadError):
    """The result of one file is larger than the object store accepts in one upload."""

    blame: ClassVar[Blame] = "query"
    retryable = False


class StoreUnavailableError(UploadError):
    """The object store cannot be reached, or has no room for a result.

    It is not the fault of a file, so it costs a file none of its attempts: the file waits until the
    store works again.
    """

    status = 503


class DatabaseFullError(ServiceXError):
    """The disk of the database is full. Requests can be canceled and deleted, but not added."""

    status = 503


class DownloadError(ServiceXError):
    """The object store did not return the result of a split of a file, or did not respond."""

    retryable = True


class InternalError(ServiceXError):
    """An error in the service itself.

    The response has a number under which the log has the details.
    """


class StartupError(ServiceXError):
    """The service cannot start. One line says why."""


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as plain data, as the database stores it and a user reads it.

    ``kind`` is the class name without ``Error``; ``blame`` says who or what has to change.
    """

    kind: str
    blame: Blame
    message: str
    hint: str = ""
    retryable: bool = False

    def __post_init__(self) -> None:
        """Redact texts of workers, and of older versions of the service."""
        object.__setattr__(self, "message", redacted(self.message))
        object.__setattr__(self, "hint", redacted(self.hint))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return asdict(self)


def is_store_unavailable(record: ErrorRecord | None) -> TypeGuard[ErrorRecord]:
    """Whether the object store is away or full, which is not the fault of a file."""
    return record is not None and record.kind == "StoreUnavailable"


def costs_no_attempt(record: ErrorRecord | None) -> bool:
    """Whether an error is the fault of the service's own disks, so that the file is tried again."""
    return record is not None and record.kind in ("StoreUnavailable", "ScratchFull")


def refusal(record: ErrorRecord, name: str, url: str) -> QueryError | None:
    """Return the error that rejects a request because of its dry run; None if it does not.

    Parameters
    ----------
    record
        The error that the dry run found.
    name
        The field of the request that is at fault.
    url
        The file that was used for the dry run.
    """
    kinds = {kind.__name__.removesuffix("Error"): kind for kind in _with_subclasses(QueryError)}
    kinds["Unreadable"] = QueryError  # it names what cannot be read
    if record.kind not in kinds:
        return None
    hint = "; ".join(filter(None, (record.hint, f"seen in {url}")))
    return kinds[record.kind](f"{name}: {record.message}", hint=hint)


def _with_subclasses(kind: type[QueryError]) -> Iterator[type[QueryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)
