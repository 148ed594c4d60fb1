"""Metrics of the service in the Prometheus text format.

They describe the whole service: the rows in the database, and the counters that the leader stores.
Counters start at 0 when another process takes the lead. Labels never contain a name, a path or a
query of a user.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from servicex_server.database.active_requests import Totals
from servicex_server.observability.counters import SECONDS

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _Once(Collector):
    """A collector of metrics that already have their values."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._metrics


def text(totals: Totals, counts: Mapping[str, Any] | None, *, led: bool, current: bool) -> bytes:
    """Return all metrics.

    Parameters
    ----------
    totals
        Numbers of active requests and their files, from the database.
    counts
        Counters that the leader stored; None if no process has led yet.
    led
        Whether a process leads now.
    current
        Whether ``counts`` are up to date.
    """
    metrics = list(_of_rows(totals, led=led))
    if counts is not None:
        metrics += [*_workers(counts, current=current), *_counters(counts), _histogram(counts)]
    return generate_latest(_Once(metrics))


def _of_rows(totals: Totals, *, led: bool) -> Iterator[Metric]:
    yield _labelled("servicex_files", "Files of requests that have not ended.", totals.files)
    yield _labelled("servicex_requests", "Requests that have not ended.", totals.requests)
    yield GaugeMetricFamily(
        "servicex_oldest_waiting_request_seconds",
        "Age of the oldest request of which no file has started; 0 if there is none.",
        totals.oldest,
    )
    yield GaugeMetricFamily("servicex_led", "Whether a process looks after the work.", int(led))


def _labelled(name: str, what: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, what, labels=["state"])
    for state, value in values.items():
        gauge.add_metric([state.value], value)
    return gauge


def _workers(counts: Mapping[str, Any], *, current: bool) -> Iterator[Metric]:
    """Yield the numbers of workers; they have no values after the leader that had them is gone."""
    wanted = GaugeMetricFamily("servicex_workers_wanted", "Workers that there should be.")
    there = GaugeMetricFamily(
        "servicex_workers", "Workers that there are; an unfit one gets no files.", labels=["state"]
    )
    pending = GaugeMetricFamily(
        "servicex_workers_pending", "Workers that wait for a batch system or Kubernetes to start."
    )
    store = GaugeMetricFamily(
        "servicex_store_open",
        "1 while no file starts because the object store is away or full, else 0.",
    )
    if current:
        store.add_metric([], int(counts.get("store_open", False)))
        wanted.add_metric([], counts["wanted"])
        pending.add_metric([], counts.get("pending", 0))
        for state in ("idle", "busy", "unfit"):
            there.add_metric([state], counts[state])
    yield from (wanted, pending, there, store)


def _counters(counts: Mapping[str, Any]) -> Iterator[Metric]:
    for name, key, what in (
        ("read_bytes", "bytes_read", "Bytes that tasks have read."),
        ("written_bytes", "bytes_written", "Bytes of results that tasks have written."),
        ("events", "events", "Events that tasks have read."),
        ("reused_files", "reused", "Files whose result was there already."),
        ("workers_replaced", "replaced", "Workers that were lost and replaced."),
        ("engine_restarts", "restarts", "Times that the scheduler was lost and reached again."),
    ):
        yield CounterMetricFamily(f"servicex_{name}", what, counts.get(key, 0))
    blamed = CounterMetricFamily(
        "servicex_attempts", "Tries at a copy of a file, by whose fault it was.", labels=["blame"]
    )
    for blame, number in counts["attempts"].items():
        blamed.add_metric([blame], number)
    ended = CounterMetricFamily(
        "servicex_requests_ended", "Requests that have ended.", labels=["state"]
    )
    for state, number in counts["requests"].items():
        ended.add_metric([state], number)
    yield from (blamed, ended)


def _histogram(counts: Mapping[str, Any]) -> Metric:
    histogram = HistogramMetricFamily(
        "servicex_task_seconds", "Seconds of the work on a file, or a part.", labels=["result"]
    )
    bounds = [*map(str, SECONDS), "+Inf"]
    for result, seen in counts["tasks"].items():
        upto = list(zip(bounds, accumulate(seen["classes"]), strict=True))
        histogram.add_metric([result], upto, seen["seconds"])
    return histogram
