"""Signing in from a command line: the program asks, a person answers in a browser (RFC 8628)."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from servicex_server.accounts.devices import INTERVAL, WAIT
from servicex_server.accounts.tokens import DEVICE_GRANT
from servicex_server.app import App
from servicex_server.errors import NotFoundError
from servicex_server.web.askers import TheApp, TheAttempts, base_of
from servicex_server.web.bodies import form_of

router = APIRouter()

_FORM: dict[str, Any] = {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}


@router.post(
    "/device/code",
    summary="Begin to sign a program in",
    openapi_extra={"requestBody": {"content": _FORM}},
)
async def code(app: TheApp, request: Request, attempts: TheAttempts) -> dict[str, Any]:
    """Return a code that a person types at an address of this service (RFC 8628, 3.2).

    The form has ``client_id``, which names the token that the program will get.
    """
    _check(app)
    await attempts.allow(request, "programs that sign in")
    form = await form_of(request)
    secret, shown = await app.devices.begin(form.get("client_id", ""))
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
    response_model=None,
)
async def token(app: TheApp, request: Request) -> Response | dict[str, Any]:
    """Return an API token once somebody has let the program in (RFC 8628, 3.4 and 3.5).

    The form has ``grant_type`` and ``device_code``. Until then, and if it was refused or is too
    late, the answer is 400 with an ``error`` of that standard.
    """
    _check(app)
    form = await form_of(request)
    secret = form.get("device_code", "")
    if form.get("grant_type") != DEVICE_GRANT:
        return _not_yet("unsupported_grant_type", f"grant_type: {DEVICE_GRANT} is needed")
    found = await app.devices.ask(secret)
    if found is None:
        return _not_yet("expired_token", "the code is too old, or none of this service")
    if found.refused:
        return _not_yet("access_denied", "it was refused in the browser")
    if found.user is None:
        return _not_yet("authorization_pending", "nobody has answered in a browser yet")
    made = await app.devices.token(secret, found)
    if made is None:
        return _not_yet("expired_token", "the token was fetched already")
    return {"access_token": made, "token_type": "Bearer", "user": found.user}


def _check(app: App) -> None:
    if not app.settings.sign_in:
        raise NotFoundError("on this service nobody signs in")


def _not_yet(error: str, message: str) -> Response:
    body = {"error": error, "error_description": message, "message": message}
    return JSONResponse(body, 400, headers={"Cache-Control": "no-store"})
