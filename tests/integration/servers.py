"""Servers on loopback addresses: of files by XRootD and HTTP, and stand-ins for catalogues."""

import contextlib
import functools
import json
import os
import pwd
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import needed

READY_SECONDS = 20


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens, and that is given to nobody who asks for any port.

    Those that the system gives, also to a client for its end of a connection, begin at 32768.
    """
    for port in random.sample(range(10_000, 32_768), 100):
        with contextlib.suppress(OSError), socket.create_server((address, port)):
            return port
    pytest.fail(f"of 100 ports of {address} none is free")


# --- XRootD --------------------------------------------------------------------------------


@dataclass
class XRootD:
    """A running ``xrootd``; what is in ``folder`` is served below its URL."""

    folder: Path
    address: str
    port: int
    process: subprocess.Popen[bytes]

    def url(self, name: str) -> str:
        """Return the URL of a file by its name in the folder; names go on the wire as they are."""
        return f"root://{self.address}:{self.port}//{name}"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process without ending it: connections stay, answers do not come."""
        self.process.send_signal(signal.SIGSTOP)
        # until the last of its threads stands it may still answer
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def xrootd(address: str = "127.0.0.1", *, port: int = 0) -> Iterator[XRootD]:
    """Run a server on a new folder that everybody may read.

    It has no option for an address, so a preloaded library confines it; and it refuses to run as
    root, so it changes its user.
    """
    # pytest's own folders are for one user only, and the server is another
    with tempfile.TemporaryDirectory(prefix="sx-") as made, contextlib.ExitStack() as started:
        home = Path(made)
        home.chmod(0o755)
        port = port or free_port(address)
        prepare(home, f"xrd.port {port}\nall.export / readonly\n")
        library = preloadable("loopback_bind", home)
        process = started.enter_context(daemon("xrootd", home, address, library))
        until_it_answers(address, port, process, home / "xrootd.log")
        yield XRootD(home / "files", address, port, process)


@contextlib.contextmanager
def redirector(address: str = "127.0.0.1") -> Iterator[tuple[XRootD, XRootD, XRootD]]:
    """Run a redirector and two servers behind it; give it, which has no files, and these two.

    What is below ``data`` in their folders is served. Beside each of the three a ``cmsd`` tells the
    redirector who has what.
    """
    with tempfile.TemporaryDirectory(prefix="sx-") as made, contextlib.ExitStack() as started:
        home = Path(made)
        home.chmod(0o755)
        port, knows = free_port(address), free_port(address)
        common = (
            f"all.manager {address}:{knows}\nall.export /data\nxrd.network nodnr\n"
            "cms.delay startup 1 servers 2 lookup 1\n"
            "cms.space linger 0 recalc 5 min 1% 1m 2% 2m\n"
        )
        library = preloadable("loopback_bind", home)
        doors: list[XRootD] = []
        for name in ("manager", "one", "two"):
            place = home / name
            place.mkdir(mode=0o755)
            role = "server" if doors else "manager"
            ports = (free_port(address), free_port(address)) if doors else (knows, port)
            config = (
                f"{common}all.role {role}\n"
                f"if exec cmsd\nxrd.port {ports[0]}\nelse\nxrd.port {ports[1]}\nfi\n"
            )
            prepare(place, config)
            (place / "files" / "data").mkdir()
            started.enter_context(daemon("cmsd", place, address, library))
            process = started.enter_context(daemon("xrootd", place, address, library))
            doors.append(XRootD(place / "files", address, ports[1], process))
        for door in doors:
            log = door.folder.with_name("xrootd.log")
            until_it_answers(address, door.port, door.process, log)
        _until_it_knows(doors[0], 2)
        manager, one, two = doors
        yield manager, one, two


def prepare(home: Path, config: str) -> None:
    """Make what a program of XRootD needs: a folder ``files`` to serve, and a configuration."""
    folder, admin = home / "files", home / "admin"
    folder.mkdir()
    admin.mkdir()
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(admin, user.pw_uid, user.pw_gid)
    place = f"oss.localroot {folder}\nall.adminpath {admin}\nall.pidpath {admin}\n"
    (home / "xrootd.cfg").write_text(place + config)


@contextlib.contextmanager
def daemon(
    program: str,
    home: Path,
    address: str,
    library: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of XRootD in a folder that is prepared for it; its log is beside its files.

    The log is its standard output: with a log file of its own it starts a thread that reads the
    environment while others still set it, and now and then that is its end, see
    https://github.com/xrootd/xrootd/issues/2107.
    """
    command = [needed(program, "apt-get install xrootd-server")]
    command += ["-c", str(home / "xrootd.cfg")]
    if os.getuid() == 0:
        command += ["-R", "nobody"]
    told = {**os.environ, **(environment or {})}
    told |= {"LD_PRELOAD": str(library), "LOOPBACK_BIND": address}
    with (home / f"{program}.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=told, cwd=home
        )
    try:
        yield process
    finally:
        # a frozen process ends only by this, and nothing here is kept
        process.kill()
        process.wait(10)


@functools.cache
def _compiled(name: str) -> bytes:
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)]
        subprocess.run([*command, "-ldl"], check=True)
        return library.read_bytes()


def preloadable(name: str, folder: Path) -> Path:
    """Compile a library to preload, by the name of its source beside this file, into a folder."""
    needed("gcc", "apt-get install gcc")
    library = folder / f"{name}.so"
    library.write_bytes(_compiled(name))
    return library


def until_it_answers(address: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection((address, port), timeout=1) as door:
                # the first words of the protocol, and of the reply the first byte
                door.sendall(b"\0" * 15 + b"\4" + b"\0\0\7\xdc")
                if door.recv(1):
                    return
        except OSError:
            time.sleep(0.02)
    text = log.read_text(errors="replace")[-3000:] if log.exists() else "it wrote no log"
    pytest.fail(f"xrootd was not ready after {READY_SECONDS} s:\n{text}")


def _until_it_knows(door: XRootD, count: int) -> None:
    """Wait until a redirector has heard of so many servers."""
    from XRootD.client.filesystem import FileSystem
    from XRootD.client.flags import OpenFlags

    system = FileSystem(f"root://{door.address}:{door.port}")
    deadline = time.monotonic() + 3 * READY_SECONDS
    while time.monotonic() < deadline:
        status, found = system.locate("*/data", OpenFlags.REFRESH, 20)
        if status.ok and len(found.locations) == count:
            return
        time.sleep(0.1)
    text = door.folder.with_name("xrootd.log").read_text(errors="replace")[-3000:]
    pytest.fail(f"the redirector does not know {count} servers:\n{text}")


# --- HTTP ----------------------------------------------------------------------------------

Manner = Literal["ranges", "whole", "breaks", "silent", "redirects"]


@dataclass
class Http:
    """A running HTTP server, and how it treats whom.

    Parameters
    ----------
    manner
        Serve ranges as one should; send the whole file whatever was asked; close the connection
        in the middle of a reply; say nothing; or send everybody to ``elsewhere``.
    status
        Refuse with this status; 0 for none.
    well
        How many requests are still served as they should be.
    """

    folder: Path
    port: int
    manner: Manner = "ranges"
    status: int = 0
    well: int = 0
    elsewhere: str = ""
    scheme: str = "http"
    asked: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    address: str = "127.0.0.1"

    def url(self, name: str) -> str:
        """Return the URL of a file by its name in the folder."""
        return f"{self.scheme}://{self.address}:{self.port}/{quote(name)}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and a body would be 40 ms apart

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the test looks at what was asked."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        door = self.server.door
        door.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        door.shown.append(self.headers.get("Authorization", ""))
        manner: Manner = door.manner
        status = door.status
        if door.well > 0:
            door.well -= 1
            manner, status = "ranges", 0
        path = door.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if manner == "silent":
            door.ended.wait()
            self.close_connection = True
        elif manner == "redirects":
            self._reply(HTTPStatus.FOUND, b"", {"Location": door.elsewhere})
        elif status:
            self._reply(status, b"this is an error page")
        elif not path.is_file():
            self._reply(HTTPStatus.NOT_FOUND, b"there is no such file")
        else:
            self._file(path.read_bytes(), manner)

    def _file(self, content: bytes, manner: Manner) -> None:
        asked = self.headers.get("Range")
        if asked is None or manner == "whole":
            self._reply(HTTPStatus.OK, content)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        if int(first) >= len(content):
            everything = f"bytes */{len(content)}"
            headers = {"Content-Range": everything}
            self._reply(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", headers)
            return
        part = content[int(first) : int(last or len(content)) + 1]
        where = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        sent = len(part) // 2 if manner == "breaks" else len(part)
        self._reply(HTTPStatus.PARTIAL_CONTENT, part, {"Content-Range": where}, sent=sent)

    def _reply(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])
        if sent is not None and sent < len(content):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for them

    door: Http

    def __init__(
        self, handler: type[BaseHTTPRequestHandler] = _Handler, address: str = "127.0.0.1"
    ) -> None:
        super().__init__((address, 0), handler)
        self.open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a reader that went away."""


@contextlib.contextmanager
def http(
    manner: Manner = "ranges",
    *,
    elsewhere: str = "",
    certificate: tuple[Path, Path] | None = None,
    address: str = "127.0.0.1",
) -> Iterator[Http]:
    """Serve a new folder in a thread, faults included; by HTTPS with a certificate and its key."""
    with tempfile.TemporaryDirectory(prefix="sx-") as folder:
        server = _Server(address=address)
        door = Http(Path(folder), server.server_port, manner, elsewhere=elsewhere, address=address)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            # the greeting is the business of the connection's own thread
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            door.scheme = "https"
        server.door = door
        with _running(server, door.ended):
            yield door


@contextlib.contextmanager
def _running(server: _Server, ended: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        ended.set()
        server.shutdown()
        for connection in list(server.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Asked:
    """What a stand-in is asked: the path, the query, and the subject of the certificate shown."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    subject: str = ""


@dataclass(frozen=True)
class Answer:
    """What a stand-in says: all of the body, or so many bytes of it before it hangs up.

    Without a body it says nothing at all, until it ends.
    """

    body: bytes | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None


@dataclass
class StandIn:
    """A program that stands in for a service on the web, and what it was asked."""

    answer: Callable[[Asked], Answer]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def stand_in(
    answer: Callable[[Asked], Answer], *, context: ssl.SSLContext | None = None
) -> Iterator[StandIn]:
    """Serve what a function answers, in threads; by HTTPS with a context."""
    made = StandIn(answer)

    class Handler(_Handler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            shown = self.connection.getpeercert() if context else None
            subject = "".join(pair[1] for part in (shown or {}).get("subject", ()) for pair in part)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(place.path, dict(parse_qsl(place.query)), headers, subject)
            made.asked.append(asked)
            said = made.answer(asked)
            if said.body is None:
                made.ended.wait()
                self.close_connection = True
            else:
                self._reply(said.status, said.body, said.headers, sent=said.sent)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_POST()

    server = _Server(Handler)
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    made.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    with _running(server, made.ended):
        yield made


@contextlib.contextmanager
def webhook(*statuses: int) -> Iterator[tuple[str, list[Any]]]:
    """Run a server that answers with these; give its URL, with a secret, and what it was sent."""
    sent: list[Any] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(left.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(
    folder: Path,
    *,
    name: str = "a test",
    days: float = 1,
    stem: str = "certificate",
    host: str = "",
) -> tuple[Path, Path]:
    """Make a self-signed certificate for a host name, or 127.0.0.1; return its file and its key's.

    It is good for so many days from today; with less than none it has expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    subject_alternative = x509.SubjectAlternativeName(
        [x509.DNSName(host) if host else x509.IPAddress(ip_address("127.0.0.1"))]
    )
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=10))
        .not_valid_after(today + timedelta(days=days))
        .add_extension(subject_alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    return put(folder, f"{stem}.pem", public), put(folder, f"{stem}-key.pem", private)


@dataclass
class Listener:
    """A TCP port on which connections are counted, and nothing is said."""

    address: str
    port: int
    connections: int = 0


@contextlib.contextmanager
def listener(address: str = "127.0.0.1") -> Iterator[Listener]:
    """Listen on a port of an address."""
    ended = threading.Event()
    with socket.create_server((address, 0)) as server:
        made = Listener(address, server.getsockname()[1])

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    made.connections += 1
                    connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield made
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def put(folder: Path, name: str, content: bytes | Path) -> Path:
    """Place a file in a served folder, readable for all."""
    path = folder / name
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    path.chmod(0o644)
    return path
