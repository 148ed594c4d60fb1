"""The pages, and the forms on them."""

import asyncio
from collections import Counter
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from servicex_server.app import App
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database import browsing, history, open_requests, progress, snapshots, use
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.errors import NotFoundError
from servicex_server.model import Principal, RequestState, TaskState, now
from servicex_server.objects.bucket import bucket_keys
from servicex_server.replicas import door_of
from servicex_server.submission import FILE_LIST_DID, Order
from servicex_server.web import api, facility, wire
from servicex_server.web.askers import TheApp, base_of
from servicex_server.web.pages import (
    api_description,
    day,
    entrance,
    people,
    profile,
    rendering,
    timeline,
)
from servicex_server.web.pages.selections import readable
from servicex_server.web.pages.visitors import Anybody, SeesAll, Visitor
from servicex_server.web.signatures import presigned_query

router = APIRouter(include_in_schema=False)
for chapter in (entrance, profile, people):
    router.include_router(chapter.router)

LINK_SECONDS = 3600
"""How long the address works that a result is fetched from."""

PLACES = 2000
"""Files of a dataset of which it is counted where they are."""

OWNERS = 10
"""Users that are shown of those who have the most bytes of results."""

_SHOWN = {
    "open": request_rows.OPEN,
    "complete": [RequestState.COMPLETE],
    "failed": [RequestState.FATAL, RequestState.BAD_DATASET],
    "canceled": [RequestState.CANCELED],
}

_STATIC = {"pages.css": "text/css", "live.js": "text/javascript"}

Start = Annotated[int, Query(ge=0, le=1 << 40)]


@router.get("/")
async def home(app: TheApp, principal: Anybody, request: Request) -> Response:
    """Show what this is, and how to start."""
    return rendering.page("home", request, principal, base=base_of(app, request))


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Return the style sheet or the script of all pages."""
    if name not in _STATIC:
        raise NotFoundError(f"there is nothing at /static/{name}")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    path = rendering.FOLDER / "static" / name
    return FileResponse(path, media_type=_STATIC[name], headers=headers)


@router.get("/requests")
async def requests(
    app: TheApp,
    principal: Visitor,
    request: Request,
    state: Literal["", "open", "complete", "failed", "canceled"] = "",
    q: str = "",
    of: Literal["", "all"] = "",
    start: Start = 0,
) -> Response:
    """Show one's requests, or everybody's to those who see all."""
    found, total = await app.database.read(
        browsing.requests_page,
        principal,
        states=_SHOWN.get(state, ()),
        wanted=q.strip(),
        everybody=of == "all",
        start=start,
    )
    queued = await app.database.read(open_requests.queue, principal)
    return rendering.page(
        "requests",
        request,
        principal,
        found=found,
        total=total,
        queue={one.request_id: one for one in queued},
        state=state,
        wanted=q,
        of=of,
        base=base_of(app, request),
        **_paging(request, start, browsing.PAGE, total),
    )


def _paging(request: Request, start: int, most: int, total: int) -> dict[str, Any]:
    """Return the addresses of the pages before and after this one."""
    others = [(name, value) for name, value in request.query_params.items() if name != "start"]

    def at(place: int) -> str:
        return f"{request.url.path}?{urlencode([*others, ('start', place)])}"

    return {
        "start": start,
        "earlier": at(max(0, start - most)) if start else None,
        "later": at(start + most) if start + most < total else None,
    }


@router.get("/requests/{request_id}")
async def one_request(
    app: TheApp,
    principal: Visitor,
    request: Request,
    request_id: str,
    state: Literal["", "waiting", "running", "done", "failed", "canceled"] = "",
    start: Start = 0,
) -> Response:
    """Show a request: what was asked, how far it is, what went wrong, and its results."""
    found = await app.database.read(request_rows.get, principal, request_id)
    only = TaskState(state) if state else None
    ended = found.finished_at or now()
    length = timeline.step(found.submitted_at, ended)
    read = app.database.read
    # together, for with very many files each takes a moment
    (files, counts), failures, steps, queued = await asyncio.gather(
        read(browsing.tasks_page, principal, request_id, state=only, start=start),
        read(browsing.failures, principal, request_id),
        read(
            progress.steps,
            principal,
            request_id,
            began=found.submitted_at,
            length=length,
            count=timeline.STEPS,
        ),
        read(open_requests.queue, principal),
    )
    total = counts.get(only, 0) if only else sum(counts.values())
    return rendering.page(
        "request",
        request,
        principal,
        found=found,
        query=readable(found.language, found.selection),
        files=files,
        counts=counts,
        failures=failures,
        bytes=sum(one.bytes for one in steps),
        events=sum(one.events for one in steps),
        queued=next((one for one in queued if one.request_id == request_id), None),
        figure=timeline.timeline(steps, found.files, length),
        seconds=(ended - found.submitted_at).total_seconds(),
        state=state,
        base=base_of(app, request),
        **_paging(request, start, browsing.FILES, total),
    )


@router.get("/requests/{request_id}/results/{name}")
async def result(
    app: TheApp, principal: Visitor, request: Request, request_id: str, name: str
) -> Response:
    """Lead to a result, by an address that works for an hour."""
    await app.database.read(request_rows.get, principal, request_id)
    if await app.buckets.object(request_id, name) is None:
        raise NotFoundError(f"There is no result {name!r} in request {request_id}")
    path = f"/{request_id}/{name}"
    expires = int(now().timestamp()) + LINK_SECONDS
    signed = presigned_query(path, bucket_keys(app.keys.newest, request_id), expires)
    address = f"{base_of(app, request)}{quote(path, safe='/~')}?{signed}"
    return RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})


@router.post("/requests/{request_id}/cancel")
async def cancel(app: TheApp, principal: Visitor, request_id: str) -> Response:
    """End a request, and show it."""
    await api.cancel(app, principal, request_id)
    return RedirectResponse(f"/requests/{request_id}", 303)


@router.post("/requests/{request_id}/delete")
async def delete(app: TheApp, principal: Visitor, request: Request, request_id: str) -> Response:
    """Remove a request with its results, once it is clear that this is meant."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    if form.get("sure") != ["yes"]:
        found = await app.database.read(request_rows.get, principal, request_id)
        return rendering.page("delete", request, principal, found=found)
    await api.delete(app, principal, request_id)
    return RedirectResponse("/requests", 303)


@router.post("/requests/{request_id}/resubmit")
async def resubmit(app: TheApp, principal: Visitor, request_id: str) -> Response:
    """Ask for the same again, and show that."""
    new = await app.submission.accept(principal, await _same_again(app, principal, request_id))
    return RedirectResponse(f"/requests/{new}", 303)


async def _same_again(app: App, principal: Principal, request_id: str) -> Order:
    found = await app.database.read(request_rows.get, principal, request_id)
    did: str | None = found.did
    files: list[str] | None = None
    if found.did == FILE_LIST_DID:
        _, reference = await app.database.read(dataset_rows.reference_of, found.dataset_id)
        did, files = None, reference["value"]
    return Order(
        selection=found.selection,
        language=found.language,
        format=found.format,
        did=did,
        files=files,
        title=found.title,
        file_seconds=found.file_seconds,
    )


@router.get("/datasets")
async def datasets(
    app: TheApp, principal: Visitor, request: Request, q: str = "", start: Start = 0
) -> Response:
    """Show the datasets that have been looked up."""
    found, total = await app.database.read(
        browsing.datasets_page, principal, wanted=q.strip(), start=start
    )
    paging = _paging(request, start, browsing.PAGE, total)
    return rendering.page(
        "datasets", request, principal, found=found, total=total, wanted=q, **paging
    )


@router.get("/datasets/{dataset_id}")
async def one_dataset(
    app: TheApp, principal: Visitor, request: Request, dataset_id: str, start: Start = 0
) -> Response:
    """Show a dataset: its files, and at which sites they are."""
    number = api.dataset_number(dataset_id)
    found = await app.database.read(dataset_rows.get, principal, number)
    files = await app.database.read(browsing.files_page, principal, number, start=start)
    places = await app.database.read(browsing.places_of, principal, number, most=PLACES)
    sites = Counter(
        site
        for replicas in places
        for site in {one.rse or door_of(one.url) or "this machine" for one in replicas}
    )
    return rendering.page(
        "dataset",
        request,
        principal,
        found=found,
        files=files,
        sites=sites.most_common(),
        counted=len(places),
        **_paging(request, start, browsing.FILES, found.n_files),
    )


@router.get("/sites", dependencies=[SeesAll])
async def sites(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Show how the doors of sites do, and the replicas that are bad."""
    seen, age = await facility.seen(app, snapshots.SITES)
    bad = await app.database.read(bad_replica_rows.listed)
    doors = wire.sites_json(seen, age, bad)
    return rendering.page(
        "sites", request, principal, doors=doors["sites"], age=age, bad=bad[:100], total=len(bad)
    )


@router.get("/sites/bad-replicas.csv", dependencies=[SeesAll])
async def bad_replicas(app: TheApp) -> Response:
    """Return the replicas that are bad, as a table to send to a site."""
    return await facility.bad_replicas_table(app)


@router.get("/workers", dependencies=[SeesAll])
async def workers(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Show what the workers are on, who waits for them, and how it was in the last day."""
    seen, age = await facility.seen(app, snapshots.WORKERS)
    queued = await app.database.read(open_requests.queue, principal)
    began = day.beginning(now())
    rows = await app.database.read(history.since, began)
    waiting, running = Counter[str](), Counter[str]()
    for one in queued:
        waiting[one.owner] += one.waiting
        running[one.owner] += one.running
    nothing: dict[str, Any] = {"workers": [], "wanted": 0, "reason": "no process has led yet"}
    value = seen.value if seen else nothing
    return rendering.page(
        "workers",
        request,
        principal,
        value=value,
        states=Counter(one["state"] for one in value["workers"]),
        users=[(user, running[user], waiting[user]) for user in sorted(waiting)],
        figure=day.day(rows, began),
        disk=await app.objects.disk(),
        stored=await app.database.read(use.stored),
        owners=await app.database.read(use.stored_by_user, most=OWNERS),
        age=age,
    )


@router.get("/docs")
async def docs(principal: Anybody, request: Request) -> Response:
    """Show the routes of the API, from its OpenAPI document."""
    found = api_description.routes(request.app.openapi())
    return rendering.page("docs", request, principal, routes=found)
