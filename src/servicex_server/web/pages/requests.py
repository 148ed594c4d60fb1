"""The pages of requests, with their forms."""

import asyncio
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.app import App
from servicex_server.database import (
    active_requests,
    finished_files,
    page_queries,
    request_timeline,
    status_snapshots,
    stored_objects,
)
from servicex_server.database import requests as request_rows
from servicex_server.errors import NotFoundError
from servicex_server.model import Request as Submitted
from servicex_server.model import RequestState, TaskState, now
from servicex_server.web.api import operations as api_operations
from servicex_server.web.dependencies import (
    TheApp,
    base_of,
)
from servicex_server.web.pages import (
    request_chart,
    templating,
)
from servicex_server.web.pages.dependencies import (
    PagePrincipal,
)
from servicex_server.web.pages.formatting import events
from servicex_server.web.pages.paging import Start, paging
from servicex_server.web.pages.query_text import readable
from servicex_server.web.s3.bucket_keys import signed_link

router = APIRouter(include_in_schema=False)

LINK_SECONDS = 3600
"""Seconds for which the link behind a download button is valid."""

_SHOWN = {
    "open": request_rows.OPEN,
    "complete": [RequestState.COMPLETE],
    "failed": [RequestState.FATAL, RequestState.BAD_DATASET],
    "canceled": [RequestState.CANCELED],
}


@router.get("/requests")
async def requests(
    app: TheApp,
    principal: PagePrincipal,
    request: Request,
    state: Literal["", "open", "complete", "failed", "canceled"] = "",
    q: str = "",
    of: Literal["", "all"] = "",
    start: Start = 0,
) -> Response:
    """Show the user's requests; operators and administrators may ask for everybody's."""
    found, total = await app.database.read(
        page_queries.requests_page,
        principal,
        states=_SHOWN.get(state, ()),
        wanted=q.strip(),
        everybody=of == "all",
        start=start,
    )
    queued = await app.database.read(active_requests.queue, principal)
    return templating.page(
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
        **paging(request, start, page_queries.PAGE, total),
    )


@router.get("/requests/{request_id}")
async def one_request(
    app: TheApp,
    principal: PagePrincipal,
    request: Request,
    request_id: str,
    state: Literal["", "waiting", "running", "done", "failed", "canceled"] = "",
    start: Start = 0,
) -> Response:
    """Show a request: its query, progress, failures and results."""
    found = await app.database.read(request_rows.get, principal, request_id)
    only = TaskState(state) if state else None
    ended = found.finished_at or now()
    length = request_chart.step(found.submitted_at, ended)
    read = app.database.read
    # at the same time, because each is slow for a request with very many files
    (files, counts), failures, log, steps, queued, kept = await asyncio.gather(
        read(page_queries.tasks_page, principal, request_id, state=only, start=start),
        read(page_queries.failures, principal, request_id),
        read(finished_files.first_log, found.id),
        read(
            request_timeline.steps,
            principal,
            request_id,
            began=found.submitted_at,
            length=length,
            count=request_chart.STEPS,
        ),
        read(active_requests.queue, principal),
        read(stored_objects.kept_of, found.id),
    )
    total = counts.get(only, 0) if only else sum(counts.values())
    return templating.page(
        "request",
        request,
        principal,
        found=found,
        query=readable(found.language, found.selection),
        files=files,
        counts=counts,
        failures=failures,
        trouble="" if found.state.terminal else await _trouble(app, found),
        log=log,
        kept=kept,
        until=_until(app, kept),
        bytes=sum(one.bytes for one in steps),
        events=events(*request_chart.totals(steps)),
        queued=next((one for one in queued if one.request_id == request_id), None),
        figure=request_chart.timeline(steps, found.files, length),
        seconds=(ended - found.submitted_at).total_seconds(),
        state=state,
        base=base_of(app, request),
        **paging(request, start, page_queries.FILES, total),
    )


@router.get("/requests/{request_id}/results/{name}")
async def result(
    app: TheApp, principal: PagePrincipal, request: Request, request_id: str, name: str
) -> Response:
    """Redirect to a result, by a link that is valid for an hour."""
    await app.database.read(request_rows.get, principal, request_id)
    if await app.buckets.object(request_id, name) is None:
        raise NotFoundError(f"There is no result {name!r} in request {request_id}")
    expires = int(now().timestamp()) + LINK_SECONDS
    link = signed_link(app, principal, request_id, name, expires)
    return RedirectResponse(
        f"{base_of(app, request)}{link}", 303, headers={"Cache-Control": "no-store"}
    )


@router.post("/requests/{request_id}/cancel")
async def cancel(app: TheApp, principal: PagePrincipal, request_id: str) -> Response:
    """Cancel a request, and show it."""
    await app.requests.cancel(principal, request_id)
    return RedirectResponse(f"/requests/{request_id}", 303)


@router.post("/requests/{request_id}/pin")
async def pin(app: TheApp, principal: PagePrincipal, request_id: str) -> Response:
    """Keep the results of a request from eviction, and show it."""
    await app.requests.pin(principal, request_id, pinned=True)
    return RedirectResponse(f"/requests/{request_id}", 303)


@router.post("/requests/{request_id}/unpin")
async def unpin(app: TheApp, principal: PagePrincipal, request_id: str) -> Response:
    """Let the results of a request be evicted again, and show it."""
    await app.requests.pin(principal, request_id, pinned=False)
    return RedirectResponse(f"/requests/{request_id}", 303)


def _until(app: App, kept: stored_objects.Kept) -> datetime | None:
    """Return when the first result is evicted if none is used before; None: not by its age."""
    days = app.settings.storage.unused_days
    if days is None or kept.oldest is None:
        return None
    return kept.oldest + timedelta(days=days)


async def _trouble(app: App, found: Submitted) -> str:
    """Return why no file of a request starts, if the leader says so; otherwise an empty text."""
    workers, age = await api_operations.seen(app, status_snapshots.WORKERS)
    if workers and age is None and (problem := str(workers.value.get("store", ""))):
        return problem
    storage, _ = await api_operations.seen(app, status_snapshots.STORAGE)
    if storage is None:
        return ""
    if found.owner in storage.value["above_quota"]:
        return (
            "no further file starts: the results of this user have reached the storage quota; "
            "files start again when results are deleted or evicted"
        )
    if found.id in storage.value["without_room"]:
        return (
            "no further file starts: the results of this request are not expected to fit into "
            "the object store; files start when results are deleted, or old enough to be evicted"
        )
    return ""


@router.post("/requests/{request_id}/delete")
async def delete(
    app: TheApp, principal: PagePrincipal, request: Request, request_id: str
) -> Response:
    """Delete a request with its results, after a confirmation."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    if form.get("sure") != ["yes"]:
        found = await app.database.read(request_rows.get, principal, request_id)
        return templating.page("delete", request, principal, found=found)
    await app.requests.delete(principal, request_id)
    return RedirectResponse("/requests", 303)


@router.post("/requests/{request_id}/resubmit")
async def resubmit(app: TheApp, principal: PagePrincipal, request_id: str) -> Response:
    """Submit the same request again, and show the new one."""
    new = await app.requests.resubmit(principal, request_id)
    return RedirectResponse(f"/requests/{new}", 303)
