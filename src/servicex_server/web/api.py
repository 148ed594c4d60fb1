"""The public API, as the published client speaks it."""

import asyncio
import time
from datetime import UTC, datetime
from itertools import starmap
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request, Security
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from sqlalchemy import Connection

from servicex_server import __version__, plugins
from servicex_server.accounts.tokens import Claims, access_token
from servicex_server.app import App
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import open_requests, snapshots
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.leadership import ping
from servicex_server.errors import (
    InternalError,
    NotFoundError,
    RequestError,
    UnknownTokenError,
)
from servicex_server.model import LOCAL_USER, now
from servicex_server.model import Request as TransformRequest
from servicex_server.objects.bucket import bucket_keys
from servicex_server.retention import clear
from servicex_server.submission import MAX_TITLE
from servicex_server.web import metrics, wire
from servicex_server.web.askers import (
    ACCESS,
    API,
    API_TOKENS,
    Asker,
    Authorization,
    SeesAll,
    TheApp,
    TheAttempts,
    asker,
    base_of,
    number_in,
)
from servicex_server.web.pages.rendering import wants_page
from servicex_server.web.report import failure_report
from servicex_server.web.rows import with_rows
from servicex_server.web.signatures import presigned_query

router = APIRouter()

CAPABILITIES = [
    "poll_local_transformation_results",
    f"long_sample_titles_{MAX_TITLE}",
    "generate_file_urls",
    "post_cancel_transform",
]
URL_SECONDS = 365 * 24 * 3600
"""How long the links to results work, as those do that the client signs itself."""

READY_SECONDS = 5
"""How long the database may take to answer the question whether it does."""


@router.get("/servicex", summary="Version, query languages and capabilities")
async def info() -> dict[str, Any]:
    """Return what this service is and can do."""
    languages = plugins.available("languages")
    return {
        "app-version": __version__,
        "code-gen-image": dict.fromkeys(sorted(languages), f"servicex-server:{__version__}"),
        "capabilities": CAPABILITIES,
    }


@router.get("/multiple-codegen-list", summary="Query languages, for clients before 3.2")
async def codegens() -> dict[str, str]:
    """Return the query languages."""
    return dict.fromkeys(sorted(plugins.available("languages")), "servicex-server")


@router.post(
    "/token/refresh",
    summary="Exchange an API token for an access token",
    dependencies=[Security(API)],
)
async def refresh(
    app: TheApp, request: Request, attempts: TheAttempts, authorization: Authorization = None
) -> dict[str, Any]:
    """Return an access token for the API token in the header; without sign-in to anybody."""
    if app.settings.sign_in:
        await attempts.check(request, API_TOKENS)
        try:
            token = await app.access.exchange(authorization)
        except UnknownTokenError:
            await attempts.allow(request, API_TOKENS)
            raise
        return {"access_token": token, "auth_disabled": False}
    return {
        "message": "Authentication is disabled on this instance",
        "access_token": access_token(app.keys.newest, Claims(LOCAL_USER.user)),
        "auth_disabled": True,
    }


@router.post("/servicex/transformation", summary="Ask for columns of a dataset")
async def submit(app: TheApp, principal: Asker, body: wire.SubmitBody) -> dict[str, str]:
    """Check a request and store it; the work begins at once."""
    return {"request_id": await app.submission.accept(principal, body.order())}


@router.get("/servicex/transformation", summary="One's requests")
async def transformations(
    app: TheApp, principal: Asker, request: Request, submitted_by: str | None = None
) -> dict[str, Any]:
    """Return the requests of the asker; of somebody else for those who may see all."""
    found = await app.database.read(request_rows.listed, principal, owner=submitted_by)
    return {"requests": [_full(app, request, one) for one in found]}


@router.get("/servicex/transformation/{request_id}", summary="One request")
async def transformation(
    app: TheApp, principal: Asker, request: Request, request_id: str
) -> dict[str, Any]:
    """Return a request, its counters, and the keys that open its results."""
    found = await app.database.read(request_rows.get, principal, request_id)
    return _full(app, request, found)


def _full(app: App, request: Request, found: TransformRequest) -> dict[str, Any]:
    base = base_of(app, request)
    keys = bucket_keys(app.keys.newest, found.id)
    parts = urlsplit(base)
    return {
        **wire.request_json(found),
        "minio-endpoint": parts.netloc,
        "minio-secured": parts.scheme == "https",
        "minio-access-key": keys.access_key,
        "minio-secret-key": keys.secret_key,
        "log-url": f"{base}/transformation-request/{found.id}/results?status=failure",
    }


@router.get(
    "/servicex/transformation/{request_id}/status",
    summary="Progress of a request",
    response_model=dict[str, Any],
)
async def status(
    app: TheApp, principal: Asker, request_id: str, *, details: bool = False
) -> Response | dict[str, Any]:
    """Return the counters of a request, and with ``details`` its ended files."""

    def told(connection: Connection) -> Response | dict[str, Any]:
        found = request_rows.get(connection, principal, request_id)
        answer = wire.status_json(found, task_rows.statistics(connection, request_id))
        if not details:
            return answer
        ended = task_rows.ended(connection, request_id)
        return with_rows(answer, "details", (wire.result_json(request_id, one) for one in ended))

    return await app.database.read(told)


@router.get(
    "/servicex/transformation/{request_id}/results",
    summary="Files that have ended",
    response_model=dict[str, Any],
)
async def results(
    app: TheApp,
    principal: Asker,
    request_id: str,
    later_than: Annotated[str | None, Query(description="ISO 8601; inclusive")] = None,
) -> Response:
    """Return the files of a request that ended at or after a moment, in that order."""
    moment = _moment(later_than) if later_than is not None else None

    def told(connection: Connection) -> Response:
        request_rows.get(connection, principal, request_id)
        ended = task_rows.ended(connection, request_id, later_than=moment)
        return with_rows({}, "results", (wire.result_json(request_id, one) for one in ended))

    return await app.database.read(told)


def _moment(text: str) -> datetime:
    try:
        # a "+" that was not percent-encoded arrives as a blank
        moment = datetime.fromisoformat(text.strip().replace(" +", "+"))
    except ValueError:
        raise RequestError(
            f"later_than: {text[:100]!r} is not an ISO 8601 compliant datetime"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@router.get(
    "/servicex/transformation/{request_id}/errors",
    summary="Files that failed",
    response_model=dict[str, Any],
)
async def errors(app: TheApp, principal: Asker, request_id: str) -> Response:
    """Return for each failed file what was tried, what went wrong, whose fault, what to do."""

    def told(connection: Connection) -> Response:
        request_rows.get(connection, principal, request_id)
        failed = task_rows.failed(connection, request_id)
        return with_rows({}, "errors", map(wire.error_json, failed))

    return await app.database.read(told)


@router.get("/servicex/transformation/{request_id}/cancel", summary="Stop a request (old form)")
@router.post("/servicex/transformation/{request_id}/cancel", summary="Stop a request")
async def cancel(app: TheApp, principal: Asker, request_id: str) -> dict[str, str]:
    """End a request; what has been delivered stays."""
    await app.database.write(request_rows.cancel, principal, request_id)
    await app.stopped(request_id)
    return {"message": f"Canceled transformation request {request_id}"}


@router.delete("/servicex/transformation/{request_id}", summary="Delete a request")
async def delete(app: TheApp, principal: Asker, request_id: str) -> dict[str, str]:
    """Remove a request, its rows and its objects."""
    await app.database.write(request_rows.hide, principal, request_id)
    await app.stopped(request_id)
    await clear(app.database, app.objects, request_id)
    return {"message": f"Transform request with id {request_id} has been deleted."}


@router.post("/servicex/transformation/file-urls", summary="Links to results")
async def file_urls(
    app: TheApp, principal: Asker, request: Request, body: wire.FileUrlsBody
) -> dict[str, Any]:
    """Return a link for each of the named results that needs no keys."""
    await app.database.read(request_rows.get, principal, body.request_id)
    base = base_of(app, request)
    keys = bucket_keys(app.keys.newest, body.request_id)
    expires = int(time.time()) + URL_SECONDS
    uris = {}
    for name in body.file_list:
        if await app.buckets.object(body.request_id, name) is None:
            raise NotFoundError(f"There is no result {name!r} in request {body.request_id}")
        path = f"/{body.request_id}/{name}"
        signed = presigned_query(path, keys, expires)
        uris[name] = [f"{base}{quote(path, safe='/~')}?{signed}", {}, expires]
    return {"uris": uris}


@router.get("/servicex/datasets", summary="Known datasets")
async def datasets(
    app: TheApp,
    principal: Asker,
    did_finder: Annotated[str | None, Query(alias="did-finder")] = None,
    show_deleted: Annotated[str | None, Query(alias="show-deleted")] = None,
) -> dict[str, Any]:
    """Return the datasets that were looked up, without the stale ones unless asked for."""
    finder = "file-list" if did_finder == "user" else did_finder
    with_stale = (show_deleted or "").lower() in ("1", "true", "yes", "on")
    found = await app.database.read(
        dataset_rows.listed, principal, finder=finder, with_stale=with_stale
    )
    return {"datasets": [wire.dataset_json(dataset) for dataset in found]}


@router.get(
    "/servicex/datasets/{dataset_id}",
    summary="One dataset and its files",
    response_model=dict[str, Any],
)
async def dataset(app: TheApp, principal: Asker, dataset_id: str) -> Response:
    """Return a dataset with its files and their replicas."""
    number = dataset_number(dataset_id)

    def told(connection: Connection) -> Response:
        found = dataset_rows.get(connection, principal, number)
        files = dataset_rows.files_of(connection, principal, number)
        return with_rows(wire.dataset_json(found), "files", starmap(wire.file_json, files))

    return await app.database.read(told)


@router.delete("/servicex/datasets/{dataset_id}", summary="Look a dataset up again next time")
async def forget_dataset(app: TheApp, principal: Asker, dataset_id: str) -> dict[str, Any]:
    """Mark a dataset as stale; requests on it go on."""
    number = dataset_number(dataset_id)
    await app.database.write(dataset_rows.mark_stale, principal, number)
    return {"dataset-id": number, "stale": True}


def dataset_number(text: str) -> int:
    """Return the number of a dataset that an address names."""
    number = number_in(text)
    if number is None:
        raise NotFoundError(f"Dataset {text} not found")
    return number


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


@router.get(
    "/transformation-request/{request_id}",
    response_class=PlainTextResponse,
    dependencies=[Security(ACCESS)],
)
@router.get(
    "/transformation-request/{request_id}/results",
    response_class=PlainTextResponse,
    dependencies=[Security(ACCESS)],
)
async def report(
    app: TheApp,
    request: Request,
    attempts: TheAttempts,
    request_id: str,
    authorization: Authorization = None,
) -> Response:
    """Return the failures of a request as text; a browser is led to its page."""
    if wants_page(request):  # which sees to who it is by itself
        address = f"/requests/{quote(request_id, safe='')}"
        return RedirectResponse(address, 303, headers={"Vary": "Accept"})
    principal = await asker(app, request, attempts, authorization)
    found = await app.database.read(request_rows.get, principal, request_id)
    failed = await app.database.read(task_rows.failed, request_id)
    return PlainTextResponse(failure_report(found, failed), headers={"Vary": "Accept"})
