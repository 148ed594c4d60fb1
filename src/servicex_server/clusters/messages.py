"""The messages of workers to the service: JSON by a strict schema, and never objects.

A worker runs user code. Therefore the service decodes its messages as data of bounded size, and
takes from them only what the worker alone can know. Request, file, attempt and the URLs of replicas
come from the task that the service has sent: a message refers to replicas by their position.

`pack_…` runs on the worker and shortens texts to their limits; `read_…` runs in the service and
raises `MessageError`, and nothing else, for every message that breaks a limit.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, get_args

from servicex_server.errors import Blame, ErrorRecord
from servicex_server.model import Attempt, Entries, Outcome, ProbeSpec, TaskSpec
from servicex_server.text.escaping import redacted

LARGEST = 1 << 20
"""Bytes of a message."""

TEXT, HINT, LOG = 2_000, 1_000, 24 << 10
"""Characters of an error's message, of its hint, and of the end of a log."""

ATTEMPTS = 64
"""Attempts of one outcome; with more, the last ones are reported."""

PARTS = 10_000
"""Splits of one file."""

NAME = 255
"""Characters of a host name, a version or an address."""

_MOST = (1 << 63) - 1
"""The largest integer of the database."""

_LONGEST = 1e9
"""Seconds; longer than any work."""

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_BLAMES = frozenset(get_args(Blame))

_T = TypeVar("_T")


class MessageError(ValueError):
    """A message does not follow its schema."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """The version, the host and the memory limit of a worker."""

    version: str
    host: str
    limit: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker process ended: signal or exit code, highest memory and memory limit in bytes."""

    worker: str
    how: str
    peak: int
    limit: int


def pack_outcome(outcome: Outcome, spec: TaskSpec) -> bytes:
    """Encode the outcome of a task."""
    places = {one.place: n for n, one in reversed(list(enumerate(spec.replicas)))}
    urls = {one.url: n for n, one in reversed(list(enumerate(spec.replicas)))}
    return _packed(
        {
            "parts": outcome.parts,
            "error": _error_data(outcome.error),
            "attempts": [
                (places[one.url], one.seconds, _error_data(one.error))
                for one in outcome.attempts[-ATTEMPTS:]
            ],
            "replica": urls.get(outcome.url),
            "events_read": outcome.events_read,
            "events_written": outcome.events_written,
            "bytes_read": outcome.bytes_read,
            "bytes_written": outcome.bytes_written,
            "seconds": outcome.seconds,
            "log_tail": _clean(redacted(outcome.log_tail))[-LOG:],
        }
    )


def read_outcome(message: object, spec: TaskSpec) -> Outcome:
    """Decode the outcome of the task that a worker was given.

    Raises
    ------
    MessageError
        The message does not follow its schema, or does not fit the task.
    """
    fields = _Fields(_unpacked(message))
    replica = fields.optional("replica", _position(spec))
    outcome = Outcome(
        request_id=spec.request_id,
        file_id=spec.file_id,
        attempt=spec.attempt,
        entries=spec.entries,
        parts=fields.take("parts", _parts),
        error=fields.optional("error", _error),
        attempts=fields.take("attempts", _attempts(spec)),
        url=spec.path if replica is None else spec.replicas[replica].url,
        events_read=fields.take("events_read", _count),
        events_written=fields.take("events_written", _count),
        bytes_read=fields.take("bytes_read", _count),
        bytes_written=fields.take("bytes_written", _count),
        seconds=fields.take("seconds", _seconds),
        log_tail=fields.take("log_tail", _text(LOG)),
        speculative=spec.speculative,
    )
    fields.end()
    if outcome.parts and (spec.entries is not None or outcome.error is not None):
        raise MessageError("parts: only a whole file without an error has parts")
    return outcome


def pack_check(record: ErrorRecord | None) -> bytes:
    """Encode the result of a dry run."""
    return _packed({"error": _error_data(record)})


def read_check(message: object) -> ErrorRecord | None:
    """Decode the result of a dry run.

    Raises
    ------
    MessageError
        The message does not follow its schema.
    """
    fields = _Fields(_unpacked(message))
    error = fields.optional("error", _error)
    fields.end()
    return error


def pack_probe(attempt: Attempt) -> bytes:
    """Encode how the read of a replica went."""
    return _packed({"seconds": attempt.seconds, "error": _error_data(attempt.error)})


def read_probe(message: object, spec: ProbeSpec) -> Attempt:
    """Decode how the read of a replica went.

    Raises
    ------
    MessageError
        The message does not follow its schema.
    """
    fields = _Fields(_unpacked(message))
    seconds, error = fields.take("seconds", _seconds), fields.optional("error", _error)
    fields.end()
    return Attempt(spec.url, seconds, error)


def pack_introduction(introduction: Introduction) -> bytes:
    """Encode the introduction of a worker."""
    return _packed(
        {
            "version": _clean(introduction.version)[:NAME],
            "host": _clean(introduction.host)[:NAME],
            "limit": introduction.limit,
        }
    )


def read_introduction(message: object) -> Introduction:
    """Decode the introduction of a worker.

    Raises
    ------
    MessageError
        The message does not follow its schema.
    """
    fields = _Fields(_unpacked(message))
    found = Introduction(
        version=fields.take("version", _line),
        host=fields.take("host", _line),
        limit=fields.take("limit", _count),
    )
    fields.end()
    return found


def pack_exit(report: Exit) -> bytes:
    """Encode how a worker process ended."""
    data = {"worker": report.worker, "how": report.how, "peak": report.peak, "limit": report.limit}
    return _packed(data)


def read_exit(message: object) -> Exit:
    """Decode how a worker process ended.

    Raises
    ------
    MessageError
        The message does not follow its schema.
    """
    fields = _Fields(_unpacked(message))
    found = Exit(
        worker=fields.take("worker", _line),
        how=fields.take("how", _line),
        peak=fields.take("peak", _count),
        limit=fields.take("limit", _count),
    )
    fields.end()
    return found


def read_event(message: object) -> tuple[str, object]:
    """Return the key of the task that an event is about, and the packed outcome.

    Raises
    ------
    MessageError
        The event does not follow its schema.
    """
    if not isinstance(message, Mapping):
        raise MessageError("the event is not an object")
    key = message.get("key")
    if not isinstance(key, str):
        raise MessageError("key: a string is needed")
    return key, message.get("outcome")


def is_packed(message: object) -> bool:
    """Whether a value can be a message, by its type and its size."""
    return isinstance(message, bytes) and len(message) <= LARGEST


def read_memory(metrics: object) -> int:
    """Return the memory of a worker by its heartbeat, in bytes; 0 if the heartbeat has none."""
    return _metric(metrics, "memory") or 0


def read_steps(metrics: object, name: str, key: str) -> int | None:
    """Return the number of steps of a task by a heartbeat; None if the heartbeat has none."""
    return _metric(metrics.get(name), key) if isinstance(metrics, Mapping) else None


def _metric(metrics: object, name: str) -> int | None:
    value = metrics.get(name) if isinstance(metrics, Mapping) else None
    return value if type(value) is int and 0 <= value <= _MOST else None


def _packed(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _clean(text: str) -> str:
    """Replace the characters that a database cannot store."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _short(text: str, most: int) -> str:
    clean = _clean(text)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def _error_data(record: ErrorRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    shortened = {"message": _short(record.message, TEXT), "hint": _short(record.hint, HINT)}
    return record.as_dict() | shortened


def _unpacked(message: object) -> object:
    if not isinstance(message, bytes):
        raise MessageError("the message is not bytes")
    if len(message) > LARGEST:
        raise MessageError(f"the message has {len(message)} bytes; at most {LARGEST} are allowed")
    try:
        return json.loads(message.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the message is not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise MessageError(f"{name} is not a number")


class _Fields:
    """The fields of an object, each of which has to be taken."""

    def __init__(self, data: object) -> None:
        if not isinstance(data, dict):
            raise MessageError("an object is needed")
        self._left: dict[str, object] = dict(data)

    def take(self, name: str, read: Callable[[object], _T]) -> _T:
        """Return a field, read by a function."""
        if name not in self._left:
            raise MessageError(f"{name}: the field is missing")
        try:
            return read(self._left.pop(name))
        except MessageError as error:
            raise MessageError(f"{name}: {error}") from None

    def optional(self, name: str, read: Callable[[object], _T]) -> _T | None:
        """Return a field that may be null."""
        return self.take(name, lambda value: None if value is None else read(value))

    def end(self) -> None:
        """Reject fields that were not taken."""
        if self._left:
            raise MessageError(f"{_short(min(self._left), 40)}: there is no such field")


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise MessageError("an integer from 0 to 2^63 - 1 is needed")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MessageError("a number is needed")
    if not 0 <= value <= _LONGEST:  # which NaN is not either
        raise MessageError(f"a number from 0 to {_LONGEST:g} is needed")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise MessageError("true or false is needed")
    return value


def _text(most: int) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise MessageError("a string is needed")
        if len(value) > most:
            raise MessageError(f"it has {len(value)} characters; at most {most} are allowed")
        if _clean(value) != value:
            raise MessageError("NUL and lone surrogates are not allowed")
        return value

    return read


def _line(value: object) -> str:
    text = _text(NAME)(value)
    if not text.isprintable():
        raise MessageError("control characters are not allowed")
    return text


def _kind(value: object) -> str:
    text = _text(NAME)(value)
    if not _KIND.fullmatch(text):
        raise MessageError("the name of an error is needed")
    return text


def _blame(value: object) -> Blame:
    text = _text(NAME)(value)
    if text not in _BLAMES:
        raise MessageError(f"one of {', '.join(sorted(_BLAMES))} is needed")
    blame: Blame = text  # type: ignore[assignment]  # it is one of them
    return blame


def _error(value: object) -> ErrorRecord:
    fields = _Fields(value)
    record = ErrorRecord(
        kind=fields.take("kind", _kind),
        blame=fields.take("blame", _blame),
        message=fields.take("message", _text(TEXT)),
        hint=fields.take("hint", _text(HINT)),
        retryable=fields.take("retryable", _flag),
    )
    fields.end()
    return record


def _items(value: object, most: int) -> Sequence[object]:
    if not isinstance(value, list):
        raise MessageError("a list is needed")
    if len(value) > most:
        raise MessageError(f"it has {len(value)} items; at most {most} are allowed")
    return value


def _position(spec: TaskSpec) -> Callable[[object], int]:
    def read(value: object) -> int:
        position = _count(value)
        if position >= len(spec.replicas):
            raise MessageError(f"the task has {len(spec.replicas)} replicas")
        return position

    return read


def _attempts(spec: TaskSpec) -> Callable[[object], tuple[Attempt, ...]]:
    position = _position(spec)

    def attempt(value: object) -> Attempt:
        if len(items := _items(value, 3)) != 3:  # noqa: PLR2004  # replica, seconds, error
            raise MessageError("replica, seconds and error are needed")
        error = None if items[2] is None else _error(items[2])
        return Attempt(spec.replicas[position(items[0])].place, _seconds(items[1]), error)

    return lambda value: tuple(attempt(one) for one in _items(value, ATTEMPTS))


def _parts(value: object) -> tuple[Entries, ...]:
    parts = tuple(_part(one) for one in _items(value, PARTS))
    if any(before[1] != after[0] for before, after in pairwise(parts)):
        raise MessageError("each part has to begin where the one before it ends")
    if parts and parts[0][0] != 0:
        raise MessageError("the first part has to begin with entry 0")
    return parts


def _part(value: object) -> Entries:
    if len(items := _items(value, 2)) != 2:  # noqa: PLR2004  # the first, and the one after the last
        raise MessageError("two entries are needed")
    first, last = _count(items[0]), _count(items[1])
    if first >= last:
        raise MessageError("a part has at least one entry")
    return first, last
