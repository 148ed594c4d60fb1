"""What a user sees of themselves: who they are, their tokens, what they use; and who waits."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts.access import make_token
from servicex_server.accounts.devices import plain_code
from servicex_server.app import App
from servicex_server.database import sign_ins, use
from servicex_server.database import users as rows
from servicex_server.errors import RequestError
from servicex_server.model import Principal, now
from servicex_server.web.askers import TheApp, TheAttempts, base_of
from servicex_server.web.bodies import form_of
from servicex_server.web.pages import rendering
from servicex_server.web.pages.visitors import SignIn, Visitor, Vouched

router = APIRouter(include_in_schema=False, dependencies=[SignIn])

DAYS = (30, 90, 365)
"""For how long tokens can be made here."""

CONFIGURATION = """\
api_endpoints:
  - name: here
    endpoint: {base}
    token: {token}
default_endpoint: here
"""
"""A ``servicex.yaml`` for the published client."""


@router.get("/profile")
async def profile(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Show who one is, one's tokens, and what one uses of what one may."""
    return await _profile(app, principal, request)


async def _profile(
    app: App, principal: Principal, request: Request, *, message: str = ""
) -> Response:
    user = await app.database.read(rows.get, principal.user)
    tokens = await app.database.read(rows.tokens_of, principal.user)
    used = await app.database.read(use.of, principal.user)
    files = await app.database.read(use.files_at_work, principal.user)
    settings = app.settings
    limits = [
        ("Requests in a minute", len(used.recent), settings.requests_per_user_a_minute, "count"),
        ("Open requests", used.open, settings.requests_per_user_at_once, "count"),
        ("Files at work", files, settings.files_per_user_at_once, "count"),
        ("Results", used.bytes, settings.bytes_per_user, "size"),
    ]
    return rendering.page(
        "profile",
        request,
        principal,
        status=400 if message else 200,
        user=user,
        tokens=tokens,
        limits=limits,
        experiments=dict.fromkeys([*settings.experiments, user.experiment]),
        days=DAYS,
        now=now(),
        message=message,
    )


@router.post("/profile")
async def change(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Keep what somebody says of themselves."""
    try:
        fields = ("name", "institution", "experiment")
        about = app.entrance.rules.about(await form_of(request), fields=fields)
    except RequestError as error:
        return await _profile(app, principal, request, message=str(error))
    await app.database.write(rows.change, principal.user, about)
    return RedirectResponse("/profile", 303)


@router.post("/profile/tokens", dependencies=[Vouched])
async def new_token(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Make an API token: show it this once, or hand it out as a file for the client."""
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
    return rendering.page("token", request, principal, **values)


def _days(text: str) -> int:
    if text not in map(str, DAYS):
        raise RequestError(f"days: {text[:20]!r} is none of {', '.join(map(str, DAYS))}")
    return int(text)


@router.post("/profile/tokens/revoke")
async def revoke(app: TheApp, principal: Visitor, request: Request) -> Response:
    """End an API token, and what was got by it."""
    name = (await form_of(request)).get("name", "")
    await app.database.write(rows.revoke, principal.user, name)
    return RedirectResponse("/profile", 303)


@router.post("/profile/sign-out")
async def everywhere(app: TheApp, principal: Visitor) -> Response:
    """Sign out in all browsers."""
    await app.database.write(sign_ins.end_sessions, principal.user)
    return RedirectResponse("/", 303)


@router.get("/device")
async def device(
    app: TheApp, principal: Visitor, request: Request, attempts: TheAttempts, code: str = ""
) -> Response:
    """Ask for the code of a program that waits, or whether it is to be let in."""
    plain = plain_code(code)
    found = await app.database.read(sign_ins.device_by_code, plain) if code else None
    if code and found is None:
        await attempts.allow(request, "codes of which none waits")
    message = f"nothing waits with the code {plain}" if code and found is None else ""
    values: dict[str, Any] = {"found": found, "code": plain if found else code[:20]}
    return rendering.page("device", request, principal, message=message, answer="", **values)


@router.post("/device", dependencies=[Vouched])
async def answer(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Let a program in as oneself, or refuse it."""
    form = await form_of(request)
    code, let_in = plain_code(form.get("code", "")), form.get("answer") == "yes"
    await app.database.write(sign_ins.answer_device, code, principal.user, let_in=let_in)
    said = "It is signed in" if let_in else "It was refused"
    return rendering.page(
        "device", request, principal, found=None, code="", message="", answer=said
    )
