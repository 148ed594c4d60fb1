"""Connections: how long a client may be silent, and which one is closed when there are too many.

uvicorn limits neither the time nor the size of the head of a request, nor the time of a body or of
a client that does not read its response. `Connections` watches all open connections once a second,
and `protocol` gives uvicorn a protocol that reports to it:

- A head has to arrive within `HEAD_SECONDS` and `HEAD_BYTES`, a body at `BODY_RATE` at least.
- A response may be read as slowly as the client likes, as long as some of it is read in
  `STALL_SECONDS`.
- When there are too many connections, from one address or in all, the connection that has kept the
  server waiting longest is closed. A client that sends its request at once is served.

Only this file uses undocumented names of uvicorn; a test lists them.
"""

import asyncio
import errno
import fcntl
import json
import logging
import os
import resource
import socket
import sys
import termios
from collections import Counter
from collections.abc import Sequence
from enum import Enum, auto
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from servicex_server.web.rate_limits import counted

log = logging.getLogger(__name__)

HEAD_SECONDS = 15.0
"""Seconds in which the request line and the headers have to arrive."""

HEAD_BYTES = 32 << 10
"""Bytes of the request line and headers; also of the overhead between the chunks of a body."""

HEADERS = 100
"""Headers that a request may have."""

BODY_SECONDS = 20.0
"""Seconds that a body may take in addition to its time at `BODY_RATE`."""

BODY_RATE = 4096
"""Bytes per second at which a body has to arrive on average."""

STALL_SECONDS = 120.0
"""Seconds within which a client has to read some bytes of its response."""

STALLED_SECONDS = 10.0
"""Seconds without such reading after which the connection may be closed to make room for others."""

WAITING_EACH = 256
"""Most connections from one address that wait for their client."""

EACH = 1024
"""Most connections from one address in all."""

MOST = 8192
"""Most connections in all, if there are enough file descriptors."""

PIPELINED = 16
"""Requests that a client may send before it has the response to the first."""

ACCEPTED = 16
"""Connections accepted in one round of the event loop. Each takes a file descriptor before it is
counted, and holds it for one round after it is dropped."""

DESCRIPTORS = 65_536
"""File descriptors that the process asks for. A higher limit slows down programs that close every
possible descriptor."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Networks = Sequence[IPv4Network | IPv6Network]


def raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as it may be raised; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return DESCRIPTORS
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # macOS has a lower limit that it does not report
            log.warning("the limit of open files stays at %d: %s", soft, error)
            return soft
    return max(soft, wanted)


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    BODY = auto()
    RESPONSE = auto()


class Connections:
    """All open connections of a server, ordered by how long they have waited for their client.

    Parameters
    ----------
    descriptors
        File descriptors that the process may have; connections use at most half of them.
    proxies
        Trusted proxies. They carry the requests of many clients, so the limits for one address do
        not apply to them.
    """

    def __init__(self, descriptors: int, proxies: Networks = ()) -> None:
        self.most = min(MOST, descriptors // 2)
        self._proxies = proxies
        self._open: set[_Protocol] = set()
        self._waiting: dict[_Protocol, None] = {}
        self._by_address: dict[str, dict[_Protocol, None]] = {}
        self._counts: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None

    def opened(self, one: "_Protocol") -> None:
        """Add a connection that waits for its first request."""
        self._open.add(one)
        self._counts[one.address] += 1
        self.waits(one)
        theirs = self._by_address[one.address]
        many = len(theirs) > WAITING_EACH or self._counts[one.address] > EACH
        if many and not one.is_proxy:
            self._drop(next(iter(theirs)))
        elif len(self._open) > self.most:
            self._drop(self._slowest(one))
        if self._sweep is None:
            self._sweep = one.loop.call_later(1, self._look, one.loop)

    def waits(self, one: "_Protocol") -> None:
        """Record that a connection waits for its client from now on."""
        self.works(one)
        self._waiting[one] = None
        self._by_address.setdefault(one.address, {})[one] = None

    def works(self, one: "_Protocol") -> None:
        """Record that a connection does not wait for its client any more."""
        self._waiting.pop(one, None)
        theirs = self._by_address.get(one.address, {})
        theirs.pop(one, None)
        if not theirs:
            self._by_address.pop(one.address, None)

    def closed(self, one: "_Protocol") -> None:
        """Remove a connection."""
        if one in self._open:
            self._open.remove(one)
            self._counts[one.address] -= 1
            if not self._counts[one.address]:
                del self._counts[one.address]
        self.works(one)

    def drop_oldest(self) -> bool:
        """Close the connection that has waited longest; return whether there was one."""
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _slowest(self, new: "_Protocol") -> "_Protocol":
        """Return the connection to close for a new one; the new one if all others are busy."""
        oldest = next(iter(self._waiting))
        if oldest is not new:
            return oldest
        moment = new.loop.time() - STALLED_SECONDS
        stalled = (one for one in self._open if one.stalls and one.moved < moment)
        return min(stalled, key=lambda one: one.moved, default=new)

    def _drop(self, one: "_Protocol") -> None:
        self.closed(one)
        one.transport.abort()

    def is_proxy(self, host: str) -> bool:
        """Return whether a host is a trusted proxy."""
        try:
            address = ip_address(host)
        except ValueError:  # not an address, such as the path of a socket
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections that have timed out; check again in a second while any are open."""
        moment = loop.time()
        for one in list(self._open):
            one.look(moment)
        self._sweep = loop.call_later(1, self._look, loop) if self._open else None


class _Protocol(HttpToolsProtocol):
    """A connection that records what it waits for, and since when."""

    watched: ClassVar[Connections]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        self.is_proxy = self.watched.is_proxy(host)
        # other clients of the proxy's IPv6 network are not counted with it
        self.address = host if self.is_proxy else counted(host)
        self._chunk = self._received = self._body_bytes = 0
        self._unsent = (0, 0)
        self._sends = False
        self.moved = self.loop.time()
        self._begin(Phase.HEAD)
        self.watched.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watched.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._phase is Phase.RESPONSE:
            return
        if self._received - self._body_bytes > HEAD_BYTES + 8 * self._body_bytes:
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _LARGE_HEAD)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._received, self._body_bytes = self._chunk, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.transport.is_closing():
            return
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _MANY_HEADERS)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            self.transport.abort()
        if self.transport.is_closing():
            return
        self._begin(Phase.BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._begin(Phase.RESPONSE)
            self.watched.works(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and no pipelined request waits for its response
            self._begin(Phase.HEAD)
            self._received = 0
            self._sends = self.transport.get_write_buffer_size() > 0
            if not self._sends and not self.transport.is_closing():
                self.watched.waits(self)

    def _begin(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self.loop.time()

    @property
    def stalls(self) -> bool:
        """Whether unsent bytes were left at the last check."""
        return any(self._unsent)

    def look(self, moment: float) -> None:
        """Close the connection if its client has timed out."""
        if (unsent := self._left()) != self._unsent:
            self._unsent, self.moved = unsent, moment
        elif self.stalls and moment - self.moved > STALL_SECONDS:
            self.transport.abort()
        if self.stalls or self.transport.is_closing():
            return
        if self._sends:  # the client has the whole response now
            self._sends, self._since = False, moment
            if self._phase is Phase.HEAD:
                self.watched.waits(self)
        if self._phase is Phase.HEAD and moment - self._since > HEAD_SECONDS:
            if self._received:
                self.refuse(HTTPStatus.REQUEST_TIMEOUT, _SLOW_HEAD)
            else:
                self.transport.close()
        elif self._phase is Phase.BODY and self.flow.read_paused:
            self._since += 1  # the server has paused reading, so this second does not count
        elif self._phase is Phase.BODY and self._is_slow(moment):
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, _SLOW_BODY)

    def _is_slow(self, moment: float) -> bool:
        return moment - self._since > BODY_SECONDS + self._body_bytes / BODY_RATE

    def _left(self) -> tuple[int, int]:
        """Return the unsent bytes in the transport's buffer, and those in the kernel's."""
        here = self.transport.get_write_buffer_size()
        opened: socket.socket | None = self.transport.get_extra_info("socket")
        if not here or opened is None or opened.fileno() < 0:
            return here, 0
        queued = fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, bytes(4))
        return here, int.from_bytes(queued, sys.byteorder)

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error, unless a response has begun, and close the connection."""
        busy = self._phase is not Phase.HEAD
        if not (busy and self.cycle.response_started):
            body = json.dumps({"message": message}).encode()
            self.transport.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
        self.transport.close()


_LARGE_HEAD = f"the headers are too large; at most {HEAD_BYTES} bytes"
_MANY_HEADERS = f"there are too many headers; at most {HEADERS}"
_SLOW_HEAD = f"the headers have not arrived in {HEAD_SECONDS:g} s"
_SLOW_BODY = f"the body arrives too slowly; at least {BODY_RATE} bytes a second"


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Return a protocol class for uvicorn whose connections are watched."""
    return type("WatchedProtocol", (_Protocol,), {"watched": connections})


class Listener(socket.socket):
    """A listening socket that never runs out of file descriptors.

    asyncio accepts all waiting connections before it handles any of them; this socket gives it at
    most `ACCEPTED` at once. When ``accept`` fails, asyncio logs every failure, thousands a second,
    and tries again a second later. This socket closes a connection instead: the one that has waited
    longest, or the new one if none waits. A descriptor is held in reserve for that.
    """

    connections: Connections | None = None
    _reserve: int | None = None
    _accepted = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; see `socket.socket.accept`."""
        if self._accepted == ACCEPTED:
            raise BlockingIOError  # asyncio takes this for an empty queue, and polls again
        if not self._accepted:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._accepted += 1
        if self._reserve is None:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            log.warning("closing a connection to make room for others: %s", error.strerror)
        if self.connections is None or not self.connections.drop_oldest():
            self._turn_away()
        raise BlockingIOError

    def _next_round(self) -> None:
        self._accepted = 0

    def _turn_away(self) -> None:
        assert self._reserve is not None  # noqa: S101  # opened before
        os.close(self._reserve)
        try:
            super().accept()[0].close()
        except OSError as error:
            log.warning("a connection could not be accepted to be closed: %s", error.strerror)
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the socket and the reserve."""
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        super().close()
