"""Real servers of files on loopback addresses: XRootD, and HTTP that goes wrong on demand."""

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import needed

READY_SECONDS = 20


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens."""
    with socket.create_server((address, 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


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
    program = needed("xrootd", "apt-get install xrootd-server")
    # pytest's own folders are for one user only, and the server is another
    with tempfile.TemporaryDirectory(prefix="sx-") as made:
        home = Path(made)
        folder, admin, log = home / "files", home / "admin", home / "log"
        port = port or free_port(address)
        (home / "xrootd.cfg").write_text(
            f"xrd.port {port}\noss.localroot {folder}\nall.export / readonly\n"
            f"all.adminpath {admin}\nall.pidpath {admin}\n"
        )
        command = [program, "-c", str(home / "xrootd.cfg"), "-l", str(log / "log")]
        home.chmod(0o755)
        for one in (folder, admin, log):
            one.mkdir()
        if os.getuid() == 0:
            user = pwd.getpwnam("nobody")
            for one in (admin, log):
                os.chown(one, user.pw_uid, user.pw_gid)
            command += ["-R", user.pw_name]
        environment = os.environ | {
            "LD_PRELOAD": str(preloadable("loopback_bind", home)),
            "LOOPBACK_BIND": address,
        }
        with (home / "output").open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=home
            )
        try:
            _until_it_answers(address, port, process, log / "log")
            yield XRootD(folder, address, port, process)
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


def _until_it_answers(address: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
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
    ended: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str) -> str:
        """Return the URL of a file by its name in the folder."""
        return f"{self.scheme}://127.0.0.1:{self.port}/{quote(name)}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and a body would be 40 ms apart

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the test looks at what was asked."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        door = self.server.door
        door.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
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

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
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
    manner: Manner = "ranges", *, elsewhere: str = "", certificate: tuple[Path, Path] | None = None
) -> Iterator[Http]:
    """Serve a new folder in a thread, faults included; by HTTPS with a certificate and its key."""
    with tempfile.TemporaryDirectory(prefix="sx-") as folder:
        server = _Server()
        door = Http(Path(folder), server.server_port, manner, elsewhere=elsewhere)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            # the greeting is the business of the connection's own thread
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            door.scheme = "https"
        server.door = door
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield door
        finally:
            door.ended.set()
            server.shutdown()
            for connection in list(server.open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            server.server_close()
            thread.join()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that vouches for itself; return its file and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate_file = put(folder, "certificate.pem", made.public_bytes(serialization.Encoding.PEM))
    return certificate_file, put(folder, "key.pem", private)


def put(folder: Path, name: str, content: bytes | Path) -> Path:
    """Place a file in a served folder, readable for all."""
    path = folder / name
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    path.chmod(0o644)
    return path
