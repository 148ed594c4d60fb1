"""A kernel filter that blocks system calls of programs in the sandbox.

Namespaces separate a program from the machine. The filter blocks what they leave open: calls that
reach parts of the kernel without a namespace (keys, BPF, performance counters, ``AF_VSOCK``), calls
that make new namespaces, and memory that no process limit counts (``memfd_create``).

The program is classic BPF (``linux/filter.h``, ``seccomp(2)``), which needs no library.
"""

import errno
import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions: load a word, jump if equal, if at least, if any bit is set; return."""

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in ``struct seccomp_data``."""

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000
"""Bit in the numbers of the x32 table of calls on x86_64, which no program here uses."""

NEW_NAMESPACES = 0x7E020000
"""The flags of ``clone`` that make namespaces (``linux/sched.h``)."""

FAMILIES = (1, 2, 10)
"""Allowed socket families: Unix, IPv4, IPv6. The namespace has no network for them."""

REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
"""Calls that fail with ``EPERM``, and their numbers on x86_64 and aarch64."""

CLONE3 = (435, 435)
"""A filter cannot see the flags of ``clone3``; without it the C library uses ``clone``."""

CLONE, SOCKET, SOCKETPAIR = (56, 220), (41, 198), (53, 199)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By processor architecture: the column of call numbers above, and its ``AUDIT_ARCH_*``."""


def seccomp_filter(machine: str = "") -> bytes:
    """Return the filter as the kernel reads it; empty for unsupported processors.

    Parameters
    ----------
    machine
        Processor architecture; the default is that of this machine.
    """
    if (machine or platform.machine()) not in _MACHINES:
        return b""
    column, architecture = _MACHINES[machine or platform.machine()]
    refuse = _ERRNO | errno.EPERM
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, skip=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        *_return_if(_AT_LEAST, _X32, refuse),
        *_return_if(_EQUAL, CLONE3[column], _ERRNO | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        program += _return_if(_EQUAL, numbers[column], refuse)
    program += _check_first_argument(CLONE[column], _return_if(_ANY_BIT, NEW_NAMESPACES, refuse))
    for numbers in (SOCKET, SOCKETPAIR):
        families = [
            _step(_EQUAL, family, skip=len(FAMILIES) - n) for n, family in enumerate(FAMILIES)
        ]
        families.append(_step(_RETURN, _ERRNO | errno.EAFNOSUPPORT))
        program += _check_first_argument(numbers[column], families)
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def _step(code: int, value: int, *, skip: int = 0, otherwise: int = 0) -> bytes:
    """Return one instruction; a jump skips ``skip`` of the next if it holds, else ``otherwise``."""
    return struct.pack("=HBBI", code, skip, otherwise, value)


def _return_if(test: int, value: int, answer: int) -> list[bytes]:
    """Return instructions that end the filter with an answer if a test holds."""
    return [_step(test, value, otherwise=1), _step(_RETURN, answer)]


def _check_first_argument(number: int, steps: list[bytes]) -> list[bytes]:
    """Return instructions that run steps on the first argument of one call, then allow the call."""
    inner = [_step(_LOAD, _FIRST_ARGUMENT), *steps, _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, otherwise=len(inner)), *inner]
