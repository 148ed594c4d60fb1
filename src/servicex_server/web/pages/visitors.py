"""Who looks at a page: by the cookie of a browser in which they have signed in.

The cookie opens the pages only. Programs name themselves in a header, which no page of another site
can make a browser send; so what the API does for a GET cannot be brought about by a link.
"""

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request, Response

from servicex_server.accounts.access import allowed
from servicex_server.accounts.sessions import SESSION
from servicex_server.app import App
from servicex_server.errors import ForbiddenError, NotFoundError, SignInError, TooManyError
from servicex_server.model import Principal, User, UserState
from servicex_server.web.askers import Authorization, TheApp, TheAttempts, asker, base_of
from servicex_server.web.pages.rendering import wants_page

MOST_BACK = 2000
"""Characters of an address to which one is led back after signing in."""


class Elsewhere(Exception):  # noqa: N818  # no error: the answer is another address
    """Leads a browser to another page."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def safe_back(text: str) -> str:
    r"""Return an address of this service to which one may be led back; home for any other.

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
    """Whether the service is reached by TLS, so that its cookies are sent by nothing else."""
    return base_of(app, request).startswith("https://")


def _cookie(name: str, app: App, request: Request) -> str:
    """Return the full name of a cookie: ``__Host-`` is for those that no other host can set."""
    return f"__Host-{name}" if is_secure(app, request) else name


def keep(
    response: Response, name: str, value: str, seconds: float, *, app: App, request: Request
) -> None:
    """Have a browser keep something, which no script sees and no other site makes it send."""
    response.set_cookie(
        _cookie(name, app, request),
        value,
        max_age=int(seconds),
        path="/",
        secure=is_secure(app, request),
        httponly=True,
        samesite="lax",  # not strict: one comes back from an issuer
    )


def kept(name: str, app: App, request: Request) -> str | None:
    """Return what a browser has kept."""
    return request.cookies.get(_cookie(name, app, request))


def forget(response: Response, name: str, *, app: App, request: Request) -> None:
    """Have a browser keep something no longer."""
    keep(response, name, "", 0, app=app, request=request)


SESSION_COOKIE = "servicex"


def sign_in(response: Response, secret: str, *, app: App, request: Request) -> None:
    """Have a browser keep the secret of its session."""
    keep(response, SESSION_COOKIE, secret, SESSION.total_seconds(), app=app, request=request)


async def user_of(app: App, request: Request) -> User | None:
    """Return who has signed in with this browser, whether they may be here or not."""
    return await app.sessions.user(kept(SESSION_COOKIE, app, request))


async def _visitor(
    app: TheApp, request: Request, attempts: TheAttempts, authorization: Authorization = None
) -> Principal:
    if authorization is None and app.settings.sign_in:
        principal = await _by_cookie(app, request)
    else:
        principal = await asker(app, request, attempts, authorization)
    request.state.principal = principal
    return principal


async def _by_cookie(app: App, request: Request) -> Principal:
    user = await user_of(app, request)
    if user is not None and user.state is UserState.PENDING and wants_page(request):
        raise Elsewhere("/pending")
    if user is not None:
        return allowed(user)
    if wants_page(request):
        here = str(request.url.replace(scheme="", netloc="")) if request.method == "GET" else ""
        raise Elsewhere(f"/sign-in?back={quote(safe_back(here))}")
    return await app.principal(None)  # which says what is missing


async def _anybody(
    app: TheApp, request: Request, attempts: TheAttempts, authorization: Authorization = None
) -> Principal | None:
    try:
        return await _visitor(app, request, attempts, authorization)
    except (SignInError, TooManyError, Elsewhere):
        return None


Visitor = Annotated[Principal, Depends(_visitor)]
Anybody = Annotated[Principal | None, Depends(_anybody)]
"""Who looks at a page that is there for those too who are nobody."""


def _overseer(principal: Visitor, request: Request) -> Principal:
    if not principal.sees_all:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    return principal


SeesAll = Depends(_overseer)
"""Of a page that is there only for those who see all."""


async def _vouched(app: TheApp, principal: Visitor, request: Request) -> None:
    ways = [one.title for one in app.issuers.options.values()]
    secret = kept(SESSION_COOKIE, app, request)
    user = await app.sessions.user(secret)
    # somebody who names another one in a header has not signed in as them
    own = user is not None and user.email == principal.user
    if ways and not (own and await app.sessions.is_vouched(secret)):
        raise ForbiddenError(
            f"a token is no way for {principal.user} to get another one",
            hint=f"sign in with {' or '.join(ways)}",
        )


Vouched = Depends(_vouched)
"""Of what gives somebody a token: it wants an issuer, where there is one to vouch for them. So
whoever has got hold of a token has it until it is revoked, and no longer."""


def _with_sign_in(app: TheApp, request: Request) -> None:
    if not app.settings.sign_in:
        raise NotFoundError(
            f"there is nothing at {request.url.path}: on this service nobody signs in"
        )


SignIn = Depends(_with_sign_in)
"""Of a page that is there only where users sign in."""
