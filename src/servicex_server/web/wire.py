"""The names on the wire: what clients send, and what they are answered.

The published client checks these objects strictly in places; what each key has to be is in the
HTTP reference of the documentation.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from servicex_server.database.ended_files import EndedFile, FailedFile
from servicex_server.database.open_requests import Queued
from servicex_server.database.snapshots import Snapshot
from servicex_server.model import (
    Attempt,
    BadReplica,
    Dataset,
    InputFile,
    Request,
    ResultFormat,
    TaskState,
)
from servicex_server.replicas import door_of
from servicex_server.submission import Order


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("there is a NUL character in it")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
"""What can be stored in every database."""


_MESSAGE = {"type": "string", "description": "What is wrong and what would be right."}
_ERROR = {
    "application/json": {
        "schema": {"type": "object", "properties": {"message": _MESSAGE}, "required": ["message"]}
    }
}

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"content": _ERROR, "description": "What is asked cannot be done so."},
    "503": {"content": _ERROR, "description": "Not at the moment: try again in a few seconds."},
}
"""How every route may answer beside what it is for."""


class SubmitBody(BaseModel):
    """Body of ``POST /servicex/transformation``. Keys that are not named here are ignored."""

    model_config = ConfigDict(alias_generator=_dashed, extra="ignore", strict=True)

    title: Text | None = Field(default=None, description="Shown to the user in lists.")
    did: Text | None = Field(default=None, description="Dataset reference, `scheme://name`.")
    file_list: list[str] | None = Field(default=None, description="Paths and URLs of files.")
    selection: Text = Field(description="The query, in the language that `codegen` names.")
    codegen: str = Field(description="The query language.")
    result_destination: Literal["object-store"] = Field(description="Where results go.")
    result_format: Literal["parquet", "root-file", "root-rntuple"] = Field(
        default="parquet", description="What results are written as."
    )
    file_seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that the work on one file may take, where the service allows more.",
    )

    def order(self) -> Order:
        """Return what is asked for, in the service's own words."""
        return Order(
            selection=self.selection,
            language=self.codegen,
            format=ResultFormat(self.result_format),
            did=self.did,
            files=self.file_list,
            title=self.title,
            file_seconds=self.file_seconds,
        )


class FileUrlsBody(BaseModel):
    """Body of ``POST /servicex/transformation/file-urls``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    request_id: Text
    file_list: list[Text]


class Message(BaseModel):
    """Every error, and every answer that is only a sentence."""

    message: str


def wire_time(moment: datetime) -> str:
    """Return a time as upstream writes it: UTC, microseconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def cursor_time(moment: datetime) -> str:
    """Return a time that Python before 3.11 can read back: naive UTC, no ``Z``."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def request_json(request: Request) -> dict[str, Any]:
    """Return a request with the keys of the wire, without the keys of its bucket."""
    known = request.files > 0
    finished = wire_time(request.finished_at) if request.finished_at else "None"
    return {
        "request_id": request.id,
        "title": request.title,
        "did": request.did,
        "did_id": request.dataset_id,
        "selection": request.selection,
        "tree-name": None,
        "image": "none",
        "workers": None,
        "result-destination": "object-store",
        "result-format": request.format.value,
        "generated-code-cm": "none",
        "status": request.state.value,
        "failure-info": request.failure or None,
        "app-version": request.app_version,
        "code-gen-image": request.language,
        "files": request.files,
        "files-completed": request.completed,
        "files-failed": request.failed,
        "files-remaining": request.files - request.completed - request.failed if known else None,
        "submit-time": wire_time(request.submitted_at),
        "finish-time": finished,
    }


def status_json(request: Request, stats: dict[str, float] | None) -> dict[str, Any]:
    """Return the short status that clients before version 3 poll."""
    remaining = request.files - request.completed - request.failed
    return {
        "status": request.state.value,
        "request-id": request.id,
        "submit-time": wire_time(request.submitted_at),
        "finish-time": wire_time(request.finished_at) if request.finished_at else None,
        "files-completed": request.completed,
        "files-processed": request.completed,
        "files-failed": request.failed,
        "files-skipped": request.failed,
        "files-remaining": remaining if request.files else None,
        "stats": None if stats is None else _stats_json(stats),
    }


def _stats_json(stats: dict[str, float]) -> dict[str, float]:
    total = float(stats["total"])
    return {
        "min-time": int(stats["least"]),
        "max-time": int(stats["most"]),
        "avg-time": total / stats["count"],
        "total-time": int(total),
        "avg-rate": float(stats["events"]) / total if total else 0.0,
        "total-bytes": int(stats["bytes"]),
        "total-events": int(stats["events"]),
    }


def result_json(request_id: str, ended: EndedFile) -> dict[str, Any]:
    """Return one ended file."""
    success = ended.state is TaskState.DONE
    return {
        "id": ended.id,
        "request-id": request_id,
        "file-id": ended.file_id,
        "file-path": ended.path,
        "entries": ended.entries,
        "transform_status": "success" if success else "failure",
        "transform_time": int(ended.seconds),
        "total-events": ended.events,
        "total-bytes": ended.bytes,
        "avg-rate": ended.events / ended.seconds if ended.seconds else 0.0,
        "s3-object-name": ended.object_name if success else None,
        "created_at": cursor_time(ended.finished_at),
    }


def error_json(failed: FailedFile) -> dict[str, Any]:
    """Return one failed file: what, where, whose fault, and what to do."""
    error = failed.error
    return {
        "pod-name": failed.worker,
        "file": failed.path,
        "entries": failed.entries,
        "events": failed.events,
        "info": error.message if error else "",
        "file-id": failed.file_id,
        "class": error.kind if error else "",
        "blame": error.blame if error else "",
        "message": error.message if error else "",
        "hint": error.hint if error else "",
        "retryable": bool(error and error.retryable),
        "replicas": [replica.url for replica in failed.replicas],
        "attempts": [
            {
                "replica": attempt.url,
                "seconds": attempt.seconds,
                "class": attempt.error.kind if attempt.error else None,
                "message": attempt.error.message if attempt.error else None,
            }
            for attempt in failed.attempts
        ],
        "worker": failed.worker,
        "time": wire_time(failed.finished_at),
        "log-tail": failed.log_tail,
    }


def dataset_json(dataset: Dataset) -> dict[str, Any]:
    """Return a dataset; file lists carry the finder name that clients know them by."""
    return {
        "id": dataset.id,
        "name": dataset.name,
        "did_finder": "user" if dataset.finder == "file-list" else dataset.finder,
        "n_files": dataset.n_files,
        "size": dataset.size,
        "events": dataset.events,
        "last_used": wire_time(dataset.last_used),
        "last_updated": wire_time(dataset.last_updated),
        "lookup_status": dataset.state.value,
        "message": dataset.message,
        "is_stale": dataset.stale,
    }


def file_json(file_id: int, file: InputFile) -> dict[str, Any]:
    """Return a file of a dataset; the client wants its replicas in one text, with commas."""
    return {
        "id": file_id,
        "adler32": file.adler32,
        "file_size": file.size,
        "file_events": file.events,
        "paths": ",".join(replica.url for replica in file.replicas),
    }


OLD_SECONDS = 15.0
"""Age from which on what a leader wrote down is called old, if none leads now."""


def age_of(snapshot: Snapshot, moment: datetime, *, led: bool) -> float | None:
    """Return how old a snapshot is that may not be so any more; None of one that is so.

    While a process leads, it writes within seconds what has changed.
    """
    seconds = (moment - snapshot.at).total_seconds()
    return None if led or seconds < OLD_SECONDS else seconds


def workers_json(snapshot: Snapshot | None, age: float | None) -> dict[str, Any]:
    """Return the workers, how many are wanted, and why."""
    if snapshot is None:
        return {
            "workers": [],
            "workers-wanted": 0,
            "reason": "no process has led yet",
            "scheduler": None,
            "time": None,
            "age": None,
        }
    value = snapshot.value
    return {
        "workers": [_worker_json(worker) for worker in value["workers"]],
        "workers-wanted": value["wanted"],
        "reason": value["reason"],
        "scheduler": value["scheduler"] or None,
        "time": wire_time(snapshot.at),
        "age": age,
    }


def sites_json(
    snapshot: Snapshot | None, age: float | None, bad: Sequence[BadReplica]
) -> dict[str, Any]:
    """Return the doors and how each has done, with how many of the bad replicas each has."""
    there = Counter(door_of(one.url) for one in bad)
    told = Counter(door_of(one.url) for one in bad if one.reported)
    doors = snapshot.value["doors"] if snapshot else {}
    return {
        "sites": [
            _door_json(name, about, bad=there[name], told=told[name])
            for name, about in doors.items()
        ],
        "time": wire_time(snapshot.at) if snapshot else None,
        "age": age,
    }


def _door_json(name: str, about: dict[str, Any], *, bad: int, told: int) -> dict[str, Any]:
    return {
        "door": name,
        "site": about.get("site") or None,
        "state": about["state"],
        "since": wire_time(datetime.fromisoformat(about["since"])),
        "attempts": about["attempts"],
        "worked": about["worked"],
        "failed": about["failed"],
        "rate": round(about["rate"], 3),
        "bytes-per-second": round(about["speed"]),
        "bad-replicas": bad,
        "reported": told,
        "last-error": about["last_error"] or None,
    }


def probes_json(attempts: Iterable[Attempt]) -> dict[str, Any]:
    """Return how replicas were found that were looked at."""
    return {
        "probes": [
            {
                "replica": one.url,
                "seconds": round(one.seconds, 3),
                "error": one.error.kind if one.error else None,
                "message": one.error.message if one.error else None,
            }
            for one in attempts
        ]
    }


def bad_replica_json(bad: BadReplica) -> dict[str, Any]:
    """Return a bad replica."""
    return {
        "replica": bad.url,
        "rse": bad.rse or None,
        "file": bad.file or None,
        "error": bad.kind,
        "message": bad.message,
        "first-seen": wire_time(bad.first_seen),
        "last-seen": wire_time(bad.last_seen),
        "times": bad.times,
        "reported": {sink: wire_time(at) for sink, at in bad.reported.items()},
    }


def bad_replicas_csv(listed: Iterable[dict[str, Any]]) -> str:
    """Return bad replicas as a table to send to a site."""
    names = "rse replica file error message first-seen last-seen times".split()
    text = io.StringIO()
    table = csv.DictWriter(text, names, extrasaction="ignore")
    table.writeheader()
    table.writerows(listed)
    return text.getvalue()


def _worker_json(worker: dict[str, Any]) -> dict[str, Any]:
    since = worker["since"]
    return {
        "name": worker["name"],
        "address": worker["address"],
        "state": worker["state"],
        "problem": worker["problem"] or None,
        "request_id": worker["request"],
        "file": worker["file"],
        "since": wire_time(datetime.fromisoformat(since)) if since else None,
        "memory": worker["memory"],
        "memory-limit": worker["limit"],
        "files-done": worker["done"],
        "last-error": worker["error"] or None,
    }


def queued_json(queued: Queued) -> dict[str, Any]:
    """Return a request that has not ended."""
    return {
        "request_id": queued.request_id,
        "title": queued.title,
        "user": queued.owner,
        "status": queued.state.value,
        "submit-time": wire_time(queued.submitted_at),
        "files": queued.files,
        "waiting": queued.waiting,
        "running": queued.running,
        "done": queued.done,
        "failed": queued.failed,
        "files-per-minute": round(60 * queued.rate, 2),
        "seconds-left": None if queued.seconds_left is None else round(queued.seconds_left, 1),
    }
