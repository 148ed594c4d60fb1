"""Request and response bodies: the JSON keys of the API.

The published client validates some of these objects strictly. The HTTP reference in the
documentation describes each key.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from servicex_server.database import service_history, stored_objects
from servicex_server.database.active_requests import Queued
from servicex_server.database.finished_files import EndedFile, FailedFile
from servicex_server.database.status_snapshots import Snapshot
from servicex_server.model import (
    Attempt,
    BadReplica,
    Dataset,
    InputFile,
    Request,
    ResultFormat,
    TaskState,
)
from servicex_server.replicas.health import endpoint_of
from servicex_server.requests.submission import Order
from servicex_server.settings.service import Settings
from servicex_server.text.escaping import redacted, spreadsheet_cell
from servicex_server.web.api import responses
from servicex_server.web.request_bodies import MAX_FILE_URLS, JsonBody, max_submit


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _sound(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it contains a lone surrogate, which is not a character") from None
    return text


Text = Annotated[str, AfterValidator(_sound)]
"""A text that every database can store."""


_MESSAGE = {"type": "string", "description": "What is wrong, and what to do."}
_ERROR = {
    "application/json": {
        "schema": {"type": "object", "properties": {"message": _MESSAGE}, "required": ["message"]}
    }
}

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"content": _ERROR, "description": "The request was refused."},
    "503": {"content": _ERROR, "description": "Not available: try again in a few seconds."},
}
"""Error responses that every route may return."""


class SubmitBody(JsonBody):
    """Body of ``POST /servicex/transformation``. Keys that are not named here are ignored."""

    model_config = ConfigDict(alias_generator=_dashed, extra="ignore", strict=True)

    title: Text | None = Field(default=None, description="Shown to the user in lists.")
    did: Text | None = Field(default=None, description="Dataset reference, `scheme://name`.")
    file_list: list[Text] | None = Field(
        default=None, fail_fast=True, description="Paths and URLs of files."
    )
    selection: Text = Field(description="The query, in the language that `codegen` names.")
    codegen: Text = Field(description="The query language.")
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

    @classmethod
    def most_bytes(cls, settings: Settings) -> int:
        """Return the bytes of the longest allowed file list and query."""
        return max_submit(settings)

    def order(self) -> Order:
        """Return the body as an `Order`."""
        return Order(
            selection=self.selection,
            language=self.codegen,
            format=ResultFormat(self.result_format),
            did=self.did,
            files=self.file_list,
            title=self.title,
            file_seconds=self.file_seconds,
        )


class FileUrlsBody(JsonBody):
    """Body of ``POST /servicex/transformation/file-urls``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    request_id: Text
    file_list: list[Text] = Field(fail_fast=True)

    @classmethod
    def most_bytes(cls, settings: Settings) -> int:
        """Return the bytes that the names of some thousands of results need."""
        del settings
        return MAX_FILE_URLS


def wire_time(moment: datetime) -> str:
    """Return a time as upstream writes it: UTC, microseconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def cursor_time(moment: datetime) -> str:
    """Return a time that Python before 3.11 can read back: naive UTC, no ``Z``."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def request_json(request: Request) -> responses.RequestFields:
    """Return a request in the form of the API, without the keys of its bucket."""
    known = request.files > 0
    finished = wire_time(request.finished_at) if request.finished_at else "None"
    return {
        "request_id": request.id,
        "title": request.title,
        "did": redacted(request.did),
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
        "events": request.events,
        "events-kept": request.events_kept,
        "pinned": request.pinned,
        "submit-time": wire_time(request.submitted_at),
        "finish-time": finished,
    }


def status_json(request: Request, stats: dict[str, float] | None) -> responses.Status:
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


def _stats_json(stats: dict[str, float]) -> responses.Statistics:
    total = float(stats["total"])
    return {
        "min-time": int(stats["least"]),
        "max-time": int(stats["most"]),
        "avg-time": total / stats["count"],
        "total-time": int(total),
        "avg-rate": float(stats["events"]) / total if total else 0.0,
        "total-bytes": int(stats["bytes"]),
        "total-events": int(stats["events"]),
        "total-events-kept": int(stats["kept"]) if "kept" in stats else None,
    }


def result_json(request_id: str, ended: EndedFile) -> responses.Result:
    """Return one finished file."""
    success = ended.state is TaskState.DONE
    return {
        "id": ended.id,
        "request-id": request_id,
        "file-id": ended.file_id,
        "file-path": ended.path,
        "transform_status": "success" if success else "failure",
        "transform_time": int(ended.seconds),
        "total-events": ended.events,
        "total-events-kept": ended.events_kept if success else None,
        "total-bytes": ended.bytes,
        "avg-rate": ended.events / ended.seconds if ended.seconds else 0.0,
        "s3-object-name": ended.object_name if success else None,
        "created_at": cursor_time(ended.finished_at),
    }


def error_json(failed: FailedFile) -> responses.Failure:
    """Return one failed file: its error, its attempts, who is to blame, and what to do."""
    error = failed.error
    return {
        "pod-name": failed.worker,
        "file": failed.path,
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


def dataset_json(dataset: Dataset) -> responses.KnownDataset:
    """Return a dataset; file lists have the finder name ``user``, which clients expect."""
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


def file_json(file_id: int, file: InputFile) -> responses.DatasetFile:
    """Return a file of a dataset; the client expects its replicas in one comma-separated text."""
    return {
        "id": file_id,
        "adler32": file.adler32,
        "file_size": file.size,
        "file_events": file.events,
        "paths": ",".join(replica.url for replica in file.replicas),
    }


OLD_SECONDS = 15.0
"""Age in seconds from which a snapshot may be out of date, if no process leads now."""


def age_of(snapshot: Snapshot, moment: datetime, *, led: bool) -> float | None:
    """Return the age of a snapshot in seconds if it may be out of date; None if it is current.

    While a process leads, it writes changes within seconds.
    """
    seconds = (moment - snapshot.at).total_seconds()
    return None if led or seconds < OLD_SECONDS else seconds


def workers_json(snapshot: Snapshot | None, age: float | None) -> responses.Workers:
    """Return the workers, how many are wanted, and why."""
    if snapshot is None:
        return {
            "workers": [],
            "workers-wanted": 0,
            "workers-pending": 0,
            "reason": "no process has led yet",
            "scheduler": None,
            "time": None,
            "age": None,
        }
    value = snapshot.value
    return {
        "workers": [_worker_json(worker) for worker in value["workers"]],
        "workers-wanted": value["wanted"],
        "workers-pending": value.get("pending", 0),
        "reason": value["reason"],
        "scheduler": value["scheduler"] or None,
        "time": wire_time(snapshot.at),
        "age": age,
    }


def sites_json(
    snapshot: Snapshot | None, age: float | None, bad: Sequence[BadReplica]
) -> responses.Endpoints:
    """Return the health of each storage endpoint, with the number of its bad replicas."""
    there = Counter(endpoint_of(one.url) for one in bad)
    reported = Counter(endpoint_of(one.url) for one in bad if one.reported)
    endpoints = snapshot.value.get("endpoints", {}) if snapshot else {}
    return {
        "sites": [
            _endpoint_json(name, about, bad=there[name], reported=reported[name])
            for name, about in endpoints.items()
        ],
        "time": wire_time(snapshot.at) if snapshot else None,
        "age": age,
    }


def storage_json(
    snapshot: Snapshot | None,
    age: float | None,
    unused_days: float | None,
    found: stored_objects.Inventory,
    days: Sequence[tuple[datetime, int]],
) -> responses.Storage:
    """Return what the object store holds, and what is evicted next."""
    value = snapshot.value if snapshot else {}
    return {
        "bytes": found.bytes,
        "capacity": value.get("capacity"),
        "evicts-above": value.get("evicts_above"),
        "problem": value.get("problem") or None,
        "unused-days": unused_days,
        "users": [{"user": user, "bytes": size} for user, size in found.owners],
        "experiments": [{"experiment": name, "bytes": size} for name, size in found.experiments],
        "days": [{"day": f"{day:%Y-%m-%d}", "bytes": size} for day, size in days],
        "growth": service_history.growth(days),
        "ages": [
            {"used-within-days": days, "results": count, "bytes": size}
            for days, (count, size) in zip((*stored_objects.AGES, None), found.ages, strict=True)
        ],
        "next": [
            {
                "key": one.key,
                "user": one.owner,
                "bytes": one.bytes,
                "used": wire_time(one.last_used),
            }
            for one in found.oldest
        ],
        "time": wire_time(snapshot.at) if snapshot else None,
        "age": age,
    }


def _endpoint_json(
    name: str, about: dict[str, Any], *, bad: int, reported: int
) -> responses.Endpoint:
    return {
        "endpoint": name,
        "site": about.get("site") or None,
        "state": about["state"],
        "since": wire_time(datetime.fromisoformat(about["since"])),
        "attempts": about["attempts"],
        "worked": about["worked"],
        "failed": about["failed"],
        "rate": round(about["rate"], 3),
        "bytes-per-second": round(about["speed"]),
        "bad-replicas": bad,
        "reported": reported,
        "last-error": about["last_error"] or None,
    }


def probes_json(attempts: Iterable[Attempt]) -> responses.Probes:
    """Return the outcomes of probes."""
    return {
        "probes": [
            {
                "replica": redacted(one.url),
                "seconds": round(one.seconds, 3),
                "error": one.error.kind if one.error else None,
                "message": one.error.message if one.error else None,
            }
            for one in attempts
        ]
    }


def bad_replica_json(bad: BadReplica) -> responses.BadReplica:
    """Return a bad replica."""
    return {
        "replica": redacted(bad.url),
        "rse": bad.rse or None,
        "file": bad.file or None,
        "error": bad.kind,
        "message": redacted(bad.message),
        "first-seen": wire_time(bad.first_seen),
        "last-seen": wire_time(bad.last_seen),
        "times": bad.times,
        "reported": {sink: wire_time(at) for sink, at in bad.reported.items()},
    }


def bad_replicas_csv(listed: Iterable[responses.BadReplica]) -> str:
    """Return bad replicas as CSV, to send to a site."""
    names = "rse replica file error message first-seen last-seen times".split()
    text = io.StringIO()
    table = csv.DictWriter(text, names, extrasaction="ignore")
    table.writeheader()
    for row in listed:
        table.writerow(
            {
                name: spreadsheet_cell(value) if isinstance(value, str) else value
                for name, value in row.items()
            }
        )
    return text.getvalue()


def _worker_json(worker: dict[str, Any]) -> responses.Worker:
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


def queued_json(queued: Queued) -> responses.QueuedRequest:
    """Return an active request and its progress."""
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
        "events": queued.events,
        "events-kept": queued.events_kept,
        "files-per-minute": round(60 * queued.rate, 2),
        "seconds-left": None if queued.seconds_left is None else round(queued.seconds_left, 1),
    }
