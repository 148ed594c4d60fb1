"""Rows of datasets and their files. A file list belongs to its user; other datasets are shared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, true, update

from servicex_server.database.tables import datasets, files
from servicex_server.errors import ForbiddenError, NotFoundError, StateError
from servicex_server.model import Dataset, DatasetState, InputFile, Principal, Replica, now
from servicex_server.text.escaping import redacted

_COUNTS = (
    select(
        files.c.dataset_id,
        func.count().label("n_files"),
        func.sum(files.c.size).label("size"),
        func.sum(files.c.events).label("events"),
    )
    .group_by(files.c.dataset_id)
    .subquery()
)
_SELECT = select(
    datasets,
    func.coalesce(_COUNTS.c.n_files, 0).label("n_files"),
    func.coalesce(_COUNTS.c.size, 0).label("size"),
    func.coalesce(_COUNTS.c.events, 0).label("events"),
).join_from(datasets, _COUNTS, datasets.c.id == _COUNTS.c.dataset_id, isouter=True)


def dataset(row: Row[Any]) -> Dataset:
    """Return the dataset of a row as users see it, without secrets in URLs."""
    fields = row._mapping  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    message = fields["message"] or repeated(fields["reference"].get("repeated", 0))
    shown = {"name": redacted(fields["name"]), "message": redacted(message)}
    return Dataset(**{**fields, **shown, "state": DatasetState(fields["state"])})


def repeated(count: int) -> str:
    """Return the message about entries of a file list that repeat a file; empty if there are none.

    Examples
    --------
    >>> repeated(1)
    '1 entry repeats a file of an earlier entry; each file is read once'
    """
    if not count:
        return ""
    entries = "1 entry repeats" if count == 1 else f"{count} entries repeat"
    return f"{entries} a file of an earlier entry; each file is read once"


def visible(principal: Principal) -> Any:
    """Return the condition that a principal may see a dataset."""
    if principal.sees_all:
        return datasets.c.id > 0
    return or_(datasets.c.owner.is_(None), datasets.c.owner == principal.user)


def find_fresh(
    connection: Connection, name: str, owner: str | None, *, since: datetime | None = None
) -> int | None:
    """Return the id of the newest dataset with this name that need not be looked up again.

    With ``since``, a dataset that was completed before that time has to be looked up again.
    """
    same_owner = datasets.c.owner.is_(None) if owner is None else datasets.c.owner == owner
    return connection.scalar(
        select(datasets.c.id)
        .where(
            datasets.c.name == name,
            same_owner,
            datasets.c.stale.is_(False),
            true()
            if since is None
            else or_(datasets.c.state != DatasetState.COMPLETE, datasets.c.last_updated >= since),
            datasets.c.state.in_(
                [DatasetState.CREATED, DatasetState.LOOKING, DatasetState.COMPLETE]
            ),
        )
        .order_by(datasets.c.id.desc())
        .limit(1)
    )


def create(
    connection: Connection, *, name: str, finder: str, owner: str | None, reference: Any
) -> int:
    """Add a dataset that is not looked up yet; return its id."""
    moment = now()
    result = connection.execute(
        insert(datasets).values(
            name=name,
            finder=finder,
            owner=owner,
            reference=reference,
            state=DatasetState.CREATED,
            last_used=moment,
            last_updated=moment,
        )
    )
    (dataset_id,) = result.inserted_primary_key or (0,)
    return int(dataset_id)


def touch(connection: Connection, dataset_id: int) -> None:
    """Record that a dataset was used now."""
    connection.execute(update(datasets).where(datasets.c.id == dataset_id).values(last_used=now()))


def get(connection: Connection, principal: Principal, dataset_id: int) -> Dataset:
    """Return a dataset.

    Raises
    ------
    NotFoundError
        The dataset does not exist, or the principal may not see it.
    """
    row = connection.execute(_SELECT.where(datasets.c.id == dataset_id, visible(principal))).first()
    if row is None:
        raise _unknown(dataset_id)
    return dataset(row)


def check(connection: Connection, principal: Principal, dataset_id: int) -> None:
    """Raise the error of `get`, if any, without counting the files, which may be many."""
    mine = select(datasets.c.id).where(datasets.c.id == dataset_id, visible(principal))
    if connection.scalar(mine) is None:
        raise _unknown(dataset_id)


def _unknown(dataset_id: int) -> NotFoundError:
    return NotFoundError(f"Dataset {dataset_id} not found")


def listed(
    connection: Connection, principal: Principal, *, finder: str | None, with_stale: bool
) -> list[Dataset]:
    """Return the datasets a principal may see, oldest first."""
    query = _SELECT.where(visible(principal)).order_by(datasets.c.id)
    if finder is not None:
        query = query.where(datasets.c.finder == finder)
    if not with_stale:
        query = query.where(datasets.c.stale.is_(False))
    return [dataset(row) for row in connection.execute(query)]


def mark_stale(connection: Connection, principal: Principal, dataset_id: int) -> None:
    """Make the next request look the dataset up again.

    Raises
    ------
    NotFoundError, ForbiddenError, StateError
        The dataset does not exist; it belongs to another user; it is already stale.
    """
    dataset = get(connection, principal, dataset_id)
    if not (principal.changes_all or dataset.owner in (None, principal.user)):
        raise ForbiddenError(f"Dataset {dataset_id} belongs to another user")
    if dataset.stale:
        raise StateError(f"Dataset {dataset_id} has already been deleted")
    connection.execute(
        update(datasets).where(datasets.c.id == dataset_id).values(stale=True, last_updated=now())
    )


def files_of(
    connection: Connection, principal: Principal, dataset_id: int
) -> list[tuple[int, InputFile]]:
    """Return the files of a dataset with their ids, in its order, without secrets in URLs."""
    check(connection, principal, dataset_id)
    rows = connection.execute(
        select(files).where(files.c.dataset_id == dataset_id).order_by(files.c.position)
    )
    return [(row.id, shown_file(row)) for row in rows]


def first_and_last(
    connection: Connection, name: str, owner: str | None, *, since: datetime | None = None
) -> list[InputFile]:
    """Return the first and the last file of a dataset; one file if they are the same.

    The list is empty if the dataset is unknown or its look-up is not complete.
    """
    dataset_id = find_fresh(connection, name, owner, since=since)
    if dataset_id is None or state_of(connection, dataset_id) is not DatasetState.COMPLETE:
        return []
    of_dataset = select(files).where(files.c.dataset_id == dataset_id)
    ends = (files.c.position.asc(), files.c.position.desc())
    rows = [connection.execute(of_dataset.order_by(end).limit(1)).first() for end in ends]
    return list({row.id: input_file(row) for row in rows if row is not None}.values())


def input_file(row: Any) -> InputFile:
    """Return the file that a row of ``files`` describes."""
    return InputFile(
        replicas=tuple(Replica(url, rse) for url, rse in row.replicas),
        size=row.size,
        events=row.events,
        adler32=row.adler32,
        name=row.name,
    )


def shown_file(row: Any) -> InputFile:
    """Return the file that a row of ``files`` describes, without secrets in its URLs."""
    file = input_file(row)
    replicas = tuple(replace(one, url=redacted(one.url)) for one in file.replicas)
    return replace(file, replicas=replicas, name=redacted(file.name))


def reference_of(connection: Connection, dataset_id: int) -> tuple[str, Any]:
    """Return the finder of a dataset, and the reference that it looks up."""
    row = connection.execute(
        select(datasets.c.finder, datasets.c.reference).where(datasets.c.id == dataset_id)
    ).one()
    return row.finder, row.reference


def finders_of(connection: Connection, file_ids: Iterable[int]) -> dict[int, str]:
    """Return the finders that found files, by file id."""
    rows = connection.execute(
        select(files.c.id, datasets.c.finder)
        .join_from(files, datasets)
        .where(files.c.id.in_(set(file_ids)))
    )
    return {row.id: row.finder for row in rows}


def store_refreshed_replicas(
    connection: Connection, found: Mapping[int, Sequence[Replica]], moment: datetime
) -> None:
    """Store refreshed replicas by file id, and when they were refreshed.

    A file without refreshed replicas keeps those that it has.
    """
    for file_id, replicas in found.items():
        values: dict[str, Any] = {"asked_again": moment}
        if replicas:
            values["replicas"] = _places(replicas)
        connection.execute(update(files).where(files.c.id == file_id).values(**values))


def mark_stale_by_files(connection: Connection, file_ids: Iterable[int]) -> None:
    """Mark the datasets of files that none of their replicas could give as stale.

    The next request looks them up again. File lists are left as they are: they would not change.
    """
    wrong = select(files.c.dataset_id).where(files.c.id.in_(set(file_ids)))
    connection.execute(
        update(datasets)
        .where(datasets.c.id.in_(wrong), datasets.c.owner.is_(None), datasets.c.stale.is_(False))
        .values(stale=True)
    )


def set_state(
    connection: Connection, dataset_id: int, state: DatasetState, message: str = ""
) -> None:
    """Store the state of a look-up. A failed one becomes stale, so the next request retries it."""
    failed = state in (
        DatasetState.DOES_NOT_EXIST,
        DatasetState.BAD_NAME,
        DatasetState.INTERNAL_FAILURE,
    )
    values = {"state": state, "message": message, "last_updated": now()}
    if failed:
        values["stale"] = True
    connection.execute(update(datasets).where(datasets.c.id == dataset_id).values(**values))


def keys_of(connection: Connection, dataset_id: int) -> list[str]:
    """Return the keys of the files that are stored, so that a look-up can be resumed."""
    rows = connection.execute(select(files).where(files.c.dataset_id == dataset_id))
    return [input_file(row).key for row in rows]


def add_files(
    connection: Connection, dataset_id: int, start: int, found: Sequence[InputFile]
) -> None:
    """Append files to a dataset; ``start`` is the position of the first."""
    connection.execute(
        insert(files),
        [
            {
                "dataset_id": dataset_id,
                "position": start + offset,
                "replicas": _places(file.replicas),
                "size": file.size,
                "events": file.events,
                "adler32": file.adler32,
                "name": file.name,
            }
            for offset, file in enumerate(found)
        ],
    )


def _places(replicas: Iterable[Replica]) -> list[list[str]]:
    return [[replica.url, replica.rse] for replica in replicas]


def state_of(connection: Connection, dataset_id: int) -> DatasetState:
    """Return the state of a dataset's look-up."""
    query = select(datasets.c.state).where(datasets.c.id == dataset_id)
    return DatasetState(connection.execute(query).scalar_one())
