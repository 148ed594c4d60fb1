"""Rows of datasets and their files. Shared datasets belong to nobody, file lists to their user."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, true, update

from servicex_server.database.tables import datasets, files
from servicex_server.errors import ForbiddenError, NotFoundError, StateError
from servicex_server.model import Dataset, DatasetState, InputFile, Principal, Replica, now

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


def _dataset(row: Row[Any]) -> Dataset:
    fields = row._mapping  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    return Dataset(**{**fields, "state": DatasetState(fields["state"])})


def visible(principal: Principal) -> Any:
    """Return the condition that a dataset is one that a principal may see."""
    if principal.sees_all:
        return datasets.c.id > 0
    return or_(datasets.c.owner.is_(None), datasets.c.owner == principal.user)


def find_fresh(
    connection: Connection, name: str, owner: str | None, *, since: datetime | None = None
) -> int | None:
    """Return the id of a dataset that is known by this name and may be used as it is.

    One that is complete may not, if it has been since before that time.
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
    """Add a dataset that is still to be looked up; return its id."""
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
    """Note that a dataset was used."""
    connection.execute(update(datasets).where(datasets.c.id == dataset_id).values(last_used=now()))


def get(connection: Connection, principal: Principal, dataset_id: int) -> Dataset:
    """Return a dataset.

    Raises
    ------
    NotFoundError
        There is none, or it is not for this principal.
    """
    row = connection.execute(_SELECT.where(datasets.c.id == dataset_id, visible(principal))).first()
    if row is None:
        raise _unknown(dataset_id)
    return _dataset(row)


def check(connection: Connection, principal: Principal, dataset_id: int) -> None:
    """Refuse as `get` does; its files, which may be many, are not counted."""
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
    return [_dataset(row) for row in connection.execute(query)]


def mark_stale(connection: Connection, principal: Principal, dataset_id: int) -> None:
    """Make the next request look the dataset up again.

    Raises
    ------
    NotFoundError, ForbiddenError, StateError
        There is none; it is somebody else's; it is stale already.
    """
    dataset = get(connection, principal, dataset_id)
    if not (principal.changes_all or dataset.owner in (None, principal.user)):
        raise ForbiddenError(f"Dataset {dataset_id} is somebody else's")
    if dataset.stale:
        raise StateError(f"Dataset {dataset_id} has already been deleted")
    connection.execute(
        update(datasets).where(datasets.c.id == dataset_id).values(stale=True, last_updated=now())
    )


def files_of(
    connection: Connection, principal: Principal, dataset_id: int
) -> list[tuple[int, InputFile]]:
    """Return the files of a dataset with their ids, in the dataset's order."""
    check(connection, principal, dataset_id)
    rows = connection.execute(
        select(files).where(files.c.dataset_id == dataset_id).order_by(files.c.position)
    )
    return [(row.id, input_file(row)) for row in rows]


def first_and_last(
    connection: Connection, name: str, owner: str | None, *, since: datetime | None = None
) -> list[InputFile]:
    """Return the first and the last file of a dataset, once if they are one.

    None of a dataset that is not known or not yet whole.
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


def reference_of(connection: Connection, dataset_id: int) -> tuple[str, Any]:
    """Return the finder of a dataset and what to give it."""
    row = connection.execute(
        select(datasets.c.finder, datasets.c.reference).where(datasets.c.id == dataset_id)
    ).one()
    return row.finder, row.reference


def finders_of(connection: Connection, file_ids: Iterable[int]) -> dict[int, str]:
    """Return by id of a file the finder that found it."""
    rows = connection.execute(
        select(files.c.id, datasets.c.finder)
        .join_from(files, datasets)
        .where(files.c.id.in_(set(file_ids)))
    )
    return {row.id: row.finder for row in rows}


def found_again(
    connection: Connection, found: Mapping[int, Sequence[Replica]], moment: datetime
) -> None:
    """Note by id of a file that its catalogue was asked again, and what it named, if anything."""
    for file_id, replicas in found.items():
        values: dict[str, Any] = {"asked_again": moment}
        if replicas:
            values["replicas"] = _places(replicas)
        connection.execute(update(files).where(files.c.id == file_id).values(**values))


def distrust(connection: Connection, file_ids: Iterable[int]) -> None:
    """Have the datasets looked up again of which some files were at none of their places.

    A list of files would be the same again.
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
    """Note how a look-up stands. A failed one is stale, so that the next request tries again."""
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
    """Return what the files are known by that are stored, so that a look-up can go on."""
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
    """Return how a dataset's look-up stands."""
    query = select(datasets.c.state).where(datasets.c.id == dataset_id)
    return DatasetState(connection.execute(query).scalar_one())
