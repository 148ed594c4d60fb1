"""The profile page: a user's data, API tokens and limits; and the page that signs in a program."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts.authentication import make_token
from servicex_server.accounts.device_flow import plain_code
from servicex_server.app import App
from servicex_server.database import device_codes, sessions, usage
from servicex_server.database import users as rows
from servicex_server.errors import RequestError
from servicex_server.model import Principal, now
from servicex_server.web.dependencies import TheApp, TheRateLimiter, base_of
from servicex_server.web.pages import templating
from servicex_server.web.pages.dependencies import OidcSessionRequired, PagePrincipal, SignInEnabled
from servicex_server.web.request_bodies import form_of

router = APIRouter(include_in_schema=False, dependencies=[SignInEnabled])

_WRONG_CODES = "wrong codes of programs"

DAYS = (30, 90, 365)
"""Lifetimes of a new token that the page offers, in days."""

CONFIGURATION = """\
api_endpoints:
  - name: here
    endpoint: {base}
    token: {token}
default_endpoint: here
"""
"""Template of a ``servicex.yaml`` for the published client."""


@router.get("/profile")
async def profile(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Show the user's data, tokens, limits and use."""
    return await _profile(app, principal, request)


async def _profile(
    app: App, principal: Principal, request: Request, *, message: str = ""
) -> Response:
    user = await app.database.read(rows.get, principal.user)
    tokens = await app.database.read(rows.tokens_of, principal.user)
    used = await app.database.read(usage.of, principal.user)
    files = await app.database.read(usage.files_at_work, principal.user)
    settings = app.settings
    limits = [
        (
            "Requests in a minute",
            len(used.recent),
            settings.limits.requests_per_user_a_minute,
            "count",
        ),
        ("Open requests", used.open, settings.limits.requests_per_user_at_once, "count"),
        ("Files at work", files, settings.limits.files_per_user_at_once, "count"),
        ("Results", used.bytes, settings.limits.bytes_per_user, "size"),
    ]
    return templating.page(
        "profile",
        request,
        principal,
        status=400 if message else 200,
        user=user,
        tokens=tokens,
        limits=limits,
        experiments=dict.fromkeys([*settings.accounts.experiments, user.experiment]),
        days=DAYS,
        now=now(),
        message=message,
    )


@router.post("/profile")
async def change(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Store the user's changed data."""
    try:
        fields = ("name", "institution", "experiment")
        about = app.registration.policy.about(await form_of(request), fields=fields)
    except RequestError as error:
        return await _profile(app, principal, request, message=str(error))
    await app.database.write(rows.change, principal.user, about)
    return RedirectResponse("/profile", 303)


@router.post("/profile/tokens", dependencies=[OidcSessionRequired])
async def new_token(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Create an API token: show it once, or return it in a ``servicex.yaml``."""
    form = await form_of(request)
    try:
        days, name = _days(form.get("days", "")), form.get("name", "")
        token, made = await make_token(app.database, principal.user, name, days=days)
    except RequestError as error:
        return await _profile(app, principal, request, message=str(error))
    text = CONFIGURATION.format(base=base_of(app, request), token=token)
    if form.get("as") == "file":
        headers = {
            "Content-Disposition": 'attachment; filename="servicex.yaml"',
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(text, media_type="application/yaml", headers=headers)
    values: dict[str, Any] = {"token": token, "made": made, "configuration": text}
    return templating.page("token", request, principal, **values)


def _days(text: str) -> int:
    if text not in map(str, DAYS):
        raise RequestError(f"days: {text[:20]!r} is not one of {', '.join(map(str, DAYS))}")
    return int(text)


@router.post("/profile/tokens/revoke")
async def revoke(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Revoke an API token; the access tokens, sessions and keys issued for it end too."""
    name = (await form_of(request)).get("name", "")
    await app.database.write(rows.revoke, principal.user, name)
    return RedirectResponse("/profile", 303)


@router.post("/profile/sign-out")
async def everywhere(app: TheApp, principal: PagePrincipal) -> Response:
    """Sign out in all browsers."""
    await app.database.write(sessions.end_sessions, principal.user)
    return RedirectResponse("/", 303)


@router.get("/device")
async def device(
    app: TheApp, principal: PagePrincipal, request: Request, limiter: TheRateLimiter, code: str = ""
) -> Response:
    """Ask for the user code of a waiting program, or for the user's confirmation."""
    plain = plain_code(code)
    found = await app.database.read(device_codes.device_by_code, plain) if code else None
    if code and found is None:
        await limiter.hit(request, _WRONG_CODES, user=principal.user)
    unknown = f"the code {plain} is unknown, has expired or was already used"
    message = unknown if code and found is None else ""
    values: dict[str, Any] = {"found": found, "code": plain if found else code[:20]}
    return templating.page("device", request, principal, message=message, answer="", **values)


@router.post("/device", dependencies=[OidcSessionRequired])
async def answer(
    app: TheApp, principal: PagePrincipal, request: Request, limiter: TheRateLimiter
) -> Response:
    """Sign a program in as the user, or refuse it."""
    form = await form_of(request)
    code, let_in = plain_code(form.get("code", "")), form.get("answer") == "yes"
    if await app.database.read(device_codes.device_by_code, code) is None:
        await limiter.hit(request, _WRONG_CODES, user=principal.user)
    await app.database.write(device_codes.answer_device, code, principal.user, let_in=let_in)
    said = "It is signed in" if let_in else "It was refused"
    return templating.page(
        "device", request, principal, found=None, code="", message="", answer=said
    )
