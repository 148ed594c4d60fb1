"""API routes that upstream ServiceX does not have: queue, workers, sites, metrics and health."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response

from servicex_server.app import App
from servicex_server.database import (
    active_requests,
    service_history,
    status_snapshots,
    stored_objects,
)
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database.leader_lock import ping
from servicex_server.errors import InternalError
from servicex_server.model import now
from servicex_server.web.api import prometheus, responses, schemas
from servicex_server.web.dependencies import CurrentPrincipal, SeesAllRequired, TheApp

router = APIRouter()

READY_SECONDS = 5
"""Seconds within which the database has to answer the readiness probe."""


@router.get("/servicex/queue", summary="Requests that have not ended")
async def queue(app: TheApp, principal: CurrentPrincipal) -> responses.Queue:
    """Return the user's active requests with their progress; or all, for those who see all."""
    found = await app.database.read(active_requests.queue, principal)
    return {"requests": [schemas.queued_json(one) for one in found]}


@router.get(
    "/servicex/workers", summary="Workers and their current files", dependencies=[SeesAllRequired]
)
async def workers(app: TheApp) -> responses.Workers:
    """Return the workers. Only operators and administrators may see other users' files."""
    found, age = await seen(app, status_snapshots.WORKERS)
    return schemas.workers_json(found, age)


@router.get(
    "/servicex/sites", summary="Health of storage endpoints", dependencies=[SeesAllRequired]
)
async def sites(app: TheApp) -> responses.Endpoints:
    """Return the health of every storage endpoint, to operators and administrators."""
    found, age = await seen(app, status_snapshots.SITES)
    bad = await app.database.read(bad_replica_rows.listed)
    return schemas.sites_json(found, age, bad)


@router.get(
    "/servicex/storage", summary="What the object store holds", dependencies=[SeesAllRequired]
)
async def storage(app: TheApp) -> responses.Storage:
    """Return bytes by user and by age, and what is evicted next, to those who see all."""
    found, age = await seen(app, status_snapshots.STORAGE)
    inventory = await app.database.read(stored_objects.inventory)
    days = await app.database.read(service_history.days)
    return schemas.storage_json(found, age, app.settings.storage.unused_days, inventory, days)


@router.post(
    "/servicex/sites/probe", summary="Probe every storage endpoint", dependencies=[SeesAllRequired]
)
async def probe_sites(app: TheApp) -> responses.Probes:
    """Open a replica at every known endpoint from a worker; the result counts for its health."""
    return schemas.probes_json(await app.probe())


@router.get(
    "/servicex/replicas/bad",
    summary="Bad replicas",
    response_model=responses.BadReplicas,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
    dependencies=[SeesAllRequired],
)
async def bad_replicas(
    app: TheApp,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> responses.BadReplicas | Response:
    """Return the replicas that failed while another replica worked, to those who see all."""
    if form == "csv":
        return await bad_replicas_table(app)
    found = await app.database.read(bad_replica_rows.listed)
    return {"replicas": [schemas.bad_replica_json(one) for one in found]}


async def bad_replicas_table(app: App) -> Response:
    """Return the bad replicas as a CSV file."""
    found = await app.database.read(bad_replica_rows.listed)
    listed = [schemas.bad_replica_json(one) for one in found]
    name = 'attachment; filename="bad-replicas.csv"'
    return Response(
        schemas.bad_replicas_csv(listed),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": name},
    )


async def seen(app: App, name: str) -> tuple[status_snapshots.Snapshot | None, float | None]:
    """Return the last snapshot of a leader, and its age in seconds if it may be out of date."""
    led = await app.is_led()
    found = await app.database.read(status_snapshots.get, name)
    return found, schemas.age_of(found, now(), led=led) if found else None


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def numbers(app: TheApp) -> Response:
    """Return the metrics of the whole service. Every process returns the same."""
    led = await app.is_led()
    totals = await app.database.read(active_requests.totals)
    counts, age = await seen(app, status_snapshots.COUNTS)
    text = prometheus.text(totals, counts.value if counts else None, led=led, current=age is None)
    return Response(text, media_type=prometheus.CONTENT_TYPE)


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> responses.Alive:
    """Return 200 for as long as the process can answer."""
    return {"status": "alive"}


@router.get("/readyz", summary="Can it work?")
async def readyz(app: TheApp) -> responses.ReadyLeader | responses.Ready:
    """Return 200 if the database answers and, in the leader, files can be processed."""
    if not app.ready:
        raise _NotReadyError("the service is starting or stopping")
    try:
        async with asyncio.timeout(READY_SECONDS):
            await app.database.read(ping)
    except TimeoutError:
        raise _NotReadyError(f"the database has not answered in {READY_SECONDS} s") from None
    if (leader := app.leader) is None:
        return {"status": "ready", "leads": False}
    if not leader.dispatcher.healthy:
        raise _NotReadyError("files are not dispatched")
    if absence := leader.dispatcher.absence:
        raise _NotReadyError(absence)
    return {"status": "ready", "leads": True, "workers": len(leader.dispatcher.workers())}


class _NotReadyError(InternalError):
    """The process is not ready yet."""

    status = 503
