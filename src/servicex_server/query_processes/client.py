"""The parent's side: starts a fork server, requests helpers from it, and sends jobs to them."""

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servicex_server.query_processes.frames import REPLY, REQUEST, answer, encode
from servicex_server.query_processes.limits import TIME_SIGNALS, JobLimits

log = logging.getLogger(__name__)

MARGIN = 0.5
"""Seconds beyond its time limit after which a helper is killed, if its own timer has failed."""

EXIT_SECONDS = 2.0
"""Seconds that the fork server has to report how a helper ended, and to end itself."""

_INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|(DY)?LD_LIBRARY_PATH|PYTHON(PATH|HOME|USERBASE)|VIRTUAL_ENV"
    r"|SSL_CERT_(FILE|DIR)|X509_CERT_DIR|XRD_\w+"
)
"""Environment variables that helpers get: paths of programs, libraries and certificates. They
hold no secrets."""

_LIBRARIES = {
    # a fork server must have only one thread
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class HelperDiedError(Exception):
    """A helper has ended during a job, but not by one of our limits; ``how`` says how."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class LimitExceededError(Exception):
    """A job has exceeded a limit, ``processor``, ``wall`` or ``memory``; its helper has ended."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class NoHelperError(Exception):
    """No helper is available: the fork server has ended, or cannot fork."""


@dataclass(eq=False)
class Helper:
    """A helper process."""

    pid: int
    reader: StreamReader
    writer: StreamWriter
    ended: asyncio.Future[int]

    @property
    def alive(self) -> bool:
        """Whether the helper is not known to have ended."""
        return not (self.ended.done() or self.reader.at_eof())

    async def ask(self, job: dict[str, Any], limits: JobLimits) -> dict[str, Any]:
        """Send a job to the helper, and return its answer.

        Raises
        ------
        LimitExceededError
            The job has exceeded a limit.
        HelperDiedError
            The helper has ended without an answer.
        """
        self.writer.write(encode(job | {"job_limits": asdict(limits)}))
        try:
            async with asyncio.timeout(limits.wall + MARGIN):
                await self.writer.drain()
                found = await answer(self.reader)
        except TimeoutError:
            raise LimitExceededError("wall") from None
        except ValueError as error:
            raise HelperDiedError(f"gave {error}") from None
        except (OSError, EOFError):
            raise await self._ending() from None
        if limit := found.get("limit"):
            raise LimitExceededError(str(limit))
        return found

    async def _ending(self) -> Exception:
        """Return the error for a closed connection."""
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                status = await asyncio.shield(self.ended)
        except TimeoutError:
            return HelperDiedError("closed its connection")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in TIME_SIGNALS:
                return LimitExceededError(TIME_SIGNALS[signal.Signals(number)])
            return HelperDiedError(f"was ended by signal {number}")
        return HelperDiedError(f"ended with exit code {os.waitstatus_to_exitcode(status)}")


class ForkServerProcess:
    """A fork server; it is restarted if it has ended when it is needed.

    Parameters
    ----------
    modules
        Modules to import for all helpers, besides the query languages.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = modules
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._received = bytearray()
        self._forking: deque[asyncio.Future[tuple[int, asyncio.Future[int]]]] = deque()
        self._ended: dict[int, asyncio.Future[int]] = {}

    def start(self) -> None:
        """Start the process, unless it is running; do not wait until it is ready.

        Raises
        ------
        NoHelperError
            The process cannot be started, or `close` was called.
        """
        if self._closed:
            raise NoHelperError("the fork server is closed")
        if self._control is not None:
            return
        ours, theirs = _socket_pair()
        ours.setblocking(False)  # noqa: FBT003  # it has no name
        command = [sys.executable, "-P", "-m", "servicex_server.query_processes.fork_server"]
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603  # it is ours
                    [*command, str(theirs.fileno()), *self._modules],
                    env=_environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the parent, which ends this process
                )
            except OSError as error:
                ours.close()
                raise NoHelperError(f"the fork server cannot be started: {error}") from error
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    async def fork(self, memory: int) -> Helper:
        """Return a new helper that may use ``memory`` bytes.

        Raises
        ------
        NoHelperError
            A helper cannot be started now.
        """
        self.start()
        assert self._control is not None  # noqa: S101  # it is started
        ours, theirs = _socket_pair()
        loop = asyncio.get_running_loop()
        forked: asyncio.Future[tuple[int, asyncio.Future[int]]] = loop.create_future()
        with theirs:
            try:
                request = REQUEST.pack(b"F", memory >> 20)
                socket.send_fds(self._control, [request], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise NoHelperError(f"the fork server does not answer: {error}") from error
        self._forking.append(forked)
        try:
            pid, ended = await asyncio.shield(forked)
        except BaseException:
            ours.close()  # this ends the helper, if there is one
            raise
        reader, writer = await asyncio.open_connection(sock=ours)
        return Helper(pid, reader, writer, ended)

    def end(self, helper: Helper) -> None:
        """Kill a helper, even during a job."""
        helper.writer.close()
        if not helper.ended.done() and self._control is not None:
            with suppress(OSError):
                self._control.send(REQUEST.pack(b"K", helper.pid))

    def close(self) -> None:
        """End the fork server and all helpers at once, for good."""
        self._closed = True
        self._lose(NoHelperError("the fork server is closed"))

    def _hear(self) -> None:
        assert self._control is not None  # noqa: S101  # it is heard from
        try:
            data = self._control.recv(1 << 12)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(NoHelperError("the fork server has ended"))
            return
        self._received += data
        while len(self._received) >= REPLY.size:
            letter, pid, status = REPLY.unpack(self._received[: REPLY.size])
            del self._received[: REPLY.size]
            if letter == b"F":
                self._forked(pid)
            elif (ended := self._ended.pop(pid, None)) is not None:
                ended.set_result(status)

    def _forked(self, pid: int) -> None:
        forked = self._forking.popleft()
        if pid:
            self._ended[pid] = asyncio.get_running_loop().create_future()
            forked.set_result((pid, self._ended[pid]))
        else:
            forked.set_exception(NoHelperError("no process can be forked"))

    def _lose(self, error: NoHelperError) -> None:
        """Forget a fork server that has ended; its helpers have ended with it."""
        if (control := self._control) is None:
            return
        self._control = None
        self._received.clear()
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        while self._forking:
            forked = self._forking.popleft()
            forked.set_exception(error)
            forked.exception()  # mark it as retrieved: perhaps nobody is waiting any more
        for ended in self._ended.values():
            ended.set_result(signal.SIGKILL)
        self._ended.clear()
        self._kill()

    def _kill(self) -> None:
        """Kill the session of the fork server, and reap it."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("process %d was killed but does not end", process.pid)


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise NoHelperError(f"a helper process cannot be connected: {error}") from error


def _environment() -> dict[str, str]:
    inherited = {n: value for n, value in os.environ.items() if _INHERITED.fullmatch(n)}
    if (imports := inherited.get("PYTHONPATH")) is not None:
        # relative paths would fail, because the fork server has another working folder
        entries = (str(Path(entry).absolute()) for entry in imports.split(os.pathsep) if entry)
        inherited["PYTHONPATH"] = os.pathsep.join(entries)
    return inherited | _LIBRARIES
