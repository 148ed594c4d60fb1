"""A service reduced to its rows, its budget and a clock: for histories of months in a minute.

The rows, the budget, the eviction and the store are those of the service. An object is a sparse
file, which has a size and takes no space. An input file is done as soon as it starts.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from servicex_server import model
from servicex_server.database import lost_results, request_completion, stored_objects
from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import objects, tasks
from servicex_server.model import Outcome, TaskState
from servicex_server.retention.budget import RetentionPolicy, StoreBudget
from servicex_server.storage.choose import open_store
from tests.services import store


@dataclass
class Clock:
    """A clock that tests set forward."""

    moment: datetime = field(default_factory=model.now)

    def __call__(self) -> datetime:
        """Return the time of this clock; each reading is a little later."""
        self.moment += timedelta(microseconds=1)
        return self.moment


@contextmanager
def in_place_of_now(clock: Clock) -> Iterator[None]:
    """Have all modules of the service read this clock within a ``with`` block."""
    true = model.now
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("servicex_server.") and getattr(module, "now", None) is true
    ]
    for module in patched:
        module.now = clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in patched:
            module.now = true  # type: ignore[attr-defined]


class World:
    """The rows, the store and the budget of the service.

    Parameters
    ----------
    folder
        Where the database and the objects are.
    policy
        The policy of retention.
    slots
        Files that start together.
    """

    def __init__(self, folder: Path, policy: RetentionPolicy, *, slots: int = 2) -> None:
        self._slots = slots
        self.database = Database(f"sqlite:///{folder / 'world.sqlite'}")
        self.database.migrate()
        self.folder = folder / "objects"
        self.objects = open_store(self.folder.as_uri())
        self.budget = StoreBudget(self.database, self.objects, policy)
        self.sizes: dict[str, int] = {}
        self.made = self.peak = 0

    async def ask(self, owner: str, files: int, size: int) -> str:
        """Submit a request whose results have so many bytes each; return its id."""
        request_id = await self.database.write(store, owner, str(len(self.sizes) + 1), files)
        self.sizes[request_id] = size
        return request_id

    async def work(self) -> None:
        """Do all files that the budget allows."""
        while True:
            demand = await self.database.read(task_rows.demand)
            admitted = self.budget.admitted(demand, {})
            shares = {one.request_id: min(one.left, self._slots) for one in admitted}
            allowed = self.budget.allowed(shares, demand, {})
            if not allowed:
                return
            for request_id in allowed:
                works = await self.database.read(task_rows.waiting, request_id, allowed[request_id])
                begun = await self.database.write(task_rows.begin, works, {})
                await self._end(begun, self.sizes[request_id])
                break  # others have their turn after what this one has stored is known

    async def _end(self, works: Iterable[task_rows.Work], size: int) -> None:
        ended = []
        for work in works:
            path = self.folder / work.object_key
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as object_file:
                object_file.truncate(size)
            self.made += size
            self.budget.wrote(work.owner, size)
            outcome = Outcome(work.request_id, work.file_id, work.attempt, bytes_written=size)
            ended.append(
                outcome_rows.Recorded(work.task_id, outcome, work.object_name, work.object_key)
            )
        touched, _ = await self.database.write(outcome_rows.record, ended, most_attempts=1)
        await self.database.write(request_completion.finish, touched, fatal_after=1)
        self.peak = max(self.peak, await self.database.read(stored_objects.size))

    def there(self) -> dict[str, int]:
        """Return the sizes of all objects in the store, by key."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in found}

    async def read(self, request_id: str) -> bool:
        """Read all results of a request that are done; return whether any has to be made again."""
        found = await self.database.read(
            lambda connection: connection.execute(
                select(tasks.c.object_key, objects.c.evicted)
                .join(objects, tasks.c.object_key == objects.c.key)
                .where(tasks.c.request_id == request_id, tasks.c.state == TaskState.DONE)
            ).all()
        )
        gone = [key for key, evicted in found if evicted is not None]
        for key in gone:
            await self.database.write(lost_results.make_again, request_id, key)
        await self.database.write(
            stored_objects.use, [key for key, evicted in found if evicted is None]
        )
        if gone:
            await self.work()
        return bool(gone)

    def close(self) -> None:
        """Close the database."""
        self.database.close()
