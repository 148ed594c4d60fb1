"""A small server that speaks just enough of the XRootD protocol to be hostile.

Debian's ``xrootd`` cannot be configured to redirect to a local file, to set fields that configure
a client, or to print the credential that it was shown. This one does each, and keeps what it was
sent. It knows the handshake, TLS, login, authentication, and the opening of a file (XProtocol.hh).
"""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_AUTH, _PROTOCOL, _LOGIN, _OPEN, _STAT, _LOCATE = 3000, 3006, 3007, 3010, 3017, 3027
_OK, _ERROR, _REDIRECT = 0, 4003, 4004
_IS_SERVER, _TLS = 0x1, 0x80000000 | 0x40000000 | 0x04000000  # haveTLS, gotoTLS, tlsLogin
_NOT_FOUND = 3011

ZTN = "&P=ztn,0:65536:"
"""What a server says that takes tokens, of at most so many bytes."""


@dataclass
class Hostile:
    """A running server.

    Parameters
    ----------
    redirect
        URL that everybody is sent to who asks for a file; a text of it may have ``{path}``.
    security
        Protocols of authentication that are asked for, as they stand in the answer to a login.
    shown
        What clients showed: the protocol, and the bytes.
    asked
        Paths that were asked for, with their fields.
    """

    address: str
    port: int
    redirect: str = ""
    security: str = ""
    shown: list[tuple[str, bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    logins: int = 0

    def url(self, name: str, scheme: str = "root") -> str:
        """Return the URL of a file."""
        return f"{scheme}://{self.address}:{self.port}//{name}"


@contextlib.contextmanager
def hostile_xrootd(
    address: str = "127.0.0.1",
    *,
    redirect: str = "",
    security: str = "",
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[Hostile]:
    """Run a server in threads; with a certificate and its key every connection has TLS."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    with socket.create_server((address, 0)) as listening:
        port: int = listening.getsockname()[1]
        server = Hostile(address, port, redirect, security)
        connections: list[_Connection] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(_Connection(server, listening.accept()[0], context))
                    connections[-1].start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in connections:
                one.end()


class _Connection(threading.Thread):
    def __init__(
        self, server: Hostile, connection: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        super().__init__()
        self._server = server
        self._socket = connection
        self._context = context

    def run(self) -> None:
        try:
            self._take(20)
            self._send(b"\0\0", _OK, struct.pack(">II", 0x520, 1))
            while True:
                self._request()
        except (OSError, EOFError):
            return
        finally:
            self._socket.close()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()

    def _request(self) -> None:
        head = self._take(24)
        stream, number = head[:2], struct.unpack(">H", head[2:4])[0]
        content = self._take(struct.unpack(">i", head[20:24])[0])
        answers: dict[int, Callable[[bytes, bytes, bytes], None]] = {
            _PROTOCOL: self._protocol,
            _LOGIN: self._login,
            _AUTH: self._auth,
            _OPEN: self._file,
            _STAT: self._file,
            _LOCATE: self._file,
        }
        answer = answers.get(number)
        if answer is None:
            self._send(stream, _ERROR, struct.pack(">i", 3006) + b"not known\0")
        else:
            answer(stream, head, content)

    def _protocol(self, stream: bytes, head: bytes, content: bytes) -> None:
        del head, content
        flags = _IS_SERVER | (_TLS if self._context else 0)
        self._send(stream, _OK, struct.pack(">II", 0x520, flags))
        if self._context:
            self._socket = self._context.wrap_socket(self._socket, server_side=True)

    def _login(self, stream: bytes, head: bytes, content: bytes) -> None:
        del head, content
        self._server.logins += 1
        security = self._server.security.encode()
        self._send(stream, _OK, bytes(16) + (security + b"\0" if security else b""))

    def _auth(self, stream: bytes, head: bytes, content: bytes) -> None:
        protocol = head[16:20].rstrip(b"\0").decode()
        self._server.shown.append((protocol, content))
        self._send(stream, _OK, b"")

    def _file(self, stream: bytes, head: bytes, content: bytes) -> None:
        del head
        path = content.rstrip(b"\0").decode()
        self._server.asked.append(path)
        if self._server.redirect:
            target = self._server.redirect.format(path=path.partition("?")[0])
            self._send(stream, _REDIRECT, struct.pack(">i", -1) + target.encode())
        else:
            self._send(stream, _ERROR, struct.pack(">i", _NOT_FOUND) + b"no such file\0")

    def _send(self, stream: bytes, status: int, body: bytes) -> None:
        self._socket.sendall(stream + struct.pack(">Hi", status, len(body)) + body)

    def _take(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            if not (more := self._socket.recv(count - len(taken))):
                raise EOFError
            taken += more
        return taken
