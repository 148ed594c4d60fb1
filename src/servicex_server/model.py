"""What the service talks about: requests, datasets, files, replicas, tasks, outcomes.

Frozen data and states with their legal transitions. No I/O, no libraries.
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


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


class RequestState(StrEnum):
    """Where a request is in its life. The values are what a user reads."""

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
        """Whether nothing follows."""
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
    """How far the look-up of a dataset is. The values are on the wire."""

    CREATED = "created"
    LOOKING = "looking"
    COMPLETE = "complete"
    DOES_NOT_EXIST = "does_not_exist"
    BAD_NAME = "bad_name"
    INTERNAL_FAILURE = "internal_failure"


class TaskState(StrEnum):
    """Where the work on one file of one request is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


class ResultFormat(StrEnum):
    """What a result is written as. The values are on the wire."""

    PARQUET = "parquet"
    TTREE = "root-file"
    RNTUPLE = "root-rntuple"

    @property
    def suffix(self) -> str:
        """End of the object's name: the published client tells formats apart by it."""
        return ".parquet" if self is ResultFormat.PARQUET else ".root"


class Sharing(StrEnum):
    """Whose results may be the result of another request, where the work is the same."""

    NONE = "none"
    OWN = "own"
    ALL = "all"


class Role(StrEnum):
    """What a principal may do beyond their own things."""

    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Every row is read through one."""

    user: str
    role: Role = Role.USER

    @property
    def sees_all(self) -> bool:
        """Whether other people's requests may be read."""
        return self.role is not Role.USER

    @property
    def changes_all(self) -> bool:
        """Whether other people's requests may be cancelled and deleted."""
        return self.role is Role.ADMINISTRATOR


class UserState(StrEnum):
    """Whether an account may be used."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class User:
    """An account. ``email`` is who they are: lower case, and the owner of their requests."""

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


@dataclass(frozen=True, slots=True)
class ApiToken:
    """What a user's programs sign in with; the token itself is known to nobody but them."""

    id: int
    user_id: int
    name: str
    created_at: datetime
    expires_at: datetime
    last_used: datetime | None = None


LOCAL_USER = Principal("local", Role.ADMINISTRATOR)
"""The one user there is while sign-in is off."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One place where a file can be read, directly or ``through`` a cache."""

    url: str
    rse: str = ""
    through: str = ""

    @property
    def place(self) -> str:
        """The URL that is opened."""
        return f"{self.through}//{self.url}" if self.through else self.url


@dataclass(frozen=True, slots=True)
class Credential:
    """Files that say who reads, and the hosts to which they are shown: names, or ``*.cern.ch``.

    Something else renews the files. Without any they are those that tools of the grid find.
    """

    hosts: tuple[str, ...]
    proxy: Path | None = None
    token: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what can be for nobody, or would be looked for in any folder."""
        if not self.hosts:
            raise ValueError("hosts: at least one name or pattern is needed")
        for name, path in (("proxy", self.proxy), ("token", self.token)):
            if path is not None and not path.is_absolute():
                raise ValueError(f"{name}: a path from / is needed, not {path}")


@dataclass(frozen=True, slots=True)
class BadReplica:
    """A replica that failed where another one of the same file worked.

    ``file`` is what the catalogue ``finder`` calls the file, ``kind`` the class of the error,
    ``reported`` when each sink has had word of it.
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

    ``name`` is what its catalogue calls it; empty where a file is known by its place only. One
    without replicas fails, and no other with it. ``adler32`` has eight hexadecimal digits.
    """

    replicas: tuple[Replica, ...]
    size: int = 0
    events: int = 0
    adler32: str | None = None
    name: str = ""

    @property
    def path(self) -> str:
        """What users know the file by."""
        return self.replicas[0].url if self.replicas else self.name

    @property
    def key(self) -> str:
        """What it is told by from others; the order of replicas may be another one tomorrow."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of files as a finder found it."""

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
    """What a user asked for, and how far it is. The counters are derived from the task rows."""

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


@dataclass(frozen=True, slots=True)
class Demand:
    """A request with files that have not ended: how many wait or run."""

    request_id: str
    owner: str
    left: int


Entries: TypeAlias = tuple[int, int]
"""A range of entries of a tree: the first, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the work on one file may use: seconds of wall time, bytes of memory.

    ``stall`` is the seconds it may be without going on; ``opening`` and ``silence`` those that a
    server has to take a connection, and may be without sending a byte. ``chunk`` is the bytes of
    columns that are held at a time; a file with many more bytes of them than ``part`` is done in
    parts.
    """

    seconds: float = 3600.0
    stall: float = 300.0
    opening: float = 20.0
    silence: float = 30.0
    memory: int = 2 << 30
    chunk: int = 32 << 20
    part: int = 128 << 20


RACED = "/raced"
"""The end of the key of a task that is raced."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """All that a worker needs to know about one file: no more, and no credential of ours.

    ``size`` and ``adler32`` are what the catalogue has; of ``credentials`` only the places. A file
    that is to be ``whole`` is fetched and held against both before it is read. One that is
    ``raced`` is done for the second time at this moment, because the first is slow.
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
    raced: bool = False

    @property
    def path(self) -> str:
        """What users know the file by."""
        return self.replicas[0].url if self.replicas else self.name

    @property
    def key(self) -> str:
        """Name of this attempt, unique over the life of the service."""
        return _task_key(self)


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A query and one file, to be held against each other before there is a request."""

    replicas: tuple[Replica, ...]
    language: str
    selection: str
    format: ResultFormat
    limits: Limits = Limits()
    credentials: tuple[Credential, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A replica that is looked at, to know how its door does."""

    url: str
    limits: Limits = Limits()
    credentials: tuple[Credential, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one replica; ``error`` is None for the one that worked."""

    url: str
    seconds: float
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the work on one file, or a part of it, ended. Sizes in bytes, times in seconds.

    ``parts`` tells that nothing was done, because the file is better done in these parts.
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
    events_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    worker: str = ""
    log_tail: str = ""
    raced: bool = False

    @property
    def of(self) -> str:
        """Name of the attempt that ended, as its `TaskSpec` has it if it is not raced."""
        return self.key.removesuffix(RACED)

    @property
    def key(self) -> str:
        """Name of the attempt that ended, as its `TaskSpec` has it."""
        return _task_key(self)


def _task_key(task: TaskSpec | Outcome) -> str:
    part = f"{task.entries[0]}-{task.entries[1]}" if task.entries else "all"
    raced = RACED if task.raced else ""
    return f"{task.request_id}/{task.file_id}/{part}/{task.attempt}{raced}"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker: where it is, and the task it is on (empty when idle). Memory in bytes.

    ``since`` tells for how long it has been on its task, or idle; ``problem`` why it gets no tasks.
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

    The names of the parts of a file are in the order of their entries.

    The published client turns names into local paths and guesses the format from the first of
    ``.root`` and ``.parquet`` it finds, so the stem holds no dot.

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
