"""The web application: routes, the one mapping from errors to answers, and tolerant paths."""

import logging
import math
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from servicex_server import __version__
from servicex_server.app import App
from servicex_server.errors import IssuerError, ServiceXError, SignInError, TooManyError
from servicex_server.settings import Settings
from servicex_server.web import api, devices, facility
from servicex_server.web.attempts import Attempts
from servicex_server.web.bodies import MAX_BODY, bounded, too_large
from servicex_server.web.hosts import judge
from servicex_server.web.pages import routes as pages
from servicex_server.web.pages.origin import of_another_site
from servicex_server.web.pages.rendering import page, wants_page
from servicex_server.web.pages.visitors import Elsewhere
from servicex_server.web.s3 import s3_routes
from servicex_server.web.wire import ERRORS

log = logging.getLogger(__name__)

API = (api, facility, devices)
"""Chapters of what programs ask for, which the OpenAPI document describes."""

AWAY = "the database of the service does not answer at the moment; try again in a few seconds"


def web_app(app: App) -> FastAPI:
    """Return the ASGI application on a service; the caller has started the service."""

    @asynccontextmanager
    async def lifespan(web: FastAPI) -> AsyncIterator[None]:
        web.state.servicex = app
        web.router.routes.extend(s3_routes(app.buckets, app.objects, app.keys))
        yield

    web = FastAPI(
        title="servicex-server",
        version=__version__,
        summary="Columns from high-energy-physics datasets",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # ours is in the pages: it loads nothing from other sites
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    if not app.settings.sign_in:
        web.openapi = lambda: _without_tokens(FastAPI.openapi(web))  # type: ignore[method-assign]
    web.state.attempts = Attempts()
    for chapter in API:
        web.include_router(chapter.router, responses=ERRORS)
    web.include_router(pages.router)
    web.add_exception_handler(ServiceXError, _known)
    web.add_exception_handler(Elsewhere, _elsewhere)
    web.add_exception_handler(RequestValidationError, _invalid)
    web.add_exception_handler(HTTPException, _http)
    web.add_exception_handler(OperationalError, _away)
    web.add_exception_handler(Exception, _unknown)
    web.add_middleware(_Tolerant, settings=app.settings)
    return web


def _without_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of the API that says nothing of tokens: nobody has to have one."""
    document.get("components", {}).pop("securitySchemes", None)
    for ways in document["paths"].values():
        for operation in ways.values():
            operation.pop("security", None)
    return document


def _answer(
    request: Request | None,
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    *,
    error_id: str = "",
) -> Response:
    """Return an error: a page for people, one sentence in JSON for programs."""
    if request is not None and wants_page(request):
        values = {"message": message, "error_id": error_id}
        who = getattr(request.state, "principal", None)
        return page("error", request, who, status=status, headers=headers, **values)
    return JSONResponse({"message": message}, status_code=status, headers=headers)


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceXError)  # noqa: S101  # registered for that class
    if error.status >= 500:  # noqa: PLR2004
        log.warning("%s %s: %s", request.method, request.url.path, error)
    headers: dict[str, str] = {}
    if isinstance(error, SignInError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyError) and error.seconds is not None:
        headers["Retry-After"] = str(math.ceil(error.seconds))
    if isinstance(error, IssuerError):
        headers["Retry-After"] = "60"
    return _answer(request, error.status, str(error), headers)


async def _elsewhere(request: Request, error: Exception) -> Response:
    """Lead a browser to another page."""
    del request
    assert isinstance(error, Elsewhere)  # noqa: S101  # registered for that class
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    return RedirectResponse(error.address, 303, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Say which field is wrong, and what it was, in one sentence for each."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for that class
    return _answer(request, 400, "; ".join(_sentence(one) for one in error.errors()[:5]))


def _sentence(error: Any) -> str:
    place = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return f"the body is no JSON: {reason} at character {error['loc'][-1]}"
    where = ".".join(place) or "the body"
    if error["type"] == "missing":
        return f"{where}: this field is needed"
    given = repr(error.get("input"))
    shown = given if len(given) <= 100 else given[:100] + "…"  # noqa: PLR2004
    return f"{where}: {error['msg']}, not {shown}"


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for that class
    message = str(error.detail)
    if error.status_code == 404:  # noqa: PLR2004
        message = f"there is nothing at {request.url.path}"
    if "parsing the body" in message:
        message = "the body is no JSON in UTF-8"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = _methods(request, headers["Allow"])
    status = 400 if error.status_code == 422 else error.status_code  # noqa: PLR2004
    return _answer(request, status, message, headers)


def _methods(request: Request, named: str) -> str:
    """Return all methods of an address; Starlette has named those of the first route only."""
    found = set(named.split(", "))
    for route in (route for chapter in API for route in chapter.router.routes):
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


async def _away(request: Request, error: Exception) -> Response:
    """Say that the database is away; how it was called and what it said is for the log."""
    log.warning("%s %s: the database is away: %s", request.method, request.url.path, error)
    return _answer(request, 503, AWAY, {"Retry-After": "5"})


async def _unknown(request: Request, error: Exception) -> Response:
    error_id = secrets.token_hex(4)
    log.error(
        "%s %s failed",
        request.method,
        request.url.path,
        exc_info=error,
        extra={"error_id": error_id},
    )
    message = f"Internal error {error_id}; the log of the service tells more"
    return _answer(request, 500, message, error_id=error_id)


OURS = (
    "/servicex",
    "/transformation-request",
    "/requests",
    "/datasets",
    "/sites",
    "/workers",
    "/sign-",
    "/pending",
    "/profile",
    "/device",
    "/users",
)
"""What the addresses begin with that are no results."""


def _meaningless(scope: Scope) -> Response | None:
    """Refuse a NUL character in an address of ours: nothing is called so, and no database takes it.

    Results are apart: the S3 gateway looks at their names itself.
    """
    if not scope["path"].startswith(OURS):
        return None
    if "\0" in scope["path"]:
        return _answer(Request(scope), 404, "there is nothing by a name with a NUL character")
    if b"%00" in scope["query_string"]:
        return _answer(Request(scope), 400, "there is a NUL character in the query of the address")
    return None


class _Tolerant:
    """Collapses doubled slashes, which configured addresses often cause, and keeps others out.

    Only the path that is routed changes; S3 signatures are made over the path as it came.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._public_url = settings.public_url
        self._misdirected = judge(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("//+", "/", scope["path"])}
            if len(scope["path"]) > 1 and scope["path"].startswith(OURS):
                scope["path"] = scope["path"].rstrip("/")
            if refusal := self._refusal(scope):
                await refusal(scope, receive, send)
                return
            receive = bounded(receive, MAX_BODY)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if why := self._misdirected(headers.get("host", "")):
            return _answer(Request(scope), 421, why)
        if meaningless := _meaningless(scope):
            return meaningless
        if of_another_site(scope["method"], headers, self._public_url):
            why = "a page of another site asked for this, which only pages of this service may"
            return _answer(Request(scope), 403, why)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            error = too_large(MAX_BODY)
            return _answer(None, error.status_code, error.detail, dict(error.headers or {}))
        return None
