"""Fair share: users get equal shares of the slots, and each user's shortest request comes first."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servicex_server.model import Demand


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits on files in the engine at a time, for each user and each request; None: no limit."""

    user: int | None = None
    request: int | None = None


def fair_shares(
    demand: Sequence[Demand], running: Mapping[str, int], slots: int, caps: Caps
) -> dict[str, int]:
    """Assign slots: each to the user with the fewest running files, for their shortest request.

    So a very long request gets the slots that the others leave, however long it has waited.

    Parameters
    ----------
    demand
        Requests with files that have not ended, the oldest first.
    running
        Files in the engine, by request.
    slots
        Slots that are free.
    caps
        The limits.

    Returns
    -------
    How many files to start, by request. Requests without a slot are omitted.

    Examples
    --------
    >>> giant, small, other = Demand("g", "ann", 900), Demand("s", "ann", 2), Demand("o", "bob", 3)
    >>> fair_shares([giant, small, other], {}, 8, Caps())
    {'s': 2, 'o': 3, 'g': 3}
    """
    busy: Counter[str] = Counter()
    room: dict[str, int] = {}
    queues: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for age, one in enumerate(demand):
        at_work = running.get(one.request_id, 0)
        busy[one.owner] += at_work
        room[one.request_id] = _less(one.left, caps.request) - at_work
        if room[one.request_id] > 0:
            queues[one.owner].append((one.left, age, one.request_id))
    for queue in queues.values():
        heapq.heapify(queue)
    turns = [(busy[owner], age, owner) for age, owner in enumerate(queues)]
    heapq.heapify(turns)
    dealt: Counter[str] = Counter()
    while slots > 0 and turns:
        count, age, owner = heapq.heappop(turns)
        if caps.user is not None and count >= caps.user:
            continue
        queue = queues[owner]
        request_id = queue[0][2]
        dealt[request_id] += 1
        room[request_id] -= 1
        slots -= 1
        if not room[request_id]:
            heapq.heappop(queue)
        if queue:
            heapq.heappush(turns, (count + 1, age, owner))
    return dict(dealt)


def _less(number: int, cap: int | None) -> int:
    return number if cap is None else min(number, cap)
