"""FastAPI dependencies of the pages: the principal of a browser's session, and cookies.

A session cookie opens pages only, not the API. Programs authenticate with a header, which a page of
another site cannot make a browser send. So a link cannot trigger what the API does on a GET.
"""

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request, Response

from servicex_server.accounts.authentication import allowed
from servicex_server.accounts.sessions import SESSION
from servicex_server.app import App
from servicex_server.errors import ForbiddenError, NotFoundError, SignInError, TooManyError
from servicex_server.model import Principal, User, UserState
from servicex_server.web.dependencies import (
    Authorization,
    TheApp,
    TheRateLimiter,
    base_of,
    current_principal,
)
from servicex_server.web.pages.templating import wants_page

MOST_BACK = 2000
"""Most characters of the path to which a browser returns after sign-in."""


class RedirectRequired(Exception):  # noqa: N818  # no error: the answer is another address
    """Redirects a browser to another page."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def safe_back(text: str) -> str:
    r"""Return a path of this service to redirect to after sign-in; ``/requests`` for any other.

    Examples
    --------
    >>> safe_back("/requests?q=1")
    '/requests?q=1'
    >>> {safe_back(text) for text in ("https://x.org", "//x.org", "/\\x.org", "/\t/x.org", "x")}
    {'/requests'}
    """
    fine = text.startswith("/") and not text.startswith("//") and "\\" not in text
    if not fine or not text.isprintable() or len(text) > MOST_BACK:
        return "/requests"
    return text


def is_secure(app: App, request: Request) -> bool:
    """Whether clients reach the service by TLS, so that its cookies need not be sent without."""
    return base_of(app, request).startswith("https://")


def _cookie(name: str, app: App, request: Request) -> str:
    """Return the full name of a cookie. No other host can set one that begins with ``__Host-``."""
    return f"__Host-{name}" if is_secure(app, request) else name


def keep(
    response: Response, name: str, value: str, seconds: float, *, app: App, request: Request
) -> None:
    """Set a cookie that scripts cannot read and that cross-site form posts do not send."""
    response.set_cookie(
        _cookie(name, app, request),
        value,
        max_age=int(seconds),
        path="/",
        secure=is_secure(app, request),
        httponly=True,
        samesite="lax",  # not strict: the OIDC provider redirects the browser back
    )


def kept(name: str, app: App, request: Request) -> str | None:
    """Return the value of a cookie."""
    return request.cookies.get(_cookie(name, app, request))


def forget(response: Response, name: str, *, app: App, request: Request) -> None:
    """Delete a cookie."""
    keep(response, name, "", 0, app=app, request=request)


SESSION_COOKIE = "servicex"
OWNER_COOKIE = "servicex-owner"
"""Cookie with the owner's token, for a service without sign-in."""

OWNER_SECONDS = 30 * 24 * 3600
"""Seconds for which a browser keeps the owner's token."""


def sign_in(response: Response, secret: str, *, app: App, request: Request) -> None:
    """Set the session cookie."""
    keep(response, SESSION_COOKIE, secret, SESSION.total_seconds(), app=app, request=request)


async def user_of(app: App, request: Request) -> User | None:
    """Return the user of the browser's session, in whatever state their account is."""
    return await app.sessions.user(kept(SESSION_COOKIE, app, request))


async def _page_principal(
    app: TheApp, request: Request, limiter: TheRateLimiter, authorization: Authorization = None
) -> Principal:
    if authorization is None and app.settings.sign_in:
        principal = await _by_cookie(app, request)
    else:
        if authorization is None and (token := kept(OWNER_COOKIE, app, request)):
            authorization = f"Bearer {token}"
        principal = await current_principal(app, request, limiter, authorization)
    request.state.principal = principal
    return principal


async def _by_cookie(app: App, request: Request) -> Principal:
    user = await user_of(app, request)
    if user is not None and user.state is UserState.PENDING and wants_page(request):
        raise RedirectRequired("/pending")
    if user is not None:
        return allowed(user)
    if wants_page(request):
        here = str(request.url.replace(scheme="", netloc="")) if request.method == "GET" else ""
        raise RedirectRequired(f"/sign-in?back={quote(safe_back(here))}")
    return await app.principal(None)  # raises the error that says what is missing


async def _optional_principal(
    app: TheApp, request: Request, limiter: TheRateLimiter, authorization: Authorization = None
) -> Principal | None:
    try:
        return await _page_principal(app, request, limiter, authorization)
    except (SignInError, TooManyError, RedirectRequired):
        return None


PagePrincipal = Annotated[Principal, Depends(_page_principal)]
OptionalPrincipal = Annotated[Principal | None, Depends(_optional_principal)]
"""The principal of a public page; None if nobody has signed in."""


def _require_sees_all(principal: PagePrincipal, request: Request) -> Principal:
    if not principal.sees_all:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    return principal


PageSeesAllRequired = Depends(_require_sees_all)
"""Dependency of a page that exists only for operators and administrators."""


async def _require_oidc_session(app: TheApp, principal: PagePrincipal, request: Request) -> None:
    ways = [one.title for one in app.oidc_providers.options.values()]
    secret = kept(SESSION_COOKIE, app, request)
    user = await app.sessions.user(secret)
    # an Authorization header may name another user than the session
    own = user is not None and user.email == principal.user
    if ways and not (own and await app.sessions.is_oidc_session(secret)):
        raise ForbiddenError(
            "API tokens cannot be created with an API token",
            hint=f"sign in with {' or '.join(ways)} first",
        )


OidcSessionRequired = Depends(_require_oidc_session)
"""Dependency of a route that creates an API token: the user has to sign in with an OIDC provider,
if there is one. So a stolen token is useless once it is revoked: the thief cannot create another.
"""


def _require_sign_in(app: TheApp, request: Request) -> None:
    if not app.settings.sign_in:
        raise NotFoundError(
            f"there is nothing at {request.url.path}: sign-in is disabled on this service"
        )


SignInEnabled = Depends(_require_sign_in)
"""Dependency of a page that exists only if sign-in is enabled."""
