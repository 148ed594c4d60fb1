"""Routes of the device flow, which signs in a command line with a browser (RFC 8628)."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from servicex_server.accounts.access_tokens import DEVICE_GRANT
from servicex_server.accounts.device_flow import INTERVAL, WAIT
from servicex_server.app import App
from servicex_server.errors import NotFoundError
from servicex_server.web.api import responses
from servicex_server.web.dependencies import TheApp, TheRateLimiter, base_of
from servicex_server.web.request_bodies import form_of

router = APIRouter()

_FORM: dict[str, Any] = {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}


@router.post(
    "/device/code",
    summary="Begin to sign a program in",
    openapi_extra={"requestBody": {"content": _FORM}},
)
async def code(app: TheApp, request: Request, limiter: TheRateLimiter) -> responses.DeviceCode:
    """Return a code that the user types on a page of this service (RFC 8628, 3.2).

    The form has ``client_id``, which becomes the name of the program's token.
    """
    _check(app)
    await limiter.hit(request, "programs that sign in")
    form = await form_of(request)
    secret, shown = await app.device_flow.begin(form.get("client_id", ""))
    address = f"{base_of(app, request)}/device"
    return {
        "device_code": secret,
        "user_code": shown,
        "verification_uri": address,
        "verification_uri_complete": f"{address}?code={quote(shown)}",
        "expires_in": int(WAIT.total_seconds()),
        "interval": INTERVAL,
    }


@router.post(
    "/device/token",
    summary="Ask whether a program is signed in",
    openapi_extra={"requestBody": {"content": _FORM}},
    response_model=responses.DeviceToken,
)
async def token(app: TheApp, request: Request) -> Response | responses.DeviceToken:
    """Return an API token once a user has confirmed the program (RFC 8628, 3.4 and 3.5).

    The form has ``grant_type`` and ``device_code``. Until then, and if the user has refused or the
    code has expired, the response is 400 with an ``error`` of that standard.
    """
    _check(app)
    form = await form_of(request)
    secret = form.get("device_code", "")
    if form.get("grant_type") != DEVICE_GRANT:
        return _not_yet("unsupported_grant_type", f"grant_type: {DEVICE_GRANT} is needed")
    found = await app.device_flow.ask(secret)
    if found is None:
        return _not_yet("expired_token", "the code has expired, or this service did not issue it")
    if found.refused:
        return _not_yet("access_denied", "the user refused it in the browser")
    if found.user is None:
        return _not_yet("authorization_pending", "the user has not answered in the browser yet")
    made = await app.device_flow.token(secret, found)
    if made is None:
        return _not_yet("expired_token", "the token was already fetched")
    return {"access_token": made, "token_type": "Bearer", "user": found.user}


def _check(app: App) -> None:
    if not app.settings.sign_in:
        raise NotFoundError("sign-in is disabled on this service")


def _not_yet(error: str, message: str) -> Response:
    body = {"error": error, "error_description": message, "message": message}
    return JSONResponse(body, 400, headers={"Cache-Control": "no-store"})
