"""The engine ends a task that takes too long."""

import time

import pytest

from servicex_server.engine.workers import GRACE_SECONDS, RunningTask
from servicex_server.model import Limits, ResultFormat, TaskSpec


@pytest.mark.parametrize(
    ("seconds", "ended"),
    [(59.0, ""), (60.0 + GRACE_SECONDS / 2, ""), (61.0 + GRACE_SECONDS, "longer than 60 s")],
)
def test_worker_has_time_to_end_a_function_itself(seconds: float, ended: str) -> None:
    """The worker knows the line of the function; the engine only knows that the time is over."""
    spec = TaskSpec(
        request_id="r",
        file_id=1,
        attempt=1,
        replicas=(),
        language="python",
        selection="",
        format=ResultFormat.PARQUET,
        object_name="a",
        upload_url="file:///a",
        limits=Limits(seconds=60.0),
    )
    task = RunningTask(spec)
    task.begin()
    assert task.overdue() == ""
    task.began = time.monotonic() - seconds
    assert (ended in task.overdue()) if ended else task.overdue() == ""
