"""Recording outcomes: how files ended goes into the database, and with them requests end."""

import itertools
import logging
import time
from collections.abc import Iterable

from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import request_completion
from servicex_server.database.connection import Database
from servicex_server.model import Outcome, RequestState
from servicex_server.observability.counters import Counts
from servicex_server.scheduling.in_flight import Ended, InFlight
from servicex_server.scheduling.policy import DispatchPolicy
from servicex_server.scheduling.replica_refresh import ReplicaRefresh
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

MOST_ORPHANS = 10_000
"""Keys of objects that are kept for deletion while the store does not answer."""


DELETE_SECONDS = 30.0
"""Seconds before a deletion is tried again that the store did not carry out."""


class OutcomeRecorder:
    """Stores the outcomes of the files that have ended, and ends requests.

    Nothing is forgotten before its transaction has committed. If one fails, the outcomes stay in
    `InFlight` and the requests in question stay here, and the next call takes them up.
    """

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        in_flight: InFlight,
        refresh: ReplicaRefresh,
        policy: DispatchPolicy,
        counts: Counts,
    ) -> None:
        self._database = database
        self._objects = objects
        self._in_flight = in_flight
        self._refresh = refresh
        self._policy = policy
        self._counts = counts
        self._checks: dict[str, int] = {}
        self._checked = itertools.count()
        self._orphans: list[str] = []
        self._delete_again = 0.0

    def check(self, request_ids: Iterable[str]) -> None:
        """Note requests that may have ended, for the next call of `record`."""
        self._checks |= {request_id: next(self._checked) for request_id in request_ids}

    async def record(self) -> tuple[set[str], dict[str, RequestState]]:
        """Store what has ended.

        Returns
        -------
        looked_at
            Ids of the requests that may have ended.
        ended
            Those that have, and how.
        """
        await self._store_outcomes()
        await self._delete_orphans()
        checks = dict(self._checks)
        if not checks:
            return set(), {}
        states = await self._database.write(
            request_completion.finish, set(checks), fatal_after=self._policy.fatal_after
        )
        for request_id, number in checks.items():
            if self._checks.get(request_id) == number:  # not noted again meanwhile
                del self._checks[request_id]
        self._counts.requests(states.values())
        for request_id, state in states.items():
            log.info("request ended: %s", state.value, extra={"request_id": request_id})
        return set(checks), states

    async def _store_outcomes(self) -> None:
        ended = [
            one
            for one in self._in_flight.ended()
            if one.named is not None or not self._refresh.hold(one)
        ]
        if not ended:
            return
        touched, orphans = await self._database.write(
            outcome_rows.record,
            [_recorded(one) for one in ended],
            most_attempts=self._policy.attempts,
        )
        self._orphans += orphans
        self.check(touched)
        for one in ended:
            if self._in_flight.stored(one.key) and not one.outcome.parts:
                self._counts.task(one.outcome)
            _log(one.outcome)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects that no row names; if the store does not answer, try again later."""
        self._orphans += keys
        await self._delete_orphans()

    async def _delete_orphans(self) -> None:
        if not self._orphans or time.monotonic() < self._delete_again:
            return
        doomed, self._orphans = self._orphans, []
        try:
            await self._objects.delete(doomed)
        except Exception as error:  # noqa: BLE001  # a deletion never holds up the work
            self._orphans = (doomed + self._orphans)[-MOST_ORPHANS:]
            self._delete_again = time.monotonic() + DELETE_SECONDS
            log.warning("%d objects cannot be deleted now: %s", len(self._orphans), error)


def _recorded(one: Ended) -> outcome_rows.Recorded:
    work, outcome = one.work, one.outcome
    made = outcome.error is None and not outcome.parts
    key = work.speculative_key if outcome.speculative else work.object_key
    return outcome_rows.Recorded(
        work.task_id,
        outcome,
        object_name=work.object_name if made else "",
        object_key=key if made else "",
        file=work.file,
        named=one.named,
    )


def _log(outcome: Outcome) -> None:
    extra = {
        "request_id": outcome.request_id,
        "file_id": outcome.file_id,
        "worker": outcome.worker or None,
    }
    if outcome.parts:
        log.info("file is split into %d parts", len(outcome.parts), extra=extra)
    elif outcome.error is None:
        log.debug("file done in %.3f s", outcome.seconds, extra=extra)
    else:
        log.info("file failed: %s: %s", outcome.error.kind, outcome.error.message, extra=extra)
