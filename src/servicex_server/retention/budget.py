"""The budget of the object store: what is evicted when it fills, and what may still start.

Eviction deletes the object of a result and nothing else: the request keeps its rows, and the result
is made again when somebody asks for it. So the least recently used results go first, and what is
not expected to fit does not start.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from servicex_server.database import status_snapshots, stored_objects
from servicex_server.database.connection import Database
from servicex_server.database.stored_objects import StoredObject
from servicex_server.model import Demand
from servicex_server.settings.service import Settings
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

EVICT, TIGHT, FULL = 0.90, 0.95, 0.98
"""Shares of the capacity. From the first on, results are evicted; from the second on, a request
starts only if all its results are expected to fit; from the third on, no file starts."""

FIRST_FILES = 4
"""Files of a request in the engine at a time while the size of its results is not known; one if the
store fills. Until then, results are expected to be as large as those in the store."""

BATCH = 1000
"""Objects that are evicted at a time."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How much is kept, and for how long; None is unlimited.

    Parameters
    ----------
    budget
        Bytes of results in the store.
    free
        Bytes that stay free on the disk of the results, if the store is a folder.
    unused
        Time without use after which a result is evicted.
    least
        Time without use before which a result is never evicted.
    quota
        Bytes of one user, from which on no file of theirs starts.
    """

    budget: int | None = None
    free: int | None = None
    unused: timedelta | None = None
    least: timedelta = timedelta(days=1)
    quota: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "RetentionPolicy":
        """Return the policy that the settings describe."""
        storage = settings.storage
        return cls(
            budget=storage.budget_bytes,
            free=storage.free_bytes,
            unused=None if storage.unused_days is None else timedelta(days=storage.unused_days),
            least=timedelta(days=storage.least_days),
            quota=settings.limits.bytes_per_user,
        )


@dataclass(frozen=True, slots=True)
class StoreUse:
    """Bytes of results in the store, and how many fit; None if that is not limited.

    ``mean`` is the mean size of a result.
    """

    used: int = 0
    capacity: int | None = None
    mean: float = 0.0

    def room(self, share: float = FULL) -> float:
        """Return how many bytes may be added up to a share of the capacity; may be negative."""
        return float("inf") if self.capacity is None else share * self.capacity - self.used


class StoreBudget:
    """Keeps the store within its budget. Only the leader has one.

    Parameters
    ----------
    database
        The rows of the objects.
    objects
        The store.
    policy
        The limits.
    """

    def __init__(self, database: Database, objects: ObjectStore, policy: RetentionPolicy) -> None:
        self._database = database
        self._objects = objects
        self._policy = policy
        self.use = StoreUse()
        self._owners: Counter[str] = Counter()
        self._without_room: set[str] = set()

    @property
    def problem(self) -> str:
        """Why no file starts; empty if files start."""
        if self.use.capacity is None or self.use.room() > 0:
            return ""
        return (
            f"no file starts: the results take {self.use.used / 1e9:.2f} GB of the "
            f"{self.use.capacity / 1e9:.2f} GB that the store may hold; files start again when "
            "results are deleted, or old enough to be evicted"
        )

    def wrote(self, owner: str, size: int) -> None:
        """Note that a result of a user was stored since the last measurement."""
        self.use = replace(self.use, used=self.use.used + size)
        if self._policy.quota is not None:
            self._owners[owner] += size

    async def look(self, at: datetime) -> int:
        """Measure the store, and evict what is unused for too long or has to make room.

        Parameters
        ----------
        at
            The current time.

        Returns
        -------
        Number of evicted results.

        Raises
        ------
        StoreUnavailableError
            The store does not answer.
        """
        evicted = 0
        if self._policy.unused is not None:
            evicted += await self._evict(before=at - self._policy.unused)
        await self.measure()
        if (excess := -self.use.room(EVICT)) > 0:
            evicted += await self._evict(before=at - self._policy.least, excess=excess)
            await self.measure()
        await self._database.write(status_snapshots.put, {status_snapshots.STORAGE: self.as_dict()})
        return evicted

    def as_dict(self) -> dict[str, Any]:
        """Return the state for other processes."""
        return {
            "used": self.use.used,
            "capacity": self.use.capacity,
            "evicts_above": None if self.use.capacity is None else int(EVICT * self.use.capacity),
            "problem": self.problem,
            "above_quota": sorted(self._above_quota()),
            "without_room": sorted(self._without_room),
        }

    def _above_quota(self) -> set[str]:
        quota = self._policy.quota
        return set() if quota is None else {o for o, size in self._owners.items() if size >= quota}

    async def measure(self) -> None:
        """Measure what the store holds, and how much it may hold; before the first file starts."""
        count, used = await self._database.read(stored_objects.total)
        if self._policy.quota is not None:
            self._owners = Counter(await self._database.read(stored_objects.by_owner))
        limits = [] if self._policy.budget is None else [self._policy.budget]
        if self._policy.free is not None and (disk := await self._objects.disk()) is not None:
            limits.append(max(0, used + disk.free - self._policy.free))
        self.use = StoreUse(used, min(limits, default=None), used / count if count else 0.0)

    async def _evict(self, *, before: datetime, excess: float | None = None) -> int:
        """Evict results that were last used before a time, until so many bytes are free."""
        count = size = 0
        while excess is None or size < excess:
            found = await self._database.read(
                stored_objects.least_recently_used, before=before, most=BATCH
            )
            chosen = found if excess is None else _first(found, excess - size)
            if not chosen:
                break
            keys = [one.key for one in chosen]
            # in this order: a row without its object is mended, an object without a row is not seen
            await self._objects.delete(keys)
            await self._database.write(stored_objects.evict, keys)
            count += len(chosen)
            size += sum(one.bytes for one in chosen)
        if count:
            log.info(
                "%d results (%.2f GB) that were last used before %s were evicted",
                count,
                size / 1e9,
                f"{before:%Y-%m-%d %H:%M}",
            )
        return count

    def admitted(self, demand: Sequence[Demand], at_work: Mapping[str, int]) -> list[Demand]:
        """Return the requests of which files may start; the others get no share of the workers.

        Parameters
        ----------
        demand
            Requests, with the mean size of their results.
        at_work
            Files in the engine, by request. Room is kept for their results.
        """
        self._without_room.clear()
        quota = self._policy.quota
        if self.use.capacity is None and quota is None:
            return list(demand)
        expected = self._expected(demand, at_work)
        room, is_tight = self.use.room() - sum(expected.values()), self.use.room(TIGHT) <= 0
        by_owner = Counter(self._owners)
        for one in demand:
            by_owner[one.owner] += int(expected[one.request_id])
        found = []
        for one in demand:
            mean = self._mean(one)
            if quota is not None and by_owner[one.owner] >= quota:
                continue
            if room <= 0 or mean > room or (is_tight and one.left * mean > room):
                self._without_room.add(one.request_id)
            else:
                found.append(one)
        return found

    def allowed(
        self, shares: Mapping[str, int], demand: Sequence[Demand], at_work: Mapping[str, int]
    ) -> dict[str, int]:
        """Return how many files of each request may start, of those that would.

        Parameters
        ----------
        shares
            Files that would start, by request.
        demand, at_work
            As for `admitted`.
        """
        if self.use.capacity is None:
            return dict(shares)
        known = {one.request_id: one for one in demand}
        room = self.use.room() - sum(self._expected(demand, at_work).values())
        found: dict[str, int] = {}
        for request_id, count in shares.items():
            one, mean = known[request_id], self._mean(known[request_id])
            most = count
            if one.mean is None:
                first = FIRST_FILES if self.use.room(EVICT) > 0 else 1
                most = min(count, max(0, first - at_work.get(request_id, 0)))
            if most * mean > room:
                most = max(0, int(room // mean))
            if most:
                found[request_id] = most
                room -= most * mean
        return found

    def _expected(self, demand: Sequence[Demand], at_work: Mapping[str, int]) -> dict[str, float]:
        """Return by request the bytes of the results that are being made."""
        found = {name: count * self.use.mean for name, count in at_work.items()}
        for one in demand:
            found[one.request_id] = at_work.get(one.request_id, 0) * self._mean(one)
        return found

    def _mean(self, one: Demand) -> float:
        """Return how large a result of a request is expected to be."""
        return self.use.mean if one.mean is None else one.mean


def _first(found: Sequence[StoredObject], size: float) -> list[StoredObject]:
    """Return as many objects from the start as have so many bytes together."""
    chosen: list[StoredObject] = []
    for one in found:
        if size <= 0:
            break
        chosen.append(one)
        size -= one.bytes
    return chosen
