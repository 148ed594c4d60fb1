"""The web application: its routes, its error handlers and its middleware."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from servicex_server import __version__
from servicex_server.app import App
from servicex_server.web.api.routers import API
from servicex_server.web.api.schemas import ERRORS
from servicex_server.web.error_handlers import add_error_handlers
from servicex_server.web.middleware.peer_uid import PeerUids
from servicex_server.web.middleware.request_guard import RequestGuard
from servicex_server.web.middleware.response_headers import DefaultHeaders
from servicex_server.web.pages import routes as pages
from servicex_server.web.rate_limits import RateLimiter
from servicex_server.web.request_bodies import LargeBodies
from servicex_server.web.s3.routes import s3_routes

log = logging.getLogger(__name__)


def web_app(app: App, peers: PeerUids | None = None) -> FastAPI:
    """Return the ASGI application of a service that the caller has started.

    Parameters
    ----------
    app
        The service.
    peers
        Finds the account of a client on this machine; None if clients of every account are served.
    """

    @asynccontextmanager
    async def lifespan(web: FastAPI) -> AsyncIterator[None]:
        web.state.servicex = app
        web.router.routes.extend(
            s3_routes(
                app.buckets, app.objects, app.keys, app.requests.make_again, app.last_used.note
            )
        )
        yield

    web = _Application(
        title="servicex-server",
        version=__version__,
        summary="Columns from high-energy-physics datasets",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # the page /docs replaces it, and loads nothing from other sites
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    if not app.settings.sign_in:
        web.openapi = lambda: _without_tokens(FastAPI.openapi(web))  # type: ignore[method-assign]
    web.state.rate_limiter = RateLimiter()
    web.state.large_bodies = LargeBodies()
    for chapter in API:
        web.include_router(chapter.router, responses=ERRORS)
    web.include_router(pages.router)
    add_error_handlers(web)
    web.add_middleware(RequestGuard, settings=app.settings, peers=peers)
    return web


class _Application(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """Add the headers outside of all other middleware, where unexpected errors are answered."""
        return DefaultHeaders(super().build_middleware_stack())


def _without_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document without its security schemes, for a service without sign-in."""
    document.get("components", {}).pop("securitySchemes", None)
    for ways in document["paths"].values():
        for operation in ways.values():
            operation.pop("security", None)
    return document
