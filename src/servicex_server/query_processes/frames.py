"""The wire format between a process and its helpers: JSON objects, each preceded by its length.

Not pickle: a helper that a query has taken over must not be able to run code in its parent.
"""

import json
import struct
from asyncio import StreamReader
from socket import socket
from typing import Any

MAX_ANSWER = 256 << 10
"""Most bytes of a helper's answer; error messages are cut to far less."""

REQUEST = struct.Struct("!cI")
"""A message to a fork server: a letter and a number."""

REPLY = struct.Struct("!cIi")
"""A message from a fork server: a letter, a process id, and a wait status."""

_LENGTH = struct.Struct("!I")


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message. JSON escapes preserve lone surrogates, which UTF-8 cannot encode."""
    body = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def receive(connection: socket) -> dict[str, Any] | None:
    """Wait for a message from the parent process; return None when the parent has closed."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    body = _exactly(connection, _LENGTH.unpack(head)[0])
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _exactly(connection: socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


async def answer(reader: StreamReader) -> dict[str, Any]:
    """Wait for the answer of a helper.

    Raises
    ------
    IncompleteReadError
        The helper has ended.
    ValueError
        The answer is too long, or not a JSON object.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_ANSWER:
        raise ValueError(f"an answer of {length} bytes")
    message = json.loads(await reader.readexactly(length))
    if not isinstance(message, dict):
        raise ValueError("an answer that is not an object")  # noqa: TRY004  # as a wrong length
    return message
