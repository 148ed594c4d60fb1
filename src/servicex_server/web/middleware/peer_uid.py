"""The account behind a loopback connection, as the Linux kernel knows it.

The kernel answers ``sock_diag`` questions (sock_diag(7), linux/inet_diag.h) about one connection
from its hash table, in microseconds however many connections there are, and for any process. The
answer names the user who created the client's socket.
"""

import errno
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")
"""``nlmsghdr``: length, type, flags, sequence number, port id."""

_QUESTION = struct.Struct("=BBBxI2s2s16s16sI8s")
"""``inet_diag_req_v2``: family, protocol, extensions, states, and the addresses of the socket."""

_ANSWER = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
"""``inet_diag_msg``: family, state, …, addresses, …, user id, inode."""

_ALL_STATES = _ALL_USERS = 0xFFFFFFFF
_OWNED_STATES = frozenset({1, 4, 5, 8})
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT (linux/tcp_states.h)."""

Address = tuple[str, int]
"""A host, as a number, and a port."""


class PeerUids:
    """Finds the user id of the other end of TCP connections within this machine.

    Raises
    ------
    OSError
        The system has no ``sock_diag``: it is not Linux, or a sandbox forbids it.
    """

    def __init__(self) -> None:
        if not hasattr(socket, "AF_NETLINK"):
            raise OSError(errno.EOPNOTSUPP, "only Linux says whose a connection is")
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._socket.settimeout(0)  # the kernel answers before `send` returns
        self._number = 0
        self._nobody = _overflow_uid()

    def close(self) -> None:
        """Close the socket to the kernel."""
        self._socket.close()

    def find(self, client: Address, server: Address) -> int | None:
        """Return the user id of the process that made the client's end of a connection.

        Parameters
        ----------
        client, server
            Both ends, as the server sees them.

        Returns
        -------
        The user id. None if the connection does not come from this machine, if its client has
        closed it (the kernel then always names root), or if the id does not belong to a user of
        this process's user namespace.
        """
        question = _question(client, server)
        if question is None:
            return None
        self._number = (self._number + 1) & 0xFFFFFFFF
        size = _HEADER.size + len(question)
        header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._number, 0)
        self._socket.send(header + question)
        answer = self._socket.recv(4096)
        _, kind, _, number, _ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR or number != self._number:
            return None
        found = _ANSWER.unpack_from(answer, _HEADER.size)
        state, ports, uid, inode = found[1], found[4:6], found[-2], found[-1]
        asked = _QUESTION.unpack(question)[4:6]
        # without an inode no process has the socket any more, and its user id is lost
        if state not in _OWNED_STATES or ports != asked or not inode:
            return None
        return None if uid == self._nobody else uid


def peer_uids() -> PeerUids | None:
    """Return a `PeerUids` that was tested on a connection of this process; None if it fails."""
    with suppress(OSError):
        finder = PeerUids()
        try:
            if _finds_own_uid(finder):
                return finder
        except OSError:
            finder.close()
            raise
        finder.close()
    return None


def _finds_own_uid(finder: PeerUids) -> bool:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=5) as client,
    ):
        return finder.find(client.getsockname(), listener.getsockname()) == os.getuid()


def _question(client: Address, server: Address) -> bytes | None:
    try:
        ends = [ipaddress.ip_address(host.partition("%")[0]) for host, _ in (client, server)]
    except ValueError:
        return None
    if ends[0].version != ends[1].version:
        return None
    family = socket.AF_INET if ends[0].version == 4 else socket.AF_INET6  # noqa: PLR2004
    source, target = (end.packed.ljust(16, b"\0") for end in ends)
    ports = [port.to_bytes(2, "big") for _, port in (client, server)]
    return _QUESTION.pack(
        family, socket.IPPROTO_TCP, 0, _ALL_STATES, *ports, source, target, 0, _NO_COOKIE
    )


def _overflow_uid() -> int | None:
    """Return the id that stands for all users outside of this user namespace.

    None in the initial namespace, which has all users.
    """
    with suppress(OSError, ValueError):
        _, _, count = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        if int(count) == _ALL_USERS:
            return None
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    return 65534
