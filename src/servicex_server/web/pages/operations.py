"""The pages of storage endpoints and workers, for operators and administrators."""

from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from servicex_server.database import (
    active_requests,
    service_history,
    status_snapshots,
    stored_objects,
)
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.model import now
from servicex_server.web.api import operations as api_operations
from servicex_server.web.api import schemas
from servicex_server.web.dependencies import TheApp
from servicex_server.web.pages import (
    day_chart,
    templating,
)
from servicex_server.web.pages.dependencies import (
    PagePrincipal,
    PageSeesAllRequired,
)

router = APIRouter(include_in_schema=False)

OWNERS = 10
"""Users that the workers page lists by bytes of results."""


@router.get("/sites", dependencies=[PageSeesAllRequired])
async def sites(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Show the health of storage endpoints, and the bad replicas."""
    seen, age = await api_operations.seen(app, status_snapshots.SITES)
    bad = await app.database.read(bad_replica_rows.listed)
    found = schemas.sites_json(seen, age, bad)["sites"]
    return templating.page(
        "sites",
        request,
        principal,
        endpoints=found,
        age=age,
        bad=bad[:100],
        total=len(bad),
    )


@router.get("/sites/bad-replicas.csv", dependencies=[PageSeesAllRequired])
async def bad_replicas(app: TheApp) -> Response:
    """Return the bad replicas as a CSV file to send to a site."""
    return await api_operations.bad_replicas_table(app)


@router.get("/workers", dependencies=[PageSeesAllRequired])
async def workers(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Show the task of each worker, the queue by user, and a chart of the last 24 hours."""
    seen, age = await api_operations.seen(app, status_snapshots.WORKERS)
    queued = await app.database.read(active_requests.queue, principal)
    began = day_chart.beginning(now())
    rows = await app.database.read(service_history.since, began)
    waiting, running = Counter[str](), Counter[str]()
    for one in queued:
        waiting[one.owner] += one.waiting
        running[one.owner] += one.running
    nothing: dict[str, Any] = {"workers": [], "wanted": 0, "reason": "no process has led yet"}
    value = seen.value if seen else nothing
    storage, _ = await api_operations.seen(app, status_snapshots.STORAGE)
    return templating.page(
        "workers",
        request,
        principal,
        value=value,
        states=Counter(one["state"] for one in value["workers"]),
        users=[(user, running[user], waiting[user]) for user in sorted(waiting)],
        figure=day_chart.day(rows, began),
        disk=await app.objects.disk(),
        capacity=storage.value["capacity"] if storage else None,
        stored=await app.database.read(stored_objects.size),
        owners=await app.database.read(stored_objects.largest_owners, most=OWNERS),
        age=age,
    )
