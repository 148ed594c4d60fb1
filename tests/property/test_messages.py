"""Messages of workers: the service reads packed messages unchanged, and survives all others."""

import json
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicex_server.clusters import messages
from servicex_server.clusters.messages import (
    ATTEMPTS,
    HINT,
    LARGEST,
    LOG,
    NAME,
    PARTS,
    TEXT,
    Exit,
    Introduction,
    MessageError,
)
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    Attempt,
    Limits,
    Outcome,
    ProbeSpec,
    Replica,
    ResultFormat,
    TaskSpec,
)

TASK = TaskSpec(
    request_id="r",
    file_id=7,
    attempt=2,
    replicas=(Replica("root://a//f", "A"), Replica("root://b//f", through="root://cache")),
    language="uproot-raw",
    selection="[]",
    format=ResultFormat.PARQUET,
    object_name="x.parquet",
    upload_url="file:///x",
    limits=Limits(),
)
PLACES = [replica.place for replica in TASK.replicas]
URLS = [replica.url for replica in TASK.replicas]

counts = st.integers(0, (1 << 63) - 1)
seconds = st.floats(0, 1e9, allow_nan=False)


def texts(most: int) -> st.SearchStrategy[str]:
    """Return texts that a database can store."""
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(letters, max_size=min(most, 40))


errors = st.builds(
    ErrorRecord,
    kind=st.sampled_from(["Missing", "UnknownName", "Of_A_Plug_In"]),
    blame=st.sampled_from(["query", "file", "replica", "site", "service"]),
    message=texts(TEXT),
    hint=texts(HINT),
    retryable=st.booleans(),
)
edges = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=8, unique=True).map(sorted)
outcomes = st.builds(
    Outcome,
    request_id=st.just("r"),
    file_id=st.just(7),
    attempt=st.just(2),
    error=st.none() | errors,
    attempts=st.lists(
        st.builds(Attempt, st.sampled_from(PLACES), seconds, st.none() | errors), max_size=4
    ).map(tuple),
    url=st.sampled_from(URLS),
    events_read=counts,
    events_written=counts,
    bytes_read=counts,
    bytes_written=counts,
    seconds=seconds,
    log_tail=texts(LOG),
)


@given(outcomes)
def test_packed_outcome_is_read_unchanged(outcome: Outcome) -> None:
    assert messages.read_outcome(messages.pack_outcome(outcome, TASK), TASK) == outcome


@given(edges)
def test_packed_parts_are_read_unchanged(bounds: list[int]) -> None:
    parts = tuple(zip([0, *bounds], bounds, strict=False))
    outcome = Outcome("r", 7, 2, parts=parts, url=TASK.path)
    assert messages.read_outcome(messages.pack_outcome(outcome, TASK), TASK) == outcome


@given(st.none() | errors, seconds, texts(NAME).filter(str.isprintable), counts)
def test_other_packed_messages_are_read_unchanged(
    error: ErrorRecord | None, took: float, name: str, count: int
) -> None:
    probe = ProbeSpec("root://a//f")
    attempt = Attempt(probe.url, took, error)
    assert messages.read_check(messages.pack_check(error)) == error
    assert messages.read_probe(messages.pack_probe(attempt), probe) == attempt
    told = Introduction(name, name, count)
    assert messages.read_introduction(messages.pack_introduction(told)) == told
    ended = Exit(name, name, count, count)
    assert messages.read_exit(messages.pack_exit(ended)) == ended


@given(st.text(), st.text())
def test_any_text_of_an_error_can_be_sent(text: str, log: str) -> None:
    """The worker replaces characters that no database takes, and cuts texts that are too long."""
    record = ErrorRecord("Internal", "service", text * 300, hint=text * 300)
    outcome = Outcome("r", 7, 2, error=record, log_tail=log * 3000)
    outcome = replace(outcome, attempts=(Attempt(PLACES[0], 1.0, record),) * (ATTEMPTS + 3))
    packed = messages.pack_outcome(outcome, TASK)
    assert len(packed) <= LARGEST
    read = messages.read_outcome(packed, TASK)
    assert read.error is not None
    assert "\0" not in read.error.message + read.log_tail
    assert len(read.attempts) == ATTEMPTS


def test_longest_outcomes_fit_into_a_message() -> None:
    record = ErrorRecord("Internal", "service", "\U0001f600" * TEXT, hint="\U0001f600" * HINT)
    outcome = Outcome("r", 7, 2, error=record, log_tail="\U0001f600" * LOG)
    outcome = replace(outcome, attempts=(Attempt(PLACES[0], 1.0, record),) * ATTEMPTS)
    assert messages.read_outcome(messages.pack_outcome(outcome, TASK), TASK) == replace(
        outcome, url=TASK.path
    )
    huge = 1 << 60
    parts = tuple((0 if not n else huge + n, huge + n + 1) for n in range(PARTS))
    many = Outcome("r", 7, 2, parts=parts, url=TASK.path)
    assert messages.read_outcome(messages.pack_outcome(many, TASK), TASK) == many


READERS = [
    lambda data: messages.read_outcome(data, TASK),
    messages.read_check,
    lambda data: messages.read_probe(data, ProbeSpec("x")),
    messages.read_introduction,
    messages.read_exit,
    messages.read_event,
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read(reader: Any, data: object) -> None:
    """Read a message; it may raise no error but `MessageError`."""
    with suppress(MessageError):
        reader(data)


@given(st.binary() | anything | anything.map(lambda one: json.dumps(one, default=str).encode()))
def test_arbitrary_data_raises_at_most_a_message_error(data: object) -> None:
    for reader in READERS:
        read(reader, data)


@given(outcomes, st.data())
def test_changed_message_is_read_or_raises_a_message_error(
    outcome: Outcome, data: st.DataObject
) -> None:
    packed = bytearray(messages.pack_outcome(outcome, TASK))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    read(READERS[0], bytes(packed))


FIELDS = json.loads(messages.pack_outcome(Outcome("r", 7, 2, url=URLS[1]), TASK))
ERROR = {"kind": "Missing", "blame": "file", "message": "m", "hint": "", "retryable": False}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request_id": "other"}, "request_id: there is no such field"),
        ({"events_read": -1}, "events_read: an integer from 0"),
        ({"events_read": 1 << 63}, "events_read: an integer from 0"),
        ({"events_read": True}, "events_read: an integer from 0"),
        ({"events_read": 1.5}, "events_read: an integer from 0"),
        ({"seconds": -1}, "seconds: a number from 0"),
        ({"seconds": 10**400}, "seconds: a number from 0"),
        ({"seconds": "1"}, "seconds: a number is needed"),
        ({"replica": 2}, "replica: the task has 2 replicas"),
        ({"attempts": [[2, 1, None]]}, "attempts: the task has 2 replicas"),
        ({"attempts": [[0, 1]]}, "attempts: replica, seconds and error are needed"),
        ({"attempts": [[0, 1, None]] * 65}, "attempts: it has 65 items"),
        ({"error": {}}, "error: kind: the field is missing"),
        ({"error": ERROR | {"blame": "you"}}, "error: blame: one of"),
        ({"error": ERROR | {"kind": "<b>"}}, "error: kind: the name of an error is needed"),
        ({"error": ERROR | {"message": "x" * 2001}}, "error: message: it has 2001 characters"),
        ({"error": ERROR | {"message": "\0"}}, "error: message: NUL and lone surrogates"),
        ({"error": ERROR | {"message": "\ud800"}}, "error: message: NUL and lone surrogates"),
        ({"parts": [[0, 5], [6, 7]]}, "parts: each part has to begin where"),
        ({"parts": [[1, 5]]}, "parts: the first part has to begin with entry 0"),
        ({"parts": [[0, 0]]}, "parts: a part has at least one entry"),
        ({"parts": [[0, 5]], "error": ERROR}, "parts: only a whole file"),
        ({"log_tail": None}, "log_tail: a string is needed"),
    ],
)
def test_invalid_field_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MessageError, match=said):
        messages.read_outcome(json.dumps(FIELDS | changes).encode(), TASK)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * LARGEST,
        b"[[],[],[" * (LARGEST // 8),
        b"9" * LARGEST,
        b'{"a":' * (LARGEST // 5),
        b"x" * (LARGEST + 1),
        b"NaN",
        b'{"seconds":Infinity}',
        b'"' + b"\\ud800" * 1000 + b'"',
        b"\xff\xfe",
    ],
)
def test_hostile_message_raises_a_message_error_in_little_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        for reader in READERS:
            with pytest.raises(MessageError):
                reader(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@given(anything)
def test_any_heartbeat_can_be_read(metrics: object) -> None:
    assert messages.read_memory(metrics) >= 0
    steps = messages.read_steps(metrics, "servicex", "key")
    assert steps is None or steps >= 0
    assert messages.read_steps({"servicex": metrics}, "servicex", "key") is None or steps is None
