"""The way in for people: by an issuer that vouches for them, or with an API token; and out again.

An issuer leads back to ``/sign-in/<name>/callback``. Who has an account is in; who has none is
asked who they are, and waits for an administrator unless the operator's rules let them in at once.
What has to be known on the way is sealed in cookies of the browser that is on it.
"""

import logging
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts.issuers import Identity
from servicex_server.accounts.sealed import seal, unseal
from servicex_server.app import App
from servicex_server.errors import NotFoundError, RequestError, SignInError, UnknownTokenError
from servicex_server.model import ApiToken, User, UserState
from servicex_server.web.askers import API_TOKENS, TheApp, TheAttempts, base_of
from servicex_server.web.bodies import form_of
from servicex_server.web.pages import rendering, visitors
from servicex_server.web.pages.visitors import SignIn, safe_back

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, dependencies=[SignIn])

WAY_SECONDS = 600
"""How long one may be at the issuer's before one has to start anew."""

FORM_SECONDS = 3600
"""How long one may take to say who one is."""

_ON_THE_WAY = "servicex-on-the-way"
_NEWCOMER = "servicex-newcomer"

Back = Annotated[str, Query(max_length=visitors.MOST_BACK)]


@router.get("/sign-in")
async def sign_in(app: TheApp, request: Request, back: Back = "/requests") -> Response:
    """Show the ways in, to who is not in already."""
    user = await visitors.user_of(app, request)
    if user is not None and user.state is UserState.ACTIVE:
        return RedirectResponse(safe_back(back), 303)
    return _ways_in(app, request, safe_back(back))


def _ways_in(app: App, request: Request, back: str, **values: Any) -> Response:
    ways = [
        (one.title, f"/sign-in/{one.name}?{urlencode({'back': back})}")
        for one in app.issuers.options.values()
    ]
    status = 401 if values else 200
    values = {"message": "", "ways": ways, "back": back, **values}
    return rendering.page("sign-in", request, None, status=status, **values)


@router.post("/sign-in")
async def with_token(app: TheApp, request: Request, attempts: TheAttempts) -> Response:
    """Let somebody in who has an API token."""
    await attempts.check(request, API_TOKENS)
    form = await form_of(request)
    back = safe_back(form.get("back", ""))
    try:
        user, token = await app.access.by_api_token(form.get("token", "").strip())
    except SignInError as error:
        if isinstance(error, UnknownTokenError):
            await attempts.allow(request, API_TOKENS)
        if not rendering.wants_page(request):
            raise
        return _ways_in(app, request, back, message=str(error))
    return await _let_in(app, request, user, back, token)


@router.get("/sign-in/{name}")
async def to_issuer(
    app: TheApp, request: Request, attempts: TheAttempts, name: str, back: Back = "/requests"
) -> Response:
    """Lead to an issuer."""
    await attempts.allow(request, "sign-ins")
    callback = f"{base_of(app, request)}/sign-in/{name}/callback"
    address, begun = await app.issuers.begin(name, callback)
    response = RedirectResponse(address, 303)
    way = {"name": name, "back": safe_back(back), **begun}
    sealed = seal(app.keys, _ON_THE_WAY, way, WAY_SECONDS)
    visitors.keep(response, _ON_THE_WAY, sealed, WAY_SECONDS, app=app, request=request)
    return response


@router.get("/sign-in/{name}/callback")
async def from_issuer(app: TheApp, request: Request, name: str) -> Response:
    """Let somebody in who comes back from an issuer, or ask who they are."""
    way = _unsealed(app, request, _ON_THE_WAY)
    answer = dict(request.query_params)
    if name not in app.issuers.options:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    if way is None or way["name"] != name or way["state"] != answer.get("state"):
        raise SignInError(
            "this is no answer to a sign-in that was started in this browser in the last "
            f"{WAY_SECONDS // 60} minutes",
            hint="sign in once more",
        )
    identity = await app.issuers.complete(name, way, answer)
    user = await app.entrance.known(identity)
    if user is not None:
        response = await _let_in(app, request, user, way["back"])
    else:
        response = RedirectResponse("/sign-up", 303)
        newcomer = {"identity": asdict(identity), "back": way["back"]}
        sealed = seal(app.keys, _NEWCOMER, newcomer, FORM_SECONDS)
        visitors.keep(response, _NEWCOMER, sealed, FORM_SECONDS, app=app, request=request)
    visitors.forget(response, _ON_THE_WAY, app=app, request=request)
    return response


def _unsealed(app: App, request: Request, name: str) -> dict[str, Any] | None:
    return unseal(app.keys, name, visitors.kept(name, app, request) or "")


async def _let_in(
    app: App, request: Request, user: User, back: str, token: ApiToken | None = None
) -> Response:
    """Open a session in place of an earlier one; who waits, or is kept out, is shown that."""
    await app.sessions.end(visitors.kept(visitors.SESSION_COOKIE, app, request))
    response = RedirectResponse(back if user.state is UserState.ACTIVE else "/pending", 303)
    visitors.sign_in(response, await app.sessions.open(user, token), app=app, request=request)
    log.info("%s has signed in", user.email)
    return response


@router.get("/sign-up")
async def sign_up_form(app: TheApp, request: Request) -> Response:
    """Ask somebody new who they are."""
    newcomer = _newcomer(app, request)
    if newcomer is None:
        return RedirectResponse("/sign-in", 303)
    return _sign_up_page(app, request, newcomer[0], {"name": newcomer[0].name})


def _newcomer(app: App, request: Request) -> tuple[Identity, str] | None:
    kept = _unsealed(app, request, _NEWCOMER)
    return (Identity(**kept["identity"]), kept["back"]) if kept else None


def _sign_up_page(
    app: App, request: Request, identity: Identity, form: dict[str, str], message: str = ""
) -> Response:
    experiments = app.settings.experiments
    values: dict[str, Any] = {"email": identity.email, "form": form, "experiments": experiments}
    status = 400 if message else 200
    return rendering.page("sign-up", request, None, status=status, message=message, **values)


@router.post("/sign-up")
async def sign_up(app: TheApp, request: Request, attempts: TheAttempts) -> Response:
    """Make an account of what somebody says, and let them in or have them wait."""
    await attempts.allow(request, "sign-ups")
    newcomer = _newcomer(app, request)
    if newcomer is None:
        raise SignInError("this form is too old, or was not asked for", hint="sign in once more")
    identity, back = newcomer
    form = await form_of(request)
    try:
        user, new = await app.entrance.sign_up(identity, form)
    except RequestError as error:
        return _sign_up_page(app, request, identity, form, str(error))
    if new and user.state is UserState.PENDING:
        await app.telling.signed_up(user, await app.entrance.administrators())
    response = await _let_in(app, request, user, back)
    visitors.forget(response, _NEWCOMER, app=app, request=request)
    return response


@router.get("/pending")
async def pending(app: TheApp, request: Request) -> Response:
    """Show somebody that they have to wait; lead them in as soon as they need not."""
    user = await visitors.user_of(app, request)
    if user is None:
        return RedirectResponse("/sign-in", 303)
    if user.state is UserState.ACTIVE:
        return RedirectResponse("/requests", 303)
    return rendering.page("pending", request, None, user=user)


@router.post("/sign-out")
async def sign_out(app: TheApp, request: Request) -> Response:
    """Sign out in this browser."""
    await app.sessions.end(visitors.kept(visitors.SESSION_COOKIE, app, request))
    response = RedirectResponse("/", 303)
    visitors.forget(response, visitors.SESSION_COOKIE, app=app, request=request)
    return response
