"""FastAPI dependencies of the API routes: the service, the rate limiter and the principal."""

from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from servicex_server.app import App
from servicex_server.errors import NotFoundError, UnknownTokenError
from servicex_server.model import Principal
from servicex_server.web.rate_limits import RateLimiter

API_TOKENS = "wrong API tokens"
"""Kind of the rate limit on API tokens that are not valid."""

_ACCESS_TOKENS = "wrong access tokens"


def _app(request: Request) -> App:
    app: App = request.app.state.servicex
    return app


Authorization = Annotated[str | None, Header(include_in_schema=False)]


def _rate_limiter(request: Request) -> RateLimiter:
    limiter: RateLimiter = request.app.state.rate_limiter
    return limiter


TheApp = Annotated[App, Depends(_app)]
TheRateLimiter = Annotated[RateLimiter, Depends(_rate_limiter)]


ACCESS = HTTPBearer(
    auto_error=False,
    scheme_name="access-token",
    description="From `POST /token/refresh`.",
)
API = HTTPBearer(
    auto_error=False,
    scheme_name="api-token",
    description="From the profile page.",
)


async def current_principal(
    app: TheApp, request: Request, limiter: TheRateLimiter, authorization: Authorization = None
) -> Principal:
    """Return the principal of a request. Unknown tokens count towards the address's rate limit.

    A request is authenticated once, before its body is read.
    """
    known: Principal | None = getattr(request.state, "current_principal", None)
    if known is not None:
        return known
    try:
        principal = await app.principal(authorization)
    except UnknownTokenError:
        await limiter.hit(request, _ACCESS_TOKENS)
        raise
    request.state.current_principal = principal
    return principal


async def _documented_principal(
    principal: Annotated[Principal, Depends(current_principal)],
    described: Annotated[object, Security(ACCESS)],
) -> Principal:
    del described  # for the OpenAPI document only; `current_principal` reads the header
    return principal


CurrentPrincipal = Annotated[Principal, Depends(_documented_principal)]


def _require_sees_all(principal: CurrentPrincipal, request: Request) -> Principal:
    if not principal.sees_all:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    return principal


SeesAllRequired = Depends(_require_sees_all)
"""Dependency of a route that exists only for operators and administrators."""


def number_in(text: str) -> int | None:
    """Return the row id in a path; None if no row can have it.

    Examples
    --------
    >>> number_in("12"), number_in("-1"), number_in("9" * 19)
    (12, None, None)
    """
    known = text.isdecimal() and len(text) <= 18  # noqa: PLR2004  # what a 64-bit id can have
    return int(text) if known else None


def base_of(app: App, request: Request) -> str:
    """Return the base URL by which this client reaches the service."""
    public = app.settings.public_url
    return public.rstrip("/") if public else str(request.base_url).rstrip("/")


def dataset_number(text: str) -> int:
    """Return the id of a dataset in a path.

    Raises
    ------
    NotFoundError
        No dataset can have this id.
    """
    number = number_in(text)
    if number is None:
        raise NotFoundError(f"Dataset {text} not found")
    return number
