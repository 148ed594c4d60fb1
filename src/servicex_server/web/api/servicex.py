"""The ServiceX API, as the published client uses it."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import starmap
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request, Security
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from sqlalchemy import Connection

from servicex_server import __version__
from servicex_server.accounts.access_tokens import Claims, access_token
from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import finished_files
from servicex_server.database import requests as request_rows
from servicex_server.errors import (
    NotFoundError,
    RequestError,
    UnknownTokenError,
)
from servicex_server.model import LOCAL_USER, Principal
from servicex_server.model import Request as TransformRequest
from servicex_server.requests.submission import MAX_TITLE
from servicex_server.web.api import responses, schemas
from servicex_server.web.api.failure_report import failure_report
from servicex_server.web.api.json_rows import encoded_rows, streamed_rows, with_rows
from servicex_server.web.dependencies import (
    ACCESS,
    API,
    API_TOKENS,
    Authorization,
    CurrentPrincipal,
    TheApp,
    TheRateLimiter,
    base_of,
    current_principal,
    dataset_number,
)
from servicex_server.web.pages.templating import wants_page
from servicex_server.web.request_bodies import JsonRoute
from servicex_server.web.s3.bucket_keys import keys_for, link_seconds, signed_link

router = APIRouter(route_class=JsonRoute)

CAPABILITIES = [
    "poll_local_transformation_results",
    f"long_sample_titles_{MAX_TITLE}",
    "generate_file_urls",
    "post_cancel_transform",
]


MOST_LISTED = 10_000
"""Most requests that one response lists."""

LISTED_AT_ONCE = 25
"""Requests that one database query reads for a list."""

LISTED_ROOM = 32 << 20
"""Characters of query texts in one response. When they are used up, each query text is cut."""

LISTED_CHARACTERS = 1000
"""Characters of a query text that are returned in any case."""


@router.get("/servicex", summary="Version, query languages and capabilities")
async def info(app: TheApp) -> responses.Info:
    """Return the version, the query languages and the capabilities of the service."""
    languages = app.languages.offered()
    return {
        "app-version": __version__,
        "code-gen-image": dict.fromkeys(languages, f"servicex-server:{__version__}"),
        "capabilities": CAPABILITIES,
    }


@router.get("/multiple-codegen-list", summary="Query languages, for clients before 3.2")
async def codegens(app: TheApp) -> dict[str, str]:
    """Return the query languages."""
    return dict.fromkeys(app.languages.offered(), "servicex-server")


@router.post(
    "/token/refresh",
    summary="Exchange an API token for an access token",
    dependencies=[Security(API)],
)
async def refresh(
    app: TheApp, request: Request, limiter: TheRateLimiter, authorization: Authorization = None
) -> responses.AnonymousToken | responses.AccessToken:
    """Return an access token for the API token in the header; without sign-in, for any client."""
    if app.settings.sign_in:
        try:
            token = await app.authenticator.exchange(authorization)
        except UnknownTokenError:
            await limiter.hit(request, API_TOKENS)
            raise
        return {"access_token": token, "auth_disabled": False}
    if app.owner_token is not None:
        app.owner_token.check_token(authorization)
    return {
        "message": "Authentication is disabled on this instance",
        "access_token": access_token(app.keys.current, Claims(LOCAL_USER.user)),
        "auth_disabled": True,
    }


@router.post("/servicex/transformation", summary="Ask for columns of a dataset")
async def submit(
    app: TheApp, principal: CurrentPrincipal, body: schemas.SubmitBody
) -> responses.Submitted:
    """Check a request and store it. Its processing starts at once."""
    return {"request_id": await app.requests.submit(principal, body.order())}


@router.get(
    "/servicex/transformation", summary="List requests", response_model=responses.TransformRequests
)
async def transformations(
    app: TheApp,
    principal: CurrentPrincipal,
    request: Request,
    submitted_by: str | None = None,
    limit: Annotated[
        int, Query(ge=1, le=MOST_LISTED, description="Most requests to return, newest first.")
    ] = MOST_LISTED,
    offset: Annotated[int, Query(ge=0, le=10**9, description="Requests to skip.")] = 0,
) -> Response:
    """Return the user's requests. Operators and administrators may ask for another user's."""

    def load(
        connection: Connection, after: TransformRequest | None, left: int, room: int
    ) -> tuple[str, TransformRequest | None, int]:
        found = request_rows.listed(
            connection,
            principal,
            owner=submitted_by,
            after=after,
            offset=0 if after else offset,
            limit=min(left, LISTED_AT_ONCE),
            characters=max(room // LISTED_AT_ONCE, LISTED_CHARACTERS),
        )
        text = encoded_rows(_full(app, principal, request, one) for one in found)
        more = len(found) == LISTED_AT_ONCE < left
        return text, found[-1] if more else None, sum(len(one.selection) for one in found)

    first, last, used = await app.database.read(load, None, limit, LISTED_ROOM)

    async def slices() -> AsyncIterator[str]:
        yield first
        after, left, room = last, limit, LISTED_ROOM - used
        while after is not None:
            left -= LISTED_AT_ONCE
            text, after, more = await app.database.read(load, after, left, room)
            room -= more
            yield text

    return streamed_rows("requests", slices())


@router.get("/servicex/transformation/{request_id}", summary="One request")
async def transformation(
    app: TheApp, principal: CurrentPrincipal, request: Request, request_id: str
) -> responses.TransformRequest:
    """Return a request, its counters, and the keys of its bucket."""
    found = await app.database.read(request_rows.get, principal, request_id)
    return _full(app, principal, request, found)


def _full(
    app: App, principal: Principal, request: Request, found: TransformRequest
) -> responses.TransformRequest:
    base = base_of(app, request)
    keys = keys_for(app, principal, found.id)
    parts = urlsplit(base)
    return {
        **schemas.request_json(found),
        "minio-endpoint": parts.netloc,
        "minio-secured": parts.scheme == "https",
        "minio-access-key": keys.access_key,
        "minio-secret-key": keys.secret_key,
        "log-url": f"{base}/transformation-request/{found.id}/results?status=failure",
    }


@router.get(
    "/servicex/transformation/{request_id}/status",
    summary="Progress of a request",
    response_model=responses.StatusWithDetails,
)
async def status(
    app: TheApp, principal: CurrentPrincipal, request_id: str, *, details: bool = False
) -> Response | responses.Status:
    """Return the counters of a request; with ``details``, also its finished files."""

    def load(connection: Connection) -> Response | responses.Status:
        found = request_rows.get(connection, principal, request_id)
        stats = finished_files.statistics(connection, principal, request_id)
        answer = schemas.status_json(found, stats)
        if not details:
            return answer
        ended = finished_files.listed(connection, principal, request_id)
        return with_rows(answer, "details", (schemas.result_json(request_id, one) for one in ended))

    return await app.database.read(load)


@router.get(
    "/servicex/transformation/{request_id}/results",
    summary="Files that have ended",
    response_model=responses.Results,
)
async def results(
    app: TheApp,
    principal: CurrentPrincipal,
    request_id: str,
    later_than: Annotated[str | None, Query(description="ISO 8601; inclusive")] = None,
) -> Response:
    """Return the files of a request that ended at or after a time, in the order they ended."""
    moment = _moment(later_than) if later_than is not None else None

    def load(connection: Connection) -> Response:
        ended = finished_files.listed(connection, principal, request_id, later_than=moment)
        return with_rows({}, "results", (schemas.result_json(request_id, one) for one in ended))

    return await app.database.read(load)


def _moment(text: str) -> datetime:
    try:
        # a "+" that was not percent-encoded arrives as a space
        moment = datetime.fromisoformat(text.strip().replace(" +", "+"))
        # a time on the first or last day of the calendar may have no equivalent in UTC
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RequestError(
            f"later_than: {text[:100]!r} is not an ISO 8601 compliant datetime"
        ) from None


@router.get(
    "/servicex/transformation/{request_id}/errors",
    summary="Files that failed",
    response_model=responses.Failures,
)
async def errors(app: TheApp, principal: CurrentPrincipal, request_id: str) -> Response:
    """Return for each failed file its attempts, its error, who is to blame, and what to do."""

    def load(connection: Connection) -> Response:
        failed = finished_files.failed(connection, principal, request_id)
        return with_rows({}, "errors", map(schemas.error_json, failed))

    return await app.database.read(load)


@router.get("/servicex/transformation/{request_id}/cancel", summary="Stop a request (old form)")
@router.post("/servicex/transformation/{request_id}/cancel", summary="Stop a request")
async def cancel(app: TheApp, principal: CurrentPrincipal, request_id: str) -> responses.Sentence:
    """Cancel a request. Results that were delivered are kept."""
    await app.requests.cancel(principal, request_id)
    return {"message": f"Canceled transformation request {request_id}"}


@router.delete("/servicex/transformation/{request_id}", summary="Delete a request")
async def delete(app: TheApp, principal: CurrentPrincipal, request_id: str) -> responses.Sentence:
    """Delete a request, its rows and its results."""
    await app.requests.delete(principal, request_id)
    return {"message": f"Transform request with id {request_id} has been deleted."}


@router.put("/servicex/transformation/{request_id}/pin", summary="Keep the results of a request")
async def pin(app: TheApp, principal: CurrentPrincipal, request_id: str) -> responses.Sentence:
    """Keep the results of a request from eviction. They count to the quota of its owner."""
    await app.requests.pin(principal, request_id, pinned=True)
    return {"message": f"The results of request {request_id} are pinned."}


@router.delete("/servicex/transformation/{request_id}/pin", summary="Let results be evicted again")
async def unpin(app: TheApp, principal: CurrentPrincipal, request_id: str) -> responses.Sentence:
    """Let the results of a request be evicted again, when they are unused for long."""
    await app.requests.pin(principal, request_id, pinned=False)
    return {"message": f"The results of request {request_id} are not pinned."}


@router.post("/servicex/transformation/file-urls", summary="Links to results")
async def file_urls(
    app: TheApp, principal: CurrentPrincipal, request: Request, body: schemas.FileUrlsBody
) -> responses.Links:
    """Return a presigned link for each of the named results."""
    found = await app.database.read(request_rows.get, principal, body.request_id)
    base = base_of(app, request)
    expires = int(time.time()) + link_seconds(app, principal, found)
    uris: dict[str, tuple[str, dict[str, str], int]] = {}
    for name in body.file_list:
        if await app.buckets.object(body.request_id, name) is None:
            raise NotFoundError(f"There is no result {name!r} in request {body.request_id}")
        link = signed_link(app, principal, body.request_id, name, expires)
        uris[name] = (f"{base}{link}", {}, expires)
    return {"uris": uris}


@router.get("/servicex/datasets", summary="Known datasets")
async def datasets(
    app: TheApp,
    principal: CurrentPrincipal,
    did_finder: Annotated[str | None, Query(alias="did-finder")] = None,
    show_deleted: Annotated[str | None, Query(alias="show-deleted")] = None,
) -> responses.KnownDatasets:
    """Return the known datasets; stale ones only with ``show-deleted``."""
    finder = "file-list" if did_finder == "user" else did_finder
    with_stale = (show_deleted or "").lower() in ("1", "true", "yes", "on")
    found = await app.database.read(
        dataset_rows.listed, principal, finder=finder, with_stale=with_stale
    )
    return {"datasets": [schemas.dataset_json(dataset) for dataset in found]}


@router.get(
    "/servicex/datasets/{dataset_id}",
    summary="One dataset and its files",
    response_model=responses.DatasetWithFiles,
)
async def dataset(app: TheApp, principal: CurrentPrincipal, dataset_id: str) -> Response:
    """Return a dataset with its files and their replicas."""
    number = dataset_number(dataset_id)

    def load(connection: Connection) -> Response:
        found = dataset_rows.get(connection, principal, number)
        files = dataset_rows.files_of(connection, principal, number)
        return with_rows(schemas.dataset_json(found), "files", starmap(schemas.file_json, files))

    return await app.database.read(load)


@router.delete("/servicex/datasets/{dataset_id}", summary="Look a dataset up again next time")
async def forget_dataset(
    app: TheApp, principal: CurrentPrincipal, dataset_id: str
) -> responses.StaleDataset:
    """Mark a dataset as stale. Requests that use it continue."""
    number = dataset_number(dataset_id)
    await app.database.write(dataset_rows.mark_stale, principal, number)
    return {"dataset-id": number, "stale": True}


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
    limiter: TheRateLimiter,
    request_id: str,
    authorization: Authorization = None,
) -> Response:
    """Return the failures of a request as text; redirect a browser to the page of the request."""
    if wants_page(request):  # the page authenticates the browser itself
        address = f"/requests/{quote(request_id, safe='')}"
        return RedirectResponse(address, 303, headers={"Vary": "Accept"})
    principal = await current_principal(app, request, limiter, authorization)
    found = await app.database.read(request_rows.get, principal, request_id)
    failed = await app.database.read(finished_files.failed, principal, request_id)
    log = await app.database.read(finished_files.first_log, found.id)
    return PlainTextResponse(failure_report(found, failed, log), headers={"Vary": "Accept"})
