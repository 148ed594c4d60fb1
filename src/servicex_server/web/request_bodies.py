"""Request bodies: the caller is authenticated first, then the bytes are counted as they come.

A client may declare the length of a body, or send it in chunks without one. No body has more than
`MAX_BODY` bytes unless its route allows more. When a response is sent before the whole body was
read, the connection is closed, so that a client cannot make the server read an unwanted body.

FastAPI reads and parses a body before it authenticates the caller. Every route that takes JSON is
therefore a `JsonRoute`, which authenticates by the headers first, and only then reads the body.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from servicex_server.settings.service import Settings
from servicex_server.web.dependencies import current_principal
from servicex_server.web.rate_limits import address_of

MAX_BODY = 64 << 10
"""Bytes that a body may have unless its route allows more; each field of a form fits."""

MAX_FILE_URLS = 1 << 20
"""Bytes that the body of ``POST /servicex/transformation/file-urls`` may have."""

FILE_BYTES = 256
"""Bytes that a file list may have for each of its files."""

LARGE = 128 << 10
"""Bytes above which a body needs one of the few places for large bodies."""

LARGE_AT_ONCE = 8
"""Large bodies that are in memory at a time."""

LARGE_SECONDS = 120.0
"""Seconds that reading a large body may take, and that the next one waits for a place."""

MAX_OPENERS = 100_000
"""Objects and arrays that a JSON body may have. An empty one needs twenty times its bytes as
memory."""

_SLICE = 1 << 20
_NOT_OPENERS = bytes(set(range(256)) - set(b"[{"))
_NOT_COMMAS = bytes(set(range(256)) - set(b","))


def max_submit(settings: Settings) -> int:
    """Return the bytes that a submitted request may have: its file list and its query fit."""
    return FILE_BYTES * settings.limits.files_per_request + 2 * settings.limits.selection_bytes


def too_large(most: int) -> HTTPException:
    """Return the error that refuses a body of more bytes than it may have."""
    message = f"the body is too large; at most {most} bytes"
    # FastAPI would report an exception of another kind as a body that is not JSON
    return HTTPException(413, message, headers={"Connection": "close"})


class Body:
    """The body of one request: counts its bytes, and refuses more than ``most`` of them.

    Parameters
    ----------
    scope
        The request.
    receive
        Where the body comes from.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.most = MAX_BODY
        self._receive = receive
        headers = Headers(scope=scope)
        self._declared = int(headers.get("content-length", "0"))
        self._count = 0
        chunked = "transfer-encoding" in headers
        self._pending = chunked or self._declared > 0
        self._closes = chunked or self._declared > MAX_BODY

    async def receive(self) -> Message:
        """Return the next ASGI message with a piece of the body.

        Raises
        ------
        HTTPException
            The body is too large.
        """
        if self._declared > self.most:
            raise too_large(self.most)
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self._pending = self._pending and bool(message.get("more_body", False))
        if self._count > self.most:
            raise too_large(self.most)
        return message

    def closing(self, send: Send) -> Send:
        """Return a channel for the response; it closes the connection if the body was not read."""

        async def closed(message: Message) -> None:
            if message["type"] == "http.response.start" and self._pending and self._closes:
                headers = list(message.get("headers", ()))
                if (b"connection", b"close") not in headers:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        return closed


class LargeBodies:
    """Bounds how many large bodies are in memory: one for each user, and `LARGE_AT_ONCE` in all."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def place(self, user: str) -> AsyncIterator[None]:
        """Hold one of the places.

        Raises
        ------
        HTTPException
            No place has become free in time.
        """
        try:
            async with asyncio.timeout(LARGE_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._is_free(user))
                self._held[user] += 1
        except TimeoutError:
            message = "the service is busy with other large requests; try again in a minute"
            headers = {"Retry-After": "60", "Connection": "close"}
            raise HTTPException(429, message, headers=headers) from None
        try:
            yield
        finally:
            self._held -= Counter((user,))
            async with self._changed:
                self._changed.notify_all()

    def _is_free(self, user: str) -> bool:
        return not self._held[user] and self._held.total() < LARGE_AT_ONCE


class JsonRequest(Request):
    """An authenticated request, whose body is read and parsed within limits.

    Parameters
    ----------
    request
        The request as it arrived.
    most_commas
        Commas that its JSON may have, which limits the number of its values.
    large
        Waits for a place for a large body, and takes it.
    """

    def __init__(
        self,
        request: Request,
        most_commas: int,
        large: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(request.scope, request.receive)
        self._most_commas = most_commas
        self._large = large

    async def body(self) -> bytes:
        """Return the body."""
        if not hasattr(self, "_body"):
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        content = bytearray()
        large = False
        try:
            async with asyncio.timeout(None) as ends:
                async for piece in self.stream():
                    content += piece
                    if len(content) > LARGE and not large:
                        large = True
                        await self._large()
                        ends.reschedule(asyncio.get_running_loop().time() + LARGE_SECONDS)
        except TimeoutError:
            message = f"the body has not arrived in {LARGE_SECONDS:g} s"
            raise HTTPException(408, message, headers={"Connection": "close"}) from None
        return bytes(content)

    async def json(self) -> Any:
        """Return the value of the body.

        Raises
        ------
        HTTPException
            The body is not JSON, or has too many values.
        """
        content = await self.body()
        if len(content) <= LARGE:
            return _parsed(content)
        return await asyncio.to_thread(self._bounded)

    def _bounded(self) -> Any:
        """Parse a large body after counting its values, in slices so that other threads can run."""
        slices = range(0, len(self._body), _SLICE)
        for what, others, most in (
            ("objects and arrays", _NOT_OPENERS, MAX_OPENERS),
            ("commas", _NOT_COMMAS, self._most_commas),
        ):
            found = sum(len(self._body[at : at + _SLICE].translate(None, others)) for at in slices)
            if found > most:
                raise HTTPException(413, f"the body has {found} {what}; at most {most} are allowed")
        return _parsed(self._body)


def _parsed(content: bytes) -> Any:
    try:
        # makes no copy as text, and accepts at most 200 levels and numbers of 4,300 digits
        return from_json(content, cache_strings="none")
    except ValueError as error:
        if len(content) <= LARGE and "hex escape" in str(error):
            with suppress(ValueError, RecursionError):
                return json.loads(content)  # validation then names the field with the surrogate
        raise HTTPException(400, f"the body is not JSON: {error}") from None


class JsonBody(BaseModel):
    """A JSON body, and the number of bytes that it may have."""

    @classmethod
    def most_bytes(cls, settings: Settings) -> int:
        """Return the bytes that the body may have."""
        del settings
        return MAX_BODY


class JsonRoute(APIRoute):
    """A route that authenticates the caller before it reads a body.

    Defining a route that takes a body and does not depend on `current_principal` is an error.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Any]]:
        """Return FastAPI's handler, behind authentication and the limits of the body."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = self.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, JsonBody)):
            raise TypeError(f"{self.path}: the body has to be a JsonBody")
        if current_principal not in _calls(self.dependant):
            raise TypeError(
                f"{self.path}: a route that takes a body has to depend on CurrentPrincipal"
            )

        async def guarded(request: Request) -> Any:
            state = request.app.state
            settings: Settings = state.servicex.settings
            authorization = request.headers.get("authorization")
            principal = await current_principal(
                state.servicex, request, state.rate_limiter, authorization
            )
            body: Body = request.state.body
            body.most = model.most_bytes(settings)
            user = principal.user if settings.sign_in else address_of(request)
            async with AsyncExitStack() as held:

                async def large() -> None:
                    await held.enter_async_context(state.large_bodies.place(user))

                commas = settings.limits.files_per_request + settings.limits.selection_bytes
                return await handle(JsonRequest(request, commas, large))

        return guarded


def _calls(dependant: Dependant) -> set[Any]:
    """Return all functions that a route depends on."""
    return {dependant.call}.union(*map(_calls, dependant.dependencies))


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises
    ------
    HTTPException
        The form is too large.
    """
    fields = parse_qs((await request.body()).decode(errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
