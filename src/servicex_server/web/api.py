"""The public API, as the published client speaks it."""

import time
from datetime import UTC, datetime
from itertools import starmap
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request, Security
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from sqlalchemy import Connection

from servicex_server import __version__, plugins
from servicex_server.accounts.tokens import Claims, access_token
from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import ended_files
from servicex_server.database import requests as request_rows
from servicex_server.errors import (
    NotFoundError,
    RequestError,
    UnknownTokenError,
)
from servicex_server.model import LOCAL_USER
from servicex_server.model import Request as TransformRequest
from servicex_server.objects.bucket import bucket_keys
from servicex_server.retention import clear
from servicex_server.submission import MAX_TITLE
from servicex_server.web import wire
from servicex_server.web.askers import (
    ACCESS,
    API,
    API_TOKENS,
    Asker,
    Authorization,
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
        stats = ended_files.statistics(connection, principal, request_id)
        answer = wire.status_json(found, stats)
        if not details:
            return answer
        ended = ended_files.listed(connection, principal, request_id)
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
        ended = ended_files.listed(connection, principal, request_id, later_than=moment)
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
        failed = ended_files.failed(connection, principal, request_id)
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
    failed = await app.database.read(ended_files.failed, principal, request_id)
    return PlainTextResponse(failure_report(found, failed), headers={"Vary": "Accept"})
