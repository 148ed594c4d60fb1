"""Six months of five analyses on a store of 50 TB, by a clock that runs ahead.

The rows, the budget and the eviction are those of the service; bytes are ten thousand times fewer.
Each analysis has about 10 TB of input and submits 1.5 requests a day, of which 60 % read a
thousandth of it, 25 % a tenth and 15 % everything. The output is 8 % of the input (median). Half of
the requests have a new query. Results are read one to eight times, four days apart on average.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random

from sqlalchemy import func, select, update

from benchmarks.report import Section
from servicex_server.database.tables import objects, requests
from servicex_server.retention.budget import RetentionPolicy
from tests.retention_world import Clock, World, in_place_of_now

TERABYTE = 10**8
"""Bytes here for each terabyte there."""

DAYS = 182
ANALYSES = 5
FILES = 10
"""Results of a request."""

PARTS = {0.001: 60, 0.1: 25, 1.0: 15}
"""Parts of the input that requests read, and how many of a hundred read each."""

NEW = 0.5
"""Share of the requests that have a new query."""

BUDGET = 50 * TERABYTE
YOUNG = timedelta(days=7)

Key = tuple[int, int, float]
"""Analysis, query, and the part of the input that is read."""


@dataclass(frozen=True, order=True)
class Event:
    """What a user does at a time in days: asks for results, or reads them again."""

    day: float
    reads: bool
    key: Key
    size: int = 0


def demand(random: Random, *, busy: float) -> Iterator[Event]:
    """Yield what the users of all analyses do, in no order."""
    for analysis in range(ANALYSES):
        terabytes = 10 * random.uniform(0.6, 1.4)
        query, share, day = 0, _share(random), random.uniform(0, 20)
        while (day := day + random.expovariate(1.5 * busy)) < DAYS:
            (part,) = random.choices(list(PARTS), PARTS.values())
            if random.random() < NEW:
                query, share = query + 1, _share(random)
            key = analysis, query, part
            yield Event(day, False, key, int(terabytes * part * share * TERABYTE))  # noqa: FBT003
            again = day
            for _ in range(random.randint(1, 4) if part < 1 else random.randint(2, 8)):
                again += random.expovariate(1 / 4)
                if again < DAYS:
                    yield Event(again, True, key)  # noqa: FBT003


def _share(random: Random) -> float:
    return min(0.5, random.lognormvariate(-2.5, 0.7))


@dataclass
class Seen:
    """What happened in the six months."""

    peak: int = 0
    reads: int = 0
    again: int = 0
    made_again: int = 0
    evicted: int = 0
    young: int = 0
    waited: int = 0
    asked: int = 0


async def live(
    world: World, clock: Clock, events: list[Event], random: Random, pins: float
) -> Seen:
    """Let six months pass."""
    seen, began = Seen(), clock.moment
    known: dict[Key, str] = {}
    await world.budget.measure()
    for event in events:
        clock.moment = began + timedelta(days=event.day)
        looked = clock()
        await world.budget.look(looked)
        evicted, young = await world.database.read(
            lambda one, looked=looked: one.execute(
                select(func.count(), func.count().filter(objects.c.made > looked - YOUNG)).where(
                    objects.c.evicted >= looked
                )
            ).one()
        )
        seen.evicted += evicted
        seen.young += young
        await world.work()
        before = world.made
        if (request_id := known.get(event.key)) is not None:
            again = await world.read(request_id)
            if event.reads:
                seen.reads += 1
                seen.again += again
            seen.made_again += world.made - before
        elif not event.reads:
            seen.asked += 1
            known[event.key] = await world.ask("ann", FILES, max(1, event.size // FILES))
            if random.random() < pins:
                pin = update(requests).where(requests.c.id == known[event.key]).values(pinned=True)
                await world.database.write(lambda one, pin=pin: one.execute(pin))
            await world.work()
            seen.waited += known[event.key] in world.budget.as_dict()["without_room"]
    seen.peak = world.peak
    return seen


POLICIES = {
    "the demand above": (1.0, 1.0, 0.0),
    "10 % of the requests pinned": (1.0, 1.0, 0.1),
    "double demand": (2.0, 1.0, 0.0),
    "double demand, evicted after 7 days at least": (2.0, 7.0, 0.0),
}
"""Demand, least days before an eviction, and the share of pinned requests."""


def retention(seeds: int) -> list[Section]:
    """Live through six months, for each policy and several random demands; return a table."""
    rows = []
    for name, (busy, least, pins) in POLICIES.items():
        found = [_lived(seed, busy, least, pins) for seed in range(seeds)]
        reads = sum(one.reads for one in found)
        evicted = sum(one.evicted for one in found)
        waited, asked = (
            sum(getattr(one, what) for one in found) / seeds for what in ("waited", "asked")
        )
        rows.append(
            (
                name,
                f"{max(one.peak for one in found) / TERABYTE:.1f}",
                f"{100 * sum(one.again for one in found) / max(1, reads):.1f} %",
                f"{sum(one.made_again for one in found) / TERABYTE / seeds:.0f}",
                f"{evicted / seeds:,.0f}",
                f"{100 * sum(one.young for one in found) / max(1, evicted):.1f} %",
                f"{waited:.0f} of {asked:.0f}",
            )
        )
    headings = (
        "six months",
        "peak, TB",
        "re-reads that were made again",
        "TB made again",
        "results evicted",
        "of these younger than 7 days",
        "requests that waited for room",
    )
    note = (
        f"The eviction, the budget of 50 TB and the rows of the service on {seeds} made-up "
        "demands of five analyses (see `benchmarks/retention.py`); results are evicted 30 days "
        "after their last use, or when the budget fills. Goals: peak at most 50 TB, re-reads that "
        "were made again at most 2 %, and at double demand at most 5 % evicted before 7 days."
    )
    return [Section("Six months of results", headings, tuple(rows), note)]


def _lived(seed: int, busy: float, least: float, pins: float) -> Seen:
    random, clock = Random(seed), Clock()
    events = sorted(demand(random, busy=busy))
    policy = RetentionPolicy(budget=BUDGET, unused=timedelta(days=30), least=timedelta(days=least))
    with (
        tempfile.TemporaryDirectory() as folder,
        in_place_of_now(clock),
        asyncio.Runner() as runner,
    ):
        world = World(Path(folder), policy, slots=FILES)
        seen = runner.run(live(world, clock, events, random, pins))
        world.close()
    return seen
