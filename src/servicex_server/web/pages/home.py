"""The first page, the sign-in of the owner by a link, static files, and the list of routes."""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from servicex_server.errors import NotFoundError
from servicex_server.web.dependencies import API_TOKENS, TheApp, TheRateLimiter, base_of
from servicex_server.web.pages import (
    api_docs,
    templating,
)
from servicex_server.web.pages.dependencies import (
    OWNER_COOKIE,
    OWNER_SECONDS,
    OptionalPrincipal,
    keep,
)

router = APIRouter(include_in_schema=False)

_STATIC = {"pages.css": "text/css", "live.js": "text/javascript"}


@router.get("/")
async def home(app: TheApp, principal: OptionalPrincipal, request: Request) -> Response:
    """Show what the service does, and how to start."""
    return templating.page("home", request, principal, base=base_of(app, request))


@router.get("/open")
async def open_with_token(
    app: TheApp, request: Request, limiter: TheRateLimiter, token: str = ""
) -> Response:
    """Store the owner's token in a cookie, and redirect to a URL without the token."""
    if app.owner_token is None:
        raise NotFoundError("there is nothing at /open")
    if not app.owner_token.matches(token):
        await limiter.hit(request, API_TOKENS)
        app.owner_token.check_token(f"Bearer {token}")
    response = RedirectResponse("/requests", 303, headers={"Cache-Control": "no-store"})
    keep(response, OWNER_COOKIE, token, OWNER_SECONDS, app=app, request=request)
    return response


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Return the style sheet or the script of all pages."""
    if name not in _STATIC:
        raise NotFoundError(f"there is nothing at /static/{name}")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    path = templating.FOLDER / "static" / name
    return FileResponse(path, media_type=_STATIC[name], headers=headers)


@router.get("/docs")
async def docs(principal: OptionalPrincipal, request: Request) -> Response:
    """Show the routes of the API, as the OpenAPI document describes them."""
    found = api_docs.routes(request.app.openapi())
    return templating.page("docs", request, principal, routes=found)
