"""What every route is given: the service, who asks, and how often that address has been wrong."""

from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from servicex_server.app import App
from servicex_server.errors import NotFoundError, UnknownTokenError
from servicex_server.model import Principal
from servicex_server.web.attempts import Attempts

API_TOKENS = "wrong API tokens"
"""What is counted where one comes in with such a token."""

_ACCESS_TOKENS = "wrong access tokens"


def _app(request: Request) -> App:
    app: App = request.app.state.servicex
    return app


Authorization = Annotated[str | None, Header(include_in_schema=False)]


def _attempts(request: Request) -> Attempts:
    attempts: Attempts = request.app.state.attempts
    return attempts


TheApp = Annotated[App, Depends(_app)]
TheAttempts = Annotated[Attempts, Depends(_attempts)]


ACCESS = HTTPBearer(
    auto_error=False,
    scheme_name="access-token",
    description="From `POST /token/refresh`.",
)
API = HTTPBearer(
    auto_error=False,
    scheme_name="api-token",
    description="From one's profile.",
)


async def asker(
    app: TheApp, request: Request, attempts: TheAttempts, authorization: Authorization = None
) -> Principal:
    """Return who asks; tokens that are none of this service are counted by address."""
    try:
        return await app.principal(authorization)
    except UnknownTokenError:
        await attempts.allow(request, _ACCESS_TOKENS)
        raise


async def _asker(
    principal: Annotated[Principal, Depends(asker)],
    described: Annotated[object, Security(ACCESS)],
) -> Principal:
    del described  # only the document is made of it: what is wrong with a header is said by us
    return principal


Asker = Annotated[Principal, Depends(_asker)]


def _overseer(principal: Asker, request: Request) -> Principal:
    if not principal.sees_all:
        raise NotFoundError(f"there is nothing at {request.url.path}")
    return principal


SeesAll = Depends(_overseer)
"""Of a route that is there only for those who see all."""


def number_in(text: str) -> int | None:
    """Return the number of a row that an address names; None if no row can have it.

    Examples
    --------
    >>> number_in("12"), number_in("-1"), number_in("9" * 19)
    (12, None, None)
    """
    known = text.isdecimal() and len(text) <= 18  # noqa: PLR2004  # what a 64-bit id can have
    return int(text) if known else None


def base_of(app: App, request: Request) -> str:
    """Return the URL by which this client reaches the service."""
    public = app.settings.public_url
    return public.rstrip("/") if public else str(request.base_url).rstrip("/")
