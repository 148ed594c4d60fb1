"""From errors to responses: JSON for programs, pages for browsers."""

import logging
import math
import reprlib
import secrets
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from servicex_server.database.disk_reserve import DISK_FULL, MAKE_ROOM, is_disk_full
from servicex_server.errors import IssuerError, ServiceXError, SignInError, TooManyError
from servicex_server.web.api.routers import API
from servicex_server.web.pages.dependencies import RedirectRequired
from servicex_server.web.pages.templating import page, wants_page

log = logging.getLogger(__name__)

AWAY = "the database of the service does not answer at the moment; try again in a few seconds"
FULL = f"{DISK_FULL}; {MAKE_ROOM}"


def add_error_handlers(web: FastAPI) -> None:
    """Have every error of a route answered with a message, a status and, in a browser, a page."""
    web.add_exception_handler(ServiceXError, _known)
    web.add_exception_handler(RedirectRequired, _redirect)
    web.add_exception_handler(RequestValidationError, _invalid)
    web.add_exception_handler(HTTPException, _http)
    web.add_exception_handler(OperationalError, _away)
    web.add_exception_handler(ClientDisconnect, _gone)
    web.add_exception_handler(Exception, _unknown)


def error_response(
    request: Request,
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    *,
    error_id: str = "",
) -> Response:
    """Return the response to an error: a page for browsers, a JSON message for programs."""
    if wants_page(request):
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
    return error_response(request, error.status, str(error), headers)


async def _redirect(request: Request, error: Exception) -> Response:
    """Redirect a browser to another page."""
    del request
    assert isinstance(error, RedirectRequired)  # noqa: S101  # registered for that class
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    return RedirectResponse(error.address, 303, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Answer with one sentence for each invalid field, with its value."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for that class
    return error_response(request, 400, "; ".join(_sentence(one) for one in error.errors()[:5]))


def _sentence(error: Any) -> str:
    place = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return f"the body is not JSON: {reason} at character {error['loc'][-1]}"
    where = ".".join(place) or "the body"
    if error["type"] == "missing":
        return f"{where}: this field is needed"
    return (
        f"{where}: {error['msg'].removeprefix('Value error, ')}, not {_shown(error.get('input'))}"
    )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def _shown(given: Any) -> str:
    """Return the representation of a value, cut short. Only the beginning of a value is read."""
    text = repr(given[:101]) if isinstance(given, str | bytes) else _SHORT.repr(given)
    return text if len(text) <= 100 else text[:100] + "…"  # noqa: PLR2004


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for that class
    message = str(error.detail)
    if error.status_code == 404:  # noqa: PLR2004
        message = f"there is nothing at {request.url.path}"
    if "parsing the body" in message:
        message = "the body is not JSON in UTF-8"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = _methods(request, headers["Allow"])
    status = 400 if error.status_code == 422 else error.status_code  # noqa: PLR2004
    return error_response(request, status, message, headers)


def _methods(request: Request, named: str) -> str:
    """Return all methods of a path. Starlette names only those of the first route that matches."""
    found = set(named.split(", "))
    for route in (route for chapter in API for route in chapter.router.routes):
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


async def _gone(request: Request, error: Exception) -> Response:
    """Return a response that nobody reads: the client closed the connection during its body."""
    del request, error
    return Response(status_code=400)


async def _away(request: Request, error: Exception) -> Response:
    """Answer that the database is not available. The log has the statement and the error."""
    log.warning("%s %s: the database does not answer: %s", request.method, request.url.path, error)
    full = isinstance(error, OperationalError) and is_disk_full(error.orig)
    return error_response(request, 503, FULL if full else AWAY, {"Retry-After": "5"})


async def _unknown(request: Request, error: Exception) -> Response:
    error_id = secrets.token_hex(4)
    log.error(
        "%s %s failed",
        request.method,
        request.url.path,
        exc_info=error,
        extra={"error_id": error_id},
    )
    message = f"Internal error {error_id}; the log of the service has the details"
    return error_response(request, 500, message, error_id=error_id)
