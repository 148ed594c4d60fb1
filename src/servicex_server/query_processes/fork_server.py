"""The fork server: imports the modules of all jobs once, and forks a helper for each request.

Run as ``python -m servicex_server.query_processes.fork_server DESCRIPTOR MODULE...``.

The parent cannot fork helpers itself: it has threads, and a forked copy may find any lock taken.
This process has a single thread and no state. It runs no jobs itself, so it always answers. When
its parent ends or closes the connection, it kills the helpers and ends.

A message to it is a letter and a number. ``F``, sent with a file descriptor, forks a helper that
serves this descriptor and may use the given MiB of memory. ``K`` kills the helper with the given
process id; the id cannot belong to another process, because only this process reaps helpers. A
message from it is a letter and two numbers. ``F`` has the process id of the new helper, or 0 if
the fork failed. ``E`` has the process id of a helper that has ended, and its wait status.
"""

import gc
import importlib
import os
import select
import signal
import sys
from socket import recv_fds, socket
from typing import NoReturn

from servicex_server.query_processes import helper, jobs
from servicex_server.query_processes.frames import REPLY, REQUEST


class ForkServer:
    """Forks helpers, kills them, and reports how they ended."""

    def __init__(self, control: socket) -> None:
        self._control = control
        self._helpers: set[int] = set()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the end of a helper wakes `select`

    def serve_waiting(self, timeout: float | None = 0) -> None:
        """Serve waiting messages; wait up to ``timeout`` seconds for one, None for any time."""
        control = self._control.fileno()
        while ready := select.select([control, self._woken], [], [], timeout)[0]:
            timeout = 0
            if self._woken in ready:
                os.read(self._woken, 1 << 12)
                self._reap()
            if control in ready:
                self._obey()

    def _obey(self) -> None:
        data, descriptors, *_ = recv_fds(self._control, REQUEST.size, 1)
        if not data:
            self._end()
        letter, number = REQUEST.unpack(data)
        if letter == b"F":
            self._fork(descriptors[0], number << 20)
        elif number in self._helpers:
            os.kill(number, signal.SIGKILL)

    def _fork(self, descriptor: int, memory: int) -> None:
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._become_helper(descriptor, memory)
        os.close(descriptor)
        if pid > 0:
            self._helpers.add(pid)
        self._control.sendall(REPLY.pack(b"F", max(pid, 0), 0))

    def _become_helper(self, descriptor: int, memory: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        os.close(self._woken)
        os.close(self._wake)
        null = os.open(os.devnull, os.O_WRONLY)
        # the output of libraries may contain text of the user
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)
        try:
            helper.serve(socket(fileno=descriptor), memory)
        finally:
            os._exit(1)  # after any exception: this copy must not continue as a fork server

    def _reap(self) -> None:
        while self._helpers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._helpers.discard(pid)
            self._control.sendall(REPLY.pack(b"E", pid, status))

    def _end(self) -> NoReturn:
        for pid in self._helpers:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def main(descriptor: str, *modules: str) -> NoReturn:
    """Import modules, and serve until the parent ends; helpers are forked between two imports."""
    os.set_inheritable(int(descriptor), False)  # noqa: FBT003  # it has no name
    server = ForkServer(socket(fileno=int(descriptor)))
    jobs.preload()
    for module in modules:
        server.serve_waiting()
        importlib.import_module(module)
    # a garbage collection in a helper would copy all memory pages that are shared by now
    gc.collect()
    gc.freeze()
    while True:
        server.serve_waiting(None)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (BrokenPipeError, ConnectionResetError):  # the parent has ended
        os._exit(0)
