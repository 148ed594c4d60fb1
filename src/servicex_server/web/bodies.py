"""The bodies of requests: how large one may be, and the fields of a form.

A client may say how long its body is, or send it in chunks and say nothing; so the bytes are
counted as they come. Of a body that is too large no more is read: the answer closes the connection.
"""

from urllib.parse import parse_qs

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

MAX_BODY = 64 << 20
"""Bytes a request body may have: 100,000 long URLs fit."""

MAX_FORM = 64 << 10
"""Bytes a form may have: each of its fields fits with any characters."""


def too_large(most: int) -> HTTPException:
    """Return the error that refuses a body of more bytes than it may have."""
    message = f"the body is too large; at most {most} bytes"
    # not one of ours: FastAPI would take that for a body that is no JSON
    return HTTPException(413, message, headers={"Connection": "close"})


def bounded(receive: Receive, most: int) -> Receive:
    """Return a channel that gives a body, and refuses one with more bytes than it may have."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise too_large(most)
        return message

    return counted


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises
    ------
    HTTPException
        It is too large.
    """
    body = await Request(request.scope, bounded(request.receive, MAX_FORM)).body()
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
