"""The tables. Every change here needs a migration; a test compares the two."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.engine import Dialect

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, stored as naive UTC, so that every database orders it in the same way."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to naive UTC."""
        del dialect
        if value is None:
            return None
        if value.year == 1:  # the earliest time cannot be converted to another zone
            return value.replace(tzinfo=None)
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Make the time aware again."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


def _where(condition: str) -> dict[str, Any]:
    """Return the options of a partial index."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


_Id = BigInteger().with_variant(Integer, "sqlite")

datasets = Table(
    "datasets",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("finder", String(64), nullable=False),
    Column("owner", String(320)),  # null: shared by name
    Column("reference", JSON, nullable=False),
    Column("state", String(32), nullable=False),
    Column("message", Text, nullable=False, default=""),
    Column("last_used", UtcTime, nullable=False),
    Column("last_updated", UtcTime, nullable=False),
    Column("stale", Boolean, nullable=False, default=False),
    Index(None, "name"),
)

files = Table(
    "files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("dataset_id", ForeignKey(datasets.c.id, ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("replicas", JSON, nullable=False),  # [[url, rse], ...] in order of preference
    Column("size", BigInteger, nullable=False, default=0),
    Column("events", BigInteger, nullable=False, default=0),
    Column("adler32", String(16)),
    Column("name", Text, nullable=False, server_default=""),
    Column("asked_again", UtcTime),  # when its replicas were refreshed, after all had failed
    Index(None, "dataset_id", "position", unique=True),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("title", Text),
    Column("owner", String(320), nullable=False),
    Column("dataset_id", ForeignKey(datasets.c.id), nullable=False),
    Column("did", Text, nullable=False),
    Column("language", String(64), nullable=False),
    Column("selection", Text, nullable=False),
    Column("format", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("submitted_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("failure", Text, nullable=False, default=""),
    Column("app_version", String(64), nullable=False),
    Column("file_seconds", Float),  # null: as long as the service allows
    Column("deleted", Boolean, nullable=False, server_default=false()),  # rows go in steps
    Column("pinned", Boolean, nullable=False, server_default=false()),  # its results are kept
    # counters: every change of a task updates them in the same transaction
    Column("files", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("bytes", BigInteger, nullable=False, server_default="0"),  # of its results
    Column("events", BigInteger, nullable=False, server_default="0"),  # read for its results
    Column("events_kept", BigInteger, server_default="0"),  # null: not known of every result
    Column("last_ended", UtcTime),  # when the latest of its files ended; never decreases
    Index(None, "owner", "submitted_at"),
    Index("ix_requests_deleted", "id", **_where("deleted")),
    Index(None, "state"),
    Index(None, "dataset_id"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("request_id", ForeignKey(requests.c.id, ondelete="CASCADE"), nullable=False),
    Column("file_id", ForeignKey(files.c.id), nullable=False),
    Column("first_entry", BigInteger, nullable=False, default=0),
    Column("last_entry", BigInteger),  # exclusive; null: the whole file
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", UtcTime),
    Column("finished_at", UtcTime),
    Column("path", Text),
    # S3 lists in byte order, which is also the order of SQLite
    Column("object_name", String(255).with_variant(String(255, collation="C"), "postgresql")),
    Column("object_key", String(255)),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("events", BigInteger, nullable=False, default=0),  # read
    Column("events_kept", BigInteger),  # in the result; null: not known
    Column("seconds", Float, nullable=False, default=0.0),
    Column("worker", String(255), nullable=False, default=""),
    Column("error", JSON(none_as_null=True)),
    Column("tried", JSON(none_as_null=True)),  # every attempt at every replica, oldest first
    Column("log_tail", Text, nullable=False, default=""),
    Column("identity", String(64)),  # result key: tasks with the same key give the same result
    # of a part: the task of its file; not a foreign key, because rows are deleted in any order
    Column("part_of", BigInteger),
    Column("parts", Integer, nullable=False, server_default="0"),  # that a file was split into
    Index(None, "request_id", "file_id", "first_entry", unique=True, **_where("part_of IS NULL")),
    Index(None, "part_of", "first_entry", unique=True, **_where("part_of IS NOT NULL")),
    Index(None, "request_id", "state", "id"),
    Index(None, "request_id", "finished_at"),
    Index(None, "request_id", "object_name"),
    Index(None, "object_key"),
    Index(None, "identity"),
    # for queries over all tasks, of which nearly all have ended
    Index("ix_tasks_running", "state", **_where("state = 'running'")),
    Index("ix_tasks_not_before", "not_before", **_where("not_before IS NOT NULL")),
)

OF_FILE = tasks.c.part_of.is_(None)
"""Condition that a task is for a file of the dataset, and not for a part of one."""

objects = Table(
    "objects",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("owner", String(320), nullable=False),  # to whom its bytes count
    Column("bytes", BigInteger, nullable=False),
    Column("made", UtcTime, nullable=False),
    Column("last_used", UtcTime, nullable=False),
    Column("evicted", UtcTime),  # when it was deleted to make room; null: it is in the store
    Index("ix_objects_last_used", "last_used", **_where("evicted IS NULL")),
    Index("ix_objects_owner", "owner", **_where("evicted IS NULL")),
)
"""Results in the object store, each once, however many tasks refer to it by its key."""

bad_replicas = Table(
    "bad_replicas",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("mark", String(64), nullable=False),  # hash of URL and kind, which may be long
    Column("url", Text, nullable=False),
    Column("rse", Text, nullable=False),
    Column("file", Text, nullable=False),
    Column("finder", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("times", Integer, nullable=False),
    Column("reported", JSON, nullable=False),  # {sink: time}
    Index(None, "mark", unique=True),
    Index(None, "last_seen"),
)

users = Table(
    "users",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("email", String(320), nullable=False),  # in lower case; the owner of requests
    Column("name", Text, nullable=False),
    Column("institution", Text, nullable=False),
    Column("experiment", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("role", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("last_seen", UtcTime),
    Column("key_epoch", Integer, nullable=False, server_default="0"),  # how often keys were revoked
    Index(None, "email", unique=True),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("user_id", ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("last_used", UtcTime),
    Index(None, "hash", unique=True),
    Index(None, "user_id", "name", unique=True),
    sqlite_autoincrement=True,  # ids are in access tokens, so that of a revoked token is not reused
)

identities = Table(
    "identities",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("user_id", ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("issuer", String(255), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "issuer", "subject", unique=True),
    Index(None, "user_id"),
)
"""The identities of users at OIDC providers."""

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("token_id", ForeignKey(api_tokens.c.id, ondelete="CASCADE")),  # by which it was opened
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Index(None, "user_id"),
    Index(None, "token_id"),
    Index(None, "expires_at"),
)
"""Sessions of signed-in browsers."""

devices = Table(
    "devices",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("code", String(16), nullable=False),  # the user code, which a person types
    Column("name", Text, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("user_id", ForeignKey(users.c.id, ondelete="CASCADE")),  # who has confirmed it
    Column("refused", Boolean, nullable=False, server_default=false()),
    Index(None, "code", unique=True),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)
"""Programs that wait for a user to sign them in with a browser (device flow)."""

snapshots = Table(
    "snapshots",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("value", JSON, nullable=False),
)
"""Status snapshots: facts that only the leader knows, stored for the other processes."""

history = Table(
    "history",
    metadata,
    Column("at", UtcTime, primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("there", Integer, nullable=False),
    Column("busy", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("free", BigInteger),  # null: results are in a bucket
)
"""The state of the service each minute, for a week."""

daily = Table(
    "daily",
    metadata,
    Column("day", UtcTime, primary_key=True),
    Column("stored", BigInteger, nullable=False),
)
"""Bytes of results at the end of each day, for a year."""
