"""The objects that the API returns, as types: mypy holds the code to them, OpenAPI shows them.

Upstream's names stay as they are, with dashes or underscores. Times are texts of ISO 8601 in UTC.
"""

from typing import Literal

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

Info = TypedDict(
    "Info",
    {"app-version": str, "code-gen-image": dict[str, str], "capabilities": list[str]},
)
"""Version, query languages and capabilities of the service."""


class AccessToken(TypedDict):
    """An access token; with a message while sign-in is disabled."""

    access_token: str
    auth_disabled: bool


class AnonymousToken(AccessToken):
    """An access token of a service without sign-in."""

    message: str


class Submitted(TypedDict):
    """A request that was accepted."""

    request_id: str


class Sentence(TypedDict):
    """A sentence about what was done."""

    message: str


RequestFields = TypedDict(
    "RequestFields",
    {
        "request_id": str,
        "title": str | None,
        "did": str,
        "did_id": int,
        "selection": str,
        "tree-name": None,
        "image": str,
        "workers": None,
        "result-destination": str,
        "result-format": str,
        "generated-code-cm": str,
        "status": str,
        "failure-info": str | None,
        "app-version": str,
        "code-gen-image": str,
        "files": int,
        "files-completed": int,
        "files-failed": int,
        "files-remaining": int | None,
        "events": int,
        "events-kept": int | None,
        "pinned": bool,
        "submit-time": str,
        "finish-time": str,
    },
)
"""A request and its counters."""

_Keys = TypedDict(
    "_Keys",
    {
        "minio-endpoint": str,
        "minio-secured": bool,
        "minio-access-key": str,
        "minio-secret-key": str,
        "log-url": str,
    },
)


class TransformRequest(RequestFields, _Keys):
    """A request, its counters, and the keys of its bucket."""


class TransformRequests(TypedDict):
    """A list of requests."""

    requests: list[TransformRequest]


Statistics = TypedDict(
    "Statistics",
    {
        "min-time": int,
        "max-time": int,
        "avg-time": float,
        "total-time": int,
        "avg-rate": float,
        "total-bytes": int,
        "total-events": int,
        "total-events-kept": int | None,
    },
)
"""Seconds, bytes and events of the finished files of a request."""

Result = TypedDict(
    "Result",
    {
        "id": int,
        "request-id": str,
        "file-id": int,
        "file-path": str,
        "transform_status": Literal["success", "failure"],
        "transform_time": int,
        "total-events": int,
        "total-events-kept": int | None,
        "total-bytes": int,
        "avg-rate": float,
        "s3-object-name": str | None,
        "created_at": str,
    },
)
"""A file that has ended."""

Status = TypedDict(
    "Status",
    {
        "status": str,
        "request-id": str,
        "submit-time": str,
        "finish-time": str | None,
        "files-completed": int,
        "files-processed": int,
        "files-failed": int,
        "files-skipped": int,
        "files-remaining": int | None,
        "stats": Statistics | None,
    },
)
"""The progress of a request, as clients before version 3 poll it."""


class StatusWithDetails(Status, total=False):
    """The progress of a request, with its ended files if ``details`` was asked for."""

    details: list[Result]


class Results(TypedDict):
    """The files of a request that have ended."""

    results: list[Result]


Try = TypedDict(
    "Try", {"replica": str, "seconds": float, "class": str | None, "message": str | None}
)
"""An attempt to read a replica; ``class`` and ``message`` are those of its error, if any."""

Failure = TypedDict(
    "Failure",
    {
        "pod-name": str,
        "file": str,
        "events": int,
        "info": str,
        "file-id": int,
        "class": str,
        "blame": str,
        "message": str,
        "hint": str,
        "retryable": bool,
        "replicas": list[str],
        "attempts": list[Try],
        "worker": str,
        "time": str,
        "log-tail": str,
    },
)
"""A file that failed: its error, its attempts, who is to blame, and what to do."""


class Failures(TypedDict):
    """The files of a request that failed."""

    errors: list[Failure]


class Links(TypedDict):
    """A presigned URL for each result, its form fields (none), and when it expires (Unix time)."""

    uris: dict[str, tuple[str, dict[str, str], int]]


class KnownDataset(TypedDict):
    """A dataset."""

    id: int
    name: str
    did_finder: str
    n_files: int
    size: int
    events: int
    last_used: str
    last_updated: str
    lookup_status: str
    message: str
    is_stale: bool


class KnownDatasets(TypedDict):
    """A list of datasets."""

    datasets: list[KnownDataset]


class DatasetFile(TypedDict):
    """A file of a dataset; ``paths`` are its replicas, separated by commas."""

    id: int
    adler32: str | None
    file_size: int
    file_events: int
    paths: str


class DatasetWithFiles(KnownDataset):
    """A dataset and its files."""

    files: list[DatasetFile]


StaleDataset = TypedDict("StaleDataset", {"dataset-id": int, "stale": bool})
"""A dataset that is looked up again for the next request."""

QueuedRequest = TypedDict(
    "QueuedRequest",
    {
        "request_id": str,
        "title": str | None,
        "user": str,
        "status": str,
        "submit-time": str,
        "files": int,
        "waiting": int,
        "running": int,
        "done": int,
        "failed": int,
        "events": int,
        "events-kept": int | None,
        "files-per-minute": float,
        "seconds-left": float | None,
    },
)
"""An active request and its progress."""


class Queue(TypedDict):
    """The active requests."""

    requests: list[QueuedRequest]


Worker = TypedDict(
    "Worker",
    {
        "name": str,
        "address": str,
        "state": Literal["idle", "busy", "unfit"],
        "problem": str | None,
        "request_id": str | None,
        "file": str | None,
        "since": str | None,
        "memory": int,
        "memory-limit": int,
        "files-done": int,
        "last-error": str | None,
    },
)
"""A worker and what it does."""

Workers = TypedDict(
    "Workers",
    {
        "workers": list[Worker],
        "workers-wanted": int,
        "workers-pending": int,
        "reason": str,
        "scheduler": str | None,
        "time": str | None,
        "age": float | None,
    },
)
"""The workers, how many are wanted, and why."""

Endpoint = TypedDict(
    "Endpoint",
    {
        "endpoint": str,
        "site": str | None,
        "state": Literal["healthy", "degraded", "open"],
        "since": str,
        "attempts": int,
        "worked": int,
        "failed": dict[str, int],
        "rate": float,
        "bytes-per-second": int,
        "bad-replicas": int,
        "reported": int,
        "last-error": str | None,
    },
)
"""The health of a storage endpoint."""


class Endpoints(TypedDict):
    """The health of all storage endpoints."""

    sites: list[Endpoint]
    time: str | None
    age: float | None


class StoredResult(TypedDict):
    """A result in the object store."""

    key: str
    user: str
    bytes: int
    used: str


class UserBytes(TypedDict):
    """The results of a user in the object store."""

    user: str
    bytes: int


class ExperimentBytes(TypedDict):
    """The results of the users of an experiment in the object store."""

    experiment: str
    bytes: int


class DayBytes(TypedDict):
    """The bytes of results at the end of a day."""

    day: str
    bytes: int


AgedBytes = TypedDict("AgedBytes", {"used-within-days": int | None, "results": int, "bytes": int})
"""The results that were last used within so many days, and before the days of the entry before."""


Storage = TypedDict(
    "Storage",
    {
        "bytes": int,
        "capacity": int | None,
        "evicts-above": int | None,
        "problem": str | None,
        "unused-days": float | None,
        "users": list[UserBytes],
        "experiments": list[ExperimentBytes],
        "days": list[DayBytes],
        "growth": float | None,
        "ages": list[AgedBytes],
        "next": list[StoredResult],
        "time": str | None,
        "age": float | None,
    },
)
"""What the object store holds, and what is evicted next."""


class Probe(TypedDict):
    """The outcome of a probe."""

    replica: str
    seconds: float
    error: str | None
    message: str | None


class Probes(TypedDict):
    """The outcomes of probes."""

    probes: list[Probe]


BadReplica = TypedDict(
    "BadReplica",
    {
        "replica": str,
        "rse": str | None,
        "file": str | None,
        "error": str,
        "message": str,
        "first-seen": str,
        "last-seen": str,
        "times": int,
        "reported": dict[str, str],
    },
)
"""A replica that failed while another one worked."""


class BadReplicas(TypedDict):
    """The bad replicas."""

    replicas: list[BadReplica]


class Alive(TypedDict):
    """The process answers."""

    status: Literal["alive"]


class Ready(TypedDict):
    """The process can work."""

    status: Literal["ready"]
    leads: bool


class ReadyLeader(Ready):
    """The process can work, and leads."""

    workers: int


class DeviceCode(TypedDict):
    """A code that a user types on a page of this service (RFC 8628, 3.2)."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class DeviceToken(TypedDict):
    """The API token of a program that a user has confirmed (RFC 8628, 3.5)."""

    access_token: str
    token_type: Literal["Bearer"]
    user: str
