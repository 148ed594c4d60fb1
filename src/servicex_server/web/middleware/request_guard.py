"""Middleware that refuses requests of foreign hosts, accounts and sites, and mends their paths."""

import re

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from servicex_server.settings.service import Settings
from servicex_server.web.error_handlers import error_response
from servicex_server.web.middleware.cross_origin import is_cross_origin
from servicex_server.web.middleware.owner_only import refusal_of
from servicex_server.web.middleware.peer_uid import PeerUids
from servicex_server.web.middleware.trusted_hosts import host_check
from servicex_server.web.request_bodies import Body

OURS = (
    "/servicex",
    "/transformation-request",
    "/requests",
    "/datasets",
    "/sites",
    "/workers",
    "/sign-",
    "/pending",
    "/profile",
    "/device",
    "/users",
)
"""Prefixes of all paths except those of results."""


def _meaningless(scope: Scope) -> Response | None:
    """Refuse a URL with a NUL character, which databases do not accept.

    Paths of results are left to the S3 gateway, which checks them itself.
    """
    if not scope["path"].startswith(OURS):
        return None
    if "\0" in scope["path"]:
        return error_response(Request(scope), 404, "the path contains a NUL character")
    if b"%00" in scope["query_string"]:
        return error_response(Request(scope), 400, "the query string contains a NUL character")
    return None


class RequestGuard:
    """Collapses repeated slashes, which configured URLs often cause, and refuses foreign requests.

    A request is refused if its client's account is not served, its ``Host`` is not allowed, its URL
    contains a NUL character, or a page of another site sent it. Only the routed path changes: S3
    signatures cover the path as it arrived.
    """

    def __init__(self, app: ASGIApp, settings: Settings, peers: PeerUids | None) -> None:
        self._app = app
        self._public_url = settings.public_url
        self._misdirected = host_check(settings)
        self._not_owned = refusal_of(peers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on with a path that the routes know."""
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("//+", "/", scope["path"])}
            if len(scope["path"]) > 1 and scope["path"].startswith(OURS):
                scope["path"] = scope["path"].rstrip("/")
            if refusal := self._refusal(scope):
                await refusal(scope, receive, send)
                return
            body = Body(scope, receive)
            scope["state"] = {**scope.get("state", {}), "body": body}
            receive, send = body.receive, body.closing(send)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if why := self._not_owned(scope):
            return error_response(Request(scope), 403, why)
        if why := self._misdirected(headers.get("host", "")):
            return error_response(Request(scope), 421, why)
        if meaningless := _meaningless(scope):
            return meaningless
        if is_cross_origin(scope["method"], headers, self._public_url):
            why = "a page of another site sent this request; only pages of this service may do so"
            return error_response(Request(scope), 403, why)
        return None
