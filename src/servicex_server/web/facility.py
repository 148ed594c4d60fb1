"""The API that is ours alone: the queue, workers and sites, and how the service does."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response

from servicex_server.app import App
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database import open_requests, snapshots
from servicex_server.database.leadership import ping
from servicex_server.errors import InternalError
from servicex_server.model import now
from servicex_server.web import metrics, wire
from servicex_server.web.askers import Asker, SeesAll, TheApp

router = APIRouter()

READY_SECONDS = 5
"""How long the database may take to answer the question whether it does."""


@router.get("/servicex/queue", summary="Requests that have not ended")
async def queue(app: TheApp, principal: Asker) -> dict[str, Any]:
    """Return one's requests that have not ended, with how fast they go on; or everybody's."""
    found = await app.database.read(open_requests.queue, principal)
    return {"requests": [wire.queued_json(one) for one in found]}


@router.get("/servicex/workers", summary="Workers, and what they are on", dependencies=[SeesAll])
async def workers(app: TheApp) -> dict[str, Any]:
    """Return the workers to those who see all: what they are on is other people's files."""
    found, age = await seen(app, snapshots.WORKERS)
    return wire.workers_json(found, age)


@router.get("/servicex/sites", summary="Doors of sites, and how they do", dependencies=[SeesAll])
async def sites(app: TheApp) -> dict[str, Any]:
    """Return every door that was tried, by how it has done, to those who see all."""
    found, age = await seen(app, snapshots.SITES)
    bad = await app.database.read(bad_replica_rows.listed)
    return wire.sites_json(found, age, bad)


@router.post(
    "/servicex/sites/probe", summary="Look at every door of a site", dependencies=[SeesAll]
)
async def probe_sites(app: TheApp) -> dict[str, Any]:
    """Open a replica at every door that is known, from a worker; what is found counts there."""
    return wire.probes_json(await app.probe())


@router.get(
    "/servicex/replicas/bad",
    summary="Replicas that are bad",
    response_model=None,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
    dependencies=[SeesAll],
)
async def bad_replicas(
    app: TheApp,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> dict[str, Any] | Response:
    """Return the replicas that failed where another one worked, to those who see all."""
    if form == "csv":
        return await bad_replicas_table(app)
    found = await app.database.read(bad_replica_rows.listed)
    return {"replicas": [wire.bad_replica_json(one) for one in found]}


async def bad_replicas_table(app: App) -> Response:
    """Return the replicas that are bad, as a file."""
    found = await app.database.read(bad_replica_rows.listed)
    listed = [wire.bad_replica_json(one) for one in found]
    name = 'attachment; filename="bad-replicas.csv"'
    return Response(
        wire.bad_replicas_csv(listed),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": name},
    )


async def seen(app: App, name: str) -> tuple[snapshots.Snapshot | None, float | None]:
    """Return what a leader wrote down, and its age if it may not be so any more."""
    led = await app.is_led()
    found = await app.database.read(snapshots.get, name)
    return found, wire.age_of(found, now(), led=led) if found else None


@router.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
async def numbers(app: TheApp) -> Response:
    """Return numbers of the whole service, the same from every process of it."""
    led = await app.is_led()
    totals = await app.database.read(open_requests.totals)
    counts, age = await seen(app, snapshots.COUNTS)
    text = metrics.text(totals, counts.value if counts else None, led=led, current=age is None)
    return Response(text, media_type=metrics.CONTENT_TYPE)


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Return as long as the process answers at all."""
    return {"status": "alive"}


@router.get("/readyz", summary="Can it work?")
async def readyz(app: TheApp) -> dict[str, Any]:
    """Return once the database answers; of the process that leads, once workers are there."""
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
    return {"status": "ready", "leads": True, "workers": len(leader.dispatcher.workers())}


class _NotReadyError(InternalError):
    """Not now, but soon."""

    status = 503
