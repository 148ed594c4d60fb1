"""Starts ``servicex-server`` in a copy of a process that has imported it, which saves seconds.

A process that runs this file imports what the service imports, and does nothing else. For each
service it makes a copy of itself, which calls the same function as the command
``servicex-server``. Options, environment and output are those of the service.
"""

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

IMPORTED = (
    "servicex_server.cli.main",
    "servicex_server.web.serve",
    "servicex_server.database.migrate",
    "servicex_server.clusters.choose",
    "servicex_server.clusters.local",
    "servicex_server.engine.dask_engine",
)

QUIET = {"DASK_LOGGING__DISTRIBUTED": "error"}
"""What the service sets before it imports distributed, unless it logs at DEBUG."""

MESSAGE = 1 << 18
"""Bytes of the longest message: the options and the environment of a service."""


class WarmProcess:
    """A service in a copy of the imported process: what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, at most so many seconds, and return the exit status.

        Raises
        ------
        subprocess.TimeoutExpired
            The process still runs.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            said = os.read(self._status, 64)
            os.close(self._status)
            if not said:
                raise RuntimeError(f"nobody knows how process {self.pid} ended")
            self.returncode = int(said)
        return self.returncode


class WarmStarter:
    """The process that has imported the service, and makes copies of itself."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._control = ours

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: BinaryIO
    ) -> WarmProcess:
        """Start a service that prints and logs to a file."""
        read, write = os.pipe()
        what = {
            "command": list(command),
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        descriptors = array.array("i", [output.fileno(), write])
        self._control.sendmsg(
            [json.dumps(what).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        )
        os.close(write)
        return WarmProcess(int(self._control.recv(64)), read, command)

    def close(self) -> None:
        """End the process; services that run go on."""
        self._control.close()
        self._process.wait()


class _Copies:
    """The copies that run, each with a pipe to tell the tests how it ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, int] = {}
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the end of a copy wakes `select`

    def serve(self) -> dict[str, Any] | None:
        """Make copies until the tests end; return to a copy what it has to do, to others None."""
        while True:
            ready = select.select([self._control.fileno(), self._woken], [], [])[0]
            if self._woken in ready:
                os.read(self._woken, 1 << 12)
                self._report()
            if self._control.fileno() in ready:
                data, descriptors, *_ = socket.recv_fds(self._control, MESSAGE, 2)
                if not data:
                    return None
                if self._copy(*descriptors):
                    return dict(json.loads(data))

    def _copy(self, output: int, status: int) -> bool:
        """Make a copy; return whether this is the copy."""
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._control.close()
            for one in (output, status, self._woken, self._wake, *self._running.values()):
                os.close(one)
            return True
        os.close(output)
        self._running[pid] = status
        self._control.send(str(pid).encode())
        return False

    def _report(self) -> None:
        for pid, status in list(self._running.items()):
            ended, how = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._running[pid]
                with suppress(BrokenPipeError), os.fdopen(status, "w") as pipe:
                    pipe.write(str(os.waitstatus_to_exitcode(how)))


def main(descriptor: str) -> None:
    """Import the service, make copies of this process, and be the service in a copy."""
    os.environ.update(QUIET)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    with socket.socket(fileno=int(descriptor)) as control:
        os.set_inheritable(control.fileno(), False)
        what = _Copies(control).serve()
    if what is None:
        return
    os.chdir(what["folder"])
    os.environ.clear()
    os.environ.update(what["environment"])
    sys.argv[:] = what["command"]
    # what the workers of the service import, as after a start by the command itself
    sys.modules["__main__"].__file__ = what["command"][0]
    sys.path[0] = str(Path(what["command"][0]).parent)
    from servicex_server.cli.main import main as service

    service()


if __name__ == "__main__":
    main(*sys.argv[1:])
