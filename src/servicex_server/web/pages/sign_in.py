"""Sign-in with an OIDC provider or an API token, sign-up and sign-out.

A provider redirects the browser back to ``/sign-in/<name>/callback``. A user with an account is
then signed in. A new user fills in the sign-up form, and waits for an administrator unless the
sign-up policy approves them. Encrypted cookies carry the state of a sign-in between its steps.
"""

import logging
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts.encrypted_cookies import decrypt, encrypt
from servicex_server.accounts.oidc import Identity
from servicex_server.app import App
from servicex_server.errors import NotFoundError, RequestError, SignInError, UnknownTokenError
from servicex_server.model import ApiToken, User, UserState
from servicex_server.web.dependencies import API_TOKENS, TheApp, TheRateLimiter, base_of
from servicex_server.web.pages import dependencies, templating
from servicex_server.web.pages.dependencies import SignInEnabled, safe_back
from servicex_server.web.request_bodies import form_of

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, dependencies=[SignInEnabled])

WAY_SECONDS = 600
"""Seconds in which the browser has to come back from the provider."""

FORM_SECONDS = 3600
"""Seconds for which the sign-up form is valid."""

_ON_THE_WAY = "servicex-on-the-way"
_NEWCOMER = "servicex-newcomer"

Back = Annotated[str, Query(max_length=dependencies.MOST_BACK)]


@router.get("/sign-in")
async def sign_in(app: TheApp, request: Request, back: Back = "/requests") -> Response:
    """Show the ways to sign in; redirect a user who is signed in already."""
    user = await dependencies.user_of(app, request)
    if user is not None and user.state is UserState.ACTIVE:
        return RedirectResponse(safe_back(back), 303)
    return _ways_in(app, request, safe_back(back))


def _ways_in(app: App, request: Request, back: str, **values: Any) -> Response:
    ways = [
        (one.title, f"/sign-in/{one.name}?{urlencode({'back': back})}")
        for one in app.oidc_providers.options.values()
    ]
    status = 401 if values else 200
    values = {"message": "", "ways": ways, "back": back, **values}
    return templating.page("sign-in", request, None, status=status, **values)


@router.post("/sign-in")
async def with_token(app: TheApp, request: Request, limiter: TheRateLimiter) -> Response:
    """Sign in with an API token."""
    form = await form_of(request)
    back = safe_back(form.get("back", ""))
    try:
        user, token = await app.authenticator.by_api_token(form.get("token", "").strip())
    except SignInError as error:
        if isinstance(error, UnknownTokenError):
            await limiter.hit(request, API_TOKENS)
        if not templating.wants_page(request):
            raise
        return _ways_in(app, request, back, message=str(error))
    return await _let_in(app, request, user, back, token)


@router.get("/sign-in/{name}")
async def to_issuer(app: TheApp, request: Request, name: str, back: Back = "/requests") -> Response:
    """Redirect to an OIDC provider; a cookie holds the state of the sign-in, not the database."""
    callback = f"{base_of(app, request)}/sign-in/{name}/callback"
    address, begun = await app.oidc_providers.begin(name, callback)
    response = RedirectResponse(address, 303)
    way = {"name": name, "back": safe_back(back), **begun}
    encrypted = encrypt(app.keys, _ON_THE_WAY, way, WAY_SECONDS)
    dependencies.keep(response, _ON_THE_WAY, encrypted, WAY_SECONDS, app=app, request=request)
    return response


@router.get("/sign-in/{name}/callback")
async def from_issuer(
    app: TheApp, request: Request, limiter: TheRateLimiter, name: str
) -> Response:
    """Sign in a user who comes back from an OIDC provider, or ask a new user to sign up."""
    way = _decrypted(app, request, _ON_THE_WAY)
    answer = dict(request.query_params)
    if name not in app.oidc_providers.options:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    if way is None or way["name"] != name or way["state"] != answer.get("state"):
        raise SignInError(
            f"this browser has not started this sign-in in the last {WAY_SECONDS // 60} minutes",
            hint="sign in once more",
        )
    try:
        identity = await app.oidc_providers.complete(name, way, answer)
    except SignInError:
        await limiter.hit(request, "failed sign-ins")
        raise
    user = await app.registration.known(identity)
    if user is not None:
        response = await _let_in(app, request, user, way["back"])
    else:
        response = RedirectResponse("/sign-up", 303)
        newcomer = {"identity": asdict(identity), "back": way["back"]}
        encrypted = encrypt(app.keys, _NEWCOMER, newcomer, FORM_SECONDS)
        dependencies.keep(response, _NEWCOMER, encrypted, FORM_SECONDS, app=app, request=request)
    dependencies.forget(response, _ON_THE_WAY, app=app, request=request)
    return response


def _decrypted(app: App, request: Request, name: str) -> dict[str, Any] | None:
    return decrypt(app.keys, name, dependencies.kept(name, app, request) or "")


async def _let_in(
    app: App, request: Request, user: User, back: str, token: ApiToken | None = None
) -> Response:
    """Open a session, which replaces an earlier one; a user who is not active sees why."""
    await app.sessions.end(dependencies.kept(dependencies.SESSION_COOKIE, app, request))
    response = RedirectResponse(back if user.state is UserState.ACTIVE else "/pending", 303)
    dependencies.sign_in(response, await app.sessions.open(user, token), app=app, request=request)
    log.info("%s signed in", user.email)
    return response


@router.get("/sign-up")
async def sign_up_form(app: TheApp, request: Request) -> Response:
    """Show the sign-up form to a new user."""
    newcomer = _newcomer(app, request)
    if newcomer is None:
        return RedirectResponse("/sign-in", 303)
    return _sign_up_page(app, request, newcomer[0], {"name": newcomer[0].name})


def _newcomer(app: App, request: Request) -> tuple[Identity, str] | None:
    kept = _decrypted(app, request, _NEWCOMER)
    return (Identity(**kept["identity"]), kept["back"]) if kept else None


def _sign_up_page(
    app: App, request: Request, identity: Identity, form: dict[str, str], message: str = ""
) -> Response:
    experiments = app.settings.accounts.experiments
    values: dict[str, Any] = {"email": identity.email, "form": form, "experiments": experiments}
    status = 400 if message else 200
    return templating.page("sign-up", request, None, status=status, message=message, **values)


@router.post("/sign-up")
async def sign_up(app: TheApp, request: Request, limiter: TheRateLimiter) -> Response:
    """Create an account from the sign-up form, and sign its user in."""
    newcomer = _newcomer(app, request)
    if newcomer is None:
        raise SignInError("this sign-up form has expired", hint="sign in once more")
    identity, back = newcomer
    await limiter.hit(request, "sign-ups", user=identity.email)
    form = await form_of(request)
    try:
        user, new = await app.registration.sign_up(identity, form)
    except RequestError as error:
        return _sign_up_page(app, request, identity, form, str(error))
    if new and user.state is UserState.PENDING:
        await app.account_notifier.signed_up(user, await app.registration.administrators())
    response = await _let_in(app, request, user, back)
    dependencies.forget(response, _NEWCOMER, app=app, request=request)
    return response


@router.get("/pending")
async def pending(app: TheApp, request: Request) -> Response:
    """Show that an account waits for approval or is suspended; redirect once it is active."""
    user = await dependencies.user_of(app, request)
    if user is None:
        return RedirectResponse("/sign-in", 303)
    if user.state is UserState.ACTIVE:
        return RedirectResponse("/requests", 303)
    return templating.page("pending", request, None, user=user)


@router.post("/sign-out")
async def sign_out(app: TheApp, request: Request) -> Response:
    """Sign out in this browser."""
    await app.sessions.end(dependencies.kept(dependencies.SESSION_COOKIE, app, request))
    response = RedirectResponse("/", 303)
    dependencies.forget(response, dependencies.SESSION_COOKIE, app=app, request=request)
    return response
