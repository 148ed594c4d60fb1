"""The data model: requests, datasets, files, replicas, tasks, outcomes.

Frozen data classes, and states with their legal transitions. Without I/O and without libraries.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeAlias

from servicex_server.errors import ErrorRecord
from servicex_server.network.policy import ANYWHERE, NetworkPolicy


def now() -> datetime:
    """Return the current time as an aware datetime in UTC."""
    return datetime.now(UTC)


REQUEST_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
"""Pattern of the id of a request: a UUID as Python writes it."""


class RequestState(StrEnum):
    """The state of a request. Users read the values."""

    SUBMITTED = "Submitted"
    PENDING_LOOKUP = "Pending Lookup"
    LOOKUP = "Lookup"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FATAL = "Fatal"
    CANCELED = "Canceled"
    BAD_DATASET = "Bad Dataset"

    @property
    def terminal(self) -> bool:
        """Whether the state is final."""
        return not REQUEST_TRANSITIONS[self]


_R = RequestState
REQUEST_TRANSITIONS: Mapping[RequestState, frozenset[RequestState]] = {
    _R.SUBMITTED: frozenset(
        {_R.LOOKUP, _R.PENDING_LOOKUP, _R.RUNNING, _R.CANCELED, _R.FATAL, _R.BAD_DATASET}
    ),
    _R.PENDING_LOOKUP: frozenset(
        {_R.LOOKUP, _R.RUNNING, _R.COMPLETE, _R.CANCELED, _R.FATAL, _R.BAD_DATASET}
    ),
    _R.LOOKUP: frozenset({_R.RUNNING, _R.COMPLETE, _R.CANCELED, _R.FATAL, _R.BAD_DATASET}),
    _R.RUNNING: frozenset({_R.COMPLETE, _R.CANCELED, _R.FATAL}),
    _R.COMPLETE: frozenset(),
    _R.FATAL: frozenset(),
    _R.CANCELED: frozenset(),
    _R.BAD_DATASET: frozenset(),
}


class DatasetState(StrEnum):
    """The state of the look-up of a dataset. The values are part of the API."""

    CREATED = "created"
    LOOKING = "looking"
    COMPLETE = "complete"
    DOES_NOT_EXIST = "does_not_exist"
    BAD_NAME = "bad_name"
    INTERNAL_FAILURE = "internal_failure"


class TaskState(StrEnum):
    """The state of the work on one file of one request."""

    WAITING = "waiting"
    RUNNING = "running"
    SPLIT = "split"
    """The splits of the file run as tasks; when all are done, their results are joined."""
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


class ResultFormat(StrEnum):
    """The file format of a result. The values are part of the API."""

    PARQUET = "parquet"
    TTREE = "root-file"
    RNTUPLE = "root-rntuple"

    @property
    def suffix(self) -> str:
        """The end of an object's name, by which the published client recognizes the format."""
        return ".parquet" if self is ResultFormat.PARQUET else ".root"


class Sharing(StrEnum):
    """Whose results a request may reuse if the result key is the same."""

    NONE = "none"
    OWN = "own"
    ALL = "all"


class SandboxChoice(StrEnum):
    """Use of the sandbox for user code: if it works, always, or never."""

    AUTO = "auto"
    BUBBLEWRAP = "bubblewrap"
    NONE = "none"


class Role(StrEnum):
    """The permissions of a principal beyond their own requests, in rising order."""

    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def includes(self, other: "Role") -> bool:
        """Whether this role has all permissions of the other role."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. Queries for requests return only the rows that the principal may read."""

    user: str
    role: Role = Role.USER
    number: int = 0  # of the account
    token: int = 0  # number of the API token that was used
    key_epoch: int = 0  # how often the account's keys were revoked

    @property
    def sees_all(self) -> bool:
        """Whether the principal may read requests of other users."""
        return self.role is not Role.USER

    @property
    def changes_all(self) -> bool:
        """Whether the principal may cancel and delete requests of other users."""
        return self.role is Role.ADMINISTRATOR


class UserState(StrEnum):
    """Whether an account may be used."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class User:
    """An account. ``email`` identifies it, in lower case, and is the owner of its requests."""

    id: int
    email: str
    name: str
    institution: str
    experiment: str
    reason: str
    role: Role
    state: UserState
    created_at: datetime
    last_seen: datetime | None = None
    key_epoch: int = 0


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token by which programs of a user sign in; the service does not store the token itself."""

    id: int
    user_id: int
    name: str
    created_at: datetime
    expires_at: datetime
    last_used: datetime | None = None


LOCAL_USER = Principal("local", Role.ADMINISTRATOR)
"""The only user while sign-in is off."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a file, read directly or ``through`` a cache."""

    url: str
    rse: str = ""
    through: str = ""

    @property
    def place(self) -> str:
        """The URL that is opened."""
        return f"{self.through}//{self.url}" if self.through else self.url


def split_host(entry: str) -> tuple[str, int | None]:
    """Split the port off an entry ``host[:port]`` of ``hosts``.

    Raises
    ------
    ValueError
        It is neither a host nor a pattern.

    Examples
    --------
    >>> split_host("*.CERN.ch:8443"), split_host("[::1]:1094"), split_host("::1")
    (('*.cern.ch', 8443), ('::1', 1094), ('::1', None))
    """
    if not (found := _HOST.fullmatch(entry.strip().lower())):
        raise ValueError(f"hosts: {entry!r} is not a host, a pattern, or host:port")
    name = found["name"] or found["inside"] or found["address"]
    return name, int(found["port"]) if found["port"] else None


_HOST = re.compile(
    r"(?:\[(?P<inside>[0-9a-f:.]+)\]|(?P<name>[^:/@\s]+))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<address>[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*)"
)


@dataclass(frozen=True, slots=True)
class Credential:
    """Credential files, and the hosts to which they are shown: names, or ``*.cern.ch``.

    An entry of ``hosts`` may end in ``:port``.

    The service does not renew the files. Without ``proxy`` and ``token``, it uses the files that
    grid tools find.
    """

    hosts: tuple[str, ...]
    proxy: Path | None = None
    token: Path | None = None

    def __post_init__(self) -> None:
        """Reject an entry without hosts, and relative paths.

        Raises
        ------
        ValueError
            The message names the field.
        """
        if not self.hosts:
            raise ValueError("hosts: at least one name or pattern is needed")
        for host in self.hosts:
            split_host(host)
        for name, path in (("proxy", self.proxy), ("token", self.token)):
            if path is not None and not path.is_absolute():
                raise ValueError(f"{name}: a path from / is needed, not {path}")


@dataclass(frozen=True, slots=True)
class BadReplica:
    """A replica that failed while another replica of the same file worked.

    ``file`` is the name of the file in the catalogue ``finder``, and ``kind`` is the class of the
    error. ``reported`` has the time of the report to each sink.
    """

    id: int
    url: str
    rse: str
    file: str
    finder: str
    kind: str
    message: str
    first_seen: datetime
    last_seen: datetime
    times: int
    reported: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a dataset; ``size`` in bytes, ``events`` and ``size`` 0 while unknown.

    ``name`` is its name in the catalogue, or empty if only its URL is known. A file without
    replicas fails alone. ``adler32`` has eight hexadecimal digits.
    """

    replicas: tuple[Replica, ...]
    size: int = 0
    events: int = 0
    adler32: str | None = None
    name: str = ""

    @property
    def path(self) -> str:
        """The first replica, or else the name in the catalogue: users know the file by it."""
        return self.replicas[0].url if self.replicas else self.name

    @property
    def key(self) -> str:
        """Identifies the file in its dataset: its name if it has one, as replicas may change."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of files, as a finder found it."""

    id: int
    name: str
    finder: str
    owner: str | None
    state: DatasetState
    message: str
    n_files: int
    size: int
    events: int
    last_used: datetime
    last_updated: datetime
    stale: bool
    reference: Any = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a user and its progress. The counters are derived from the task rows.

    ``events`` is the number of events that were read, and ``events_kept`` the number in the
    results; None if it is not known for every result. The results of a ``pinned`` request are
    never evicted.
    """

    id: str
    title: str | None
    owner: str
    dataset_id: int
    did: str
    language: str
    selection: str
    format: ResultFormat
    state: RequestState
    submitted_at: datetime
    finished_at: datetime | None
    failure: str
    app_version: str
    file_seconds: float | None = None
    files: int = 0
    completed: int = 0
    failed: int = 0
    events: int = 0
    events_kept: int | None = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """A request, and ``left``, the number of its files that wait or run.

    ``mean`` is the mean size of its results in bytes; None while it has none.
    """

    request_id: str
    owner: str
    left: int
    mean: float | None = None


Entries: TypeAlias = tuple[int, int]
"""A range of entries of a tree: the first entry, and the entry after the last."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the work on one file: seconds of wall time, bytes of memory.

    ``stall`` is the seconds without progress, ``opening`` the seconds for connecting to a server,
    and ``silence`` the seconds in which a server may send nothing. ``upload`` is the seconds for
    which an upload is tried again while the object store is in trouble. ``chunk`` is the bytes of
    columns in memory at a time. A file with many more bytes of columns than ``part`` is processed
    in splits. ``network`` is the servers that may be connected to, and ``folders`` the folders
    below which local files may be read.
    """

    seconds: float = 3600.0
    stall: float = 300.0
    opening: float = 20.0
    silence: float = 30.0
    upload: float = 120.0
    memory: int = 2 << 30
    chunk: int = 32 << 20
    part: int = 128 << 20
    network: NetworkPolicy = ANYWHERE
    folders: tuple[Path, ...] = (Path("/"),)


SPECULATIVE = "/speculative"
"""The end of the key of a speculative read."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """All that a worker has to know about one file. It contains no credential of the service.

    ``size`` and ``adler32`` come from the catalogue. ``credentials`` has paths of files, and not
    their contents. If ``whole`` is set, the worker downloads the whole file and compares size and
    checksum before it reads the file. If ``speculative`` is set, the task is a speculative read:
    another task for the same file runs and is slow. ``sandbox`` says how a query that is code is
    run. If ``joins`` is not empty, the task joins the results of all splits of the file, which are
    at these URLs, in order.
    """

    request_id: str
    file_id: int
    attempt: int
    replicas: tuple[Replica, ...]
    language: str
    selection: str
    format: ResultFormat
    object_name: str
    upload_url: str
    limits: Limits
    entries: Entries | None = None
    name: str = ""
    size: int = 0
    adler32: str | None = None
    whole: bool = False
    credentials: tuple[Credential, ...] = ()
    speculative: bool = False
    sandbox: SandboxChoice = SandboxChoice.AUTO
    joins: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The first replica, or else the name in the catalogue: users know the file by it."""
        return self.replicas[0].url if self.replicas else self.name

    @property
    def key(self) -> str:
        """The name of this attempt, unique over the life of the service."""
        return _task_key(self)


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A query and one file for a dry run, before the request is accepted."""

    replicas: tuple[Replica, ...]
    language: str
    selection: str
    format: ResultFormat
    limits: Limits = Limits()
    credentials: tuple[Credential, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A replica that is opened to learn the health of its storage endpoint."""

    url: str
    limits: Limits = Limits()
    credentials: tuple[Credential, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to read one replica; ``error`` is None if it worked."""

    url: str
    seconds: float
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the work on one file, or a split of it. Sizes in bytes, times in seconds.

    If ``parts`` is not empty, the file was not processed, because it should run in these splits.
    """

    request_id: str
    file_id: int
    attempt: int
    entries: Entries | None = None
    parts: tuple[Entries, ...] = ()
    error: ErrorRecord | None = None
    attempts: tuple[Attempt, ...] = ()
    url: str = ""
    events_read: int = 0
    events_written: int | None = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    worker: str = ""
    log_tail: str = ""
    speculative: bool = False

    @property
    def of(self) -> str:
        """The key of the attempt's `TaskSpec`; for a speculative read, that of the first read."""
        return self.key.removesuffix(SPECULATIVE)

    @property
    def key(self) -> str:
        """The key of the attempt's `TaskSpec`."""
        return _task_key(self)


def _task_key(task: TaskSpec | Outcome) -> str:
    part = f"{task.entries[0]}-{task.entries[1]}" if task.entries else "all"
    speculative = SPECULATIVE if task.speculative else ""
    return f"{task.request_id}/{task.file_id}/{part}/{task.attempt}{speculative}"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker: its address, and the key of its task (empty when idle). Memory in bytes.

    ``since`` is when its task, or its idle time, began. ``problem`` says why it gets no tasks.
    """

    address: str
    name: str = ""
    memory: int = 0
    memory_limit: int = 0
    task: str = ""
    since: datetime | None = None
    done: int = 0
    last_error: str = ""
    problem: str = ""


_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def object_name(
    position: int,
    file: InputFile,
    result_format: ResultFormat,
    entries: Entries | None = None,
) -> str:
    """Name the result of a file: flat, safe, at most 60 characters, stable, unique by position.

    The names of the splits of a file sort in the order of their entries.

    The published client turns names into local paths and guesses the format from the first of
    ``.root`` and ``.parquet`` in them, so the stem does not contain a dot.

    Examples
    --------
    >>> from servicex_server.model import InputFile, Replica, ResultFormat
    >>> file = InputFile((Replica("root://host//store/Zμμ v1.root"),))
    >>> object_name(7, file, ResultFormat.PARQUET)
    '000007_Z_v1_f32fde90.parquet'
    >>> object_name(7, file, ResultFormat.PARQUET, (250_000, 500_000))
    '000007_000000250000_Z_v1_f32fde90.parquet'
    """
    last = file.key.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".root")
    part = f"{entries[0]:012d}" if entries else ""
    stem = _UNSAFE.sub("_", last).strip("_")[: 16 if part else 28]
    mark = sha1(file.key.encode(), usedforsecurity=False).hexdigest()[:8]
    return "_".join(filter(None, (f"{position:06d}", part, stem, mark))) + result_format.suffix
