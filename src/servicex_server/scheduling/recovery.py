"""Recovery: what the last leader left is recorded if it is finished, and starts again if not."""

import logging
from collections.abc import Sequence

from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.model import Outcome
from servicex_server.storage.contract import UNFINISHED, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)


async def recover(database: Database, objects: ObjectStore) -> set[str]:
    """Take up the files that the last leader left in the engine.

    A file whose object is complete is done; the others wait again. Objects that workers had not
    finished when they were killed are removed.

    Returns
    -------
    The ids of the requests that may have ended by this.
    """
    left = await database.read(task_rows.running)
    unfinished = {one.request_id for one in await database.read(task_rows.demand)}
    there = {
        info.key: info
        for request_id in unfinished | {work.request_id for work in left}
        for info in await objects.list(request_id)
    }
    await objects.delete(key for key in there if key.rpartition("/")[2].startswith(UNFINISHED))
    await objects.delete(work.speculative_key for work in left if work.speculative_key in there)
    finished = [
        _recorded(work, there[work.object_key]) for work in left if work.object_key in there
    ]
    if finished:
        await database.write(outcome_rows.record, finished, most_attempts=1)
    waiting = await database.write(task_rows.recover)
    _log(left, len(finished), waiting)
    return {work.request_id for work in left}


def _recorded(work: task_rows.Work, found: ObjectInfo) -> outcome_rows.Recorded:
    outcome = Outcome(
        work.request_id,
        work.file_id,
        work.attempt,
        entries=work.entries,
        url=work.file.path,
        events_read=work.file.events,
        events_written=None,
        bytes_written=found.size,
    )
    return outcome_rows.Recorded(
        work.task_id, outcome, object_name=work.object_name, object_key=work.object_key
    )


def _log(left: Sequence[task_rows.Work], finished: int, waiting: int) -> None:
    if left:
        log.info(
            "%d files were running when the service ended: %d are done, %d start again",
            len(left),
            finished,
            waiting,
        )
