"""Fifteen attacks by a user's function, on a worker of root and on one of another user.

Each attack is a function that prints ``OPEN`` with the data that it gets. Without the sandbox, it
gets the data, which shows that the attack is real.
"""

import base64
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servicex_server.worker import sandbox
from servicex_server.worker.seccomp import (
    CLONE,
    CLONE3,
    REFUSED,
    SOCKET,
    SOCKETPAIR,
    seccomp_filter,
)
from tests.support import missing, sample

WORKER = Path(__file__).with_name("sandbox_worker.py")
SECRET = "the-secret-of-the-service"  # it is none

HEAD = """
import ctypes, glob, json, os, socket, stat, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)
SECRET, INPUT = {secret!r}, {input!r}
PRIVATE, DATA, SCRATCH, OTHER = {private!r}, {data!r}, {scratch!r}, {other!r}
WORKER, PORT, SOCKET = {worker}, {port}, {socket!r}
SIBLING = {sibling!r}

def attempt(what, act):
    try:
        got = act()
    except Exception as error:
        print("shut", what, type(error).__name__, str(error)[:80])
    else:
        print("OPEN" if got not in (None, False, "", b"", []) else "shut", what, repr(got)[:80])

def read(path):
    with open(path, "rb") as file:
        return file.read(200)

def call(number, *arguments):
    given = libc.syscall(number, *arguments)
    if given < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "number " + str(given)

def report():
    for fd in range(3, 256):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass
"""

FILES = """
for path in (PRIVATE, DATA, DATA + "/service.key", "/etc/shadow", "/etc/passwd"):
    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else read(path))
attempt("home", lambda: [p for p in glob.glob("/root/*") + glob.glob("/home/*")])
attempt("beside the input", lambda: read(SIBLING))
attempt("by a link", lambda: os.symlink(PRIVATE, "link") or read("link"))
attempt("by /proc", lambda: read("/proc/1/root" + PRIVATE))
attempt("by ..", lambda: read("../" * 30 + PRIVATE))
"""

PROC = """
attempt("the worker", lambda: read(f"/proc/{WORKER}/cmdline"))
attempt("its memory", lambda: open(f"/proc/{WORKER}/maps").read())
mine = {"1", str(os.getpid())}
attempt("others", lambda: [p for p in os.listdir("/proc") if p.isdigit() and p not in mine])
for name in ("kcore", "kallsyms", "keys", "cmdline", "timer_list", "iomem", "slabinfo", "kmsg"):
    attempt(name, lambda: os.path.exists(f"/proc/{name}") and read(f"/proc/{name}"))
attempt("limits", lambda: os.listdir("/proc/sys"))
"""

ENVIRONMENT = """
attempt("own", lambda: [name for name in os.environ if SECRET in os.environ[name]])
def holds(path):
    try:
        with open(path, "rb") as file:
            return SECRET.encode() in file.read()
    except OSError:
        return False
attempt("of all", lambda: [path for path in glob.glob("/proc/[0-9]*/environ") if holds(path)])
attempt("of the worker", lambda: holds(f"/proc/{WORKER}/environ"))
"""

NETWORK = """
attempt("interfaces", lambda: [n for _, n in socket.if_nameindex() if n != "lo"])
attempt("routes", lambda: open("/proc/net/route").read().split("\\n", 1)[1])
attempt("listens", lambda: len(open("/proc/net/tcp").read().splitlines()) > 1)
attempt("names", lambda: socket.getaddrinfo("localhost.localdomain.", 80, family=socket.AF_INET6))
for address in ("127.0.0.1", "localhost"):
    attempt(address, lambda: socket.create_connection((address, PORT), 2).getpeername())
"""

SCHEDULER = """
def asks(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(2)
        made.connect(address)
        return "connected"
attempt("port", lambda: asks(socket.AF_INET, ("127.0.0.1", PORT)))
attempt("abstract", lambda: asks(socket.AF_UNIX, "\\0" + SOCKET))
attempt("path", lambda: asks(socket.AF_UNIX, SOCKET))
"""

SCRATCH = """
attempt("list", lambda: [n for n in os.listdir(SCRATCH) if "other" in n])
attempt("read", lambda: read(OTHER))
above = os.path.dirname(os.path.dirname(os.getcwd()))
attempt("above", lambda: [n for n in os.listdir(above) if not n.startswith("program-")])
attempt("temporary", lambda: [n for n in os.listdir("/tmp") if "other" in n])
"""

KERNEL = """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger",
             "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/proc/acpi/wakeup",
             "/proc/mtrr", "/dev/shm/../kmsg"):
    attempt(path, lambda: open(path, "r+").fileno())
buffer = ctypes.create_string_buffer(256)
for name, number, *arguments in (
    ("keyctl", 250, 0, -3, 1), ("add_key", 248, b"user", b"a", b"b", 1, -3),
    ("bpf", 321, 0, buffer, 72), ("perf", 298, buffer, 0, -1, -1, 0), ("ufd", 323, 1),
    ("io_uring", 425, 4, buffer), ("syslog", 103, 3, buffer, 200), ("memfd", 319, b"a", 0),
    ("shmget", 29, 0, 1 << 20, 0o1600), ("handle", 303, -100, b"/usr", buffer, buffer, 0),
):
    attempt(name, lambda: call(number, *arguments))
for family in (16, 17, 38, 40):
    attempt(f"family {family}", lambda: socket.socket(family, socket.SOCK_RAW).fileno())
"""

SIGNALS = """
attempt("worker", lambda: os.kill(WORKER, 0) or "reached")
attempt("parent", lambda: os.getppid() == WORKER)
attempt("group", lambda: os.killpg(os.getpgid(WORKER), 0) or "reached")
def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
attempt("all", lambda: [p for p in range(3, 4096) if p != os.getpid() and alive(p)])
"""

FORKS = """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import signal
            for n in (1, 2, 3, 13, 15):
                signal.signal(n, signal.SIG_IGN)
            while True:
                time.sleep(0.01)
        os._exit(0)
print("shut" if os.getpid() < 10 else "OPEN", "what is forked ends with a namespace")
"""

WRITES = """
package = os.path.dirname(os.path.abspath(sys.argv[0]))
for folder in ("/", "/tmp", "/usr", "/usr/lib", "/etc", "/root", "/var/tmp", "/dev", sys.prefix,
               os.path.dirname(sys.executable), package, DATA, SCRATCH, os.path.dirname(INPUT)):
    attempt(folder, lambda: open(folder + "/attack", "w").write("x"))
attempt("input", lambda: open(INPUT, "r+b").fileno())
attempt("its rights", lambda: os.chmod(INPUT, 0o777) or "changed")
attempt("its times", lambda: os.utime(INPUT, (1, 1)) or "changed")
attempt("its name", lambda: os.rename(INPUT, "mine") or "moved")
attempt("hard link", lambda: os.link(INPUT, "mine") or "linked")
"""

PTRACE = """
for number in (WORKER, os.getppid(), 1):
    attempt(f"attach {number}", lambda: call(101, 16, number, 0, 0))
    attempt(f"memory of {number}", lambda: open(f"/proc/{number}/mem", "r+b").fileno())
    local = (ctypes.c_void_p * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    attempt(f"read {number}", lambda: call(310, number, local, 1, local, 1, 0))
attempt("descriptors of the parent", lambda: os.listdir(f"/proc/{os.getppid()}/fd"))
attempt("a process's descriptor", lambda: call(438, os.pidfd_open(1), 0, 0))
"""

MOUNTS = """
os.mkdir("m")
me = os.path.abspath("m").encode()
for name, number, *arguments in (
    ("tmpfs", 165, b"x", me, b"tmpfs", 0, 0), ("bind", 165, b"/", me, b"", 4096, 0),
    ("umount", 166, b"/proc/sys", 2), ("remount", 165, b"", b"/usr", b"", 4096 | 32, 0),
    ("unshare", 272, 0x10020000), ("pivot", 155, me, me), ("chroot", 161, me),
    ("fsopen", 430, b"tmpfs", 0), ("open_tree", 428, -100, b"/", 1), ("setns", 308, 0, 0),
    ("clone", 56, 0x10000000 | 17, 0, 0, 0, 0),
    ("clone3", 435, ctypes.create_string_buffer(64), 64),
):
    attempt(name, lambda: call(number, *arguments))
attempt("unshare", lambda: subprocess.run(["unshare", "-Ur", "true"]).returncode == 0)
attempt("bwrap", lambda: subprocess.run(
    ["bwrap", "--ro-bind", "/", "/", "true"], capture_output=True).returncode == 0)
attempt("become root", lambda: os.setuid(0) or "root")
status = open("/proc/self/status").read()
attempt("capabilities", lambda: [l for l in status.splitlines()
                                 if l[:6] in ("CapEff", "CapPrm", "CapBnd") and int(l[8:], 16)])
"""

DEVICES = """
known = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
         "tty", "urandom", "zero"}
attempt("list", lambda: sorted(set(os.listdir("/dev")) - known))
attempt("terminal", lambda: open("/dev/tty").fileno())
for path in ("/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/vda", "/dev/core", "/dev/net/tun"):
    attempt(path, lambda: os.path.exists(path) and open(path).fileno())
attempt("make one", lambda: os.mknod("mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1)) or "made")
attempt("fill the memory", lambda: open("/dev/shm/x", "wb").write(bytes(80 << 20)))
"""

DESCRIPTORS = """
found = []
for fd in range(3, 4096):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    found.append((fd, stat.S_ISFIFO(mode), os.readlink(f"/proc/self/fd/{fd}")))
attempt("beside the report", lambda: [one for one in found if not one[1]] or found[1:])
attempt("standard input", lambda: os.read(0, 10))
attempt("of init", lambda: [n for n in os.listdir("/proc/1/fd")])
"""

LINKS = """
target = sys.argv[3] if len(sys.argv) > 3 else "x"
{how}
os.write(report(), b'{{"events": 1}}')
os._exit(0)
"""

SHUT = {
    "files of the service": FILES,
    "proc": PROC,
    "environment": ENVIRONMENT,
    "network": NETWORK,
    "scheduler port": SCHEDULER,
    "scratch of others": SCRATCH,
    "kernel interfaces": KERNEL,
    "signals to the worker": SIGNALS,
    "forks after the end": FORKS,
    "writing outside": WRITES,
    "ptrace": PTRACE,
    "mounts": MOUNTS,
    "devices": DEVICES,
    "descriptors": DESCRIPTORS,
}

TARGETS = {
    "a symlink to a file of the worker": "os.symlink(PRIVATE, target)",
    "a symlink to the input": "os.symlink(INPUT, target)",
    "a symlink to nothing": "os.symlink('/nowhere', target)",
    "a folder": "os.mkdir(target)",
    "a pipe that nobody writes to": "os.mkfifo(target)",
    "a socket": "socket.socket(socket.AF_UNIX).bind(target)",
    "a file with two names": "open('a', 'w').close(); os.link('a', target)",
    "nothing": "pass",
    "a symlink, and no right to look": (
        "os.symlink(PRIVATE, target); os.chmod(os.path.dirname(target), 0)"
    ),
}

ROOT, UNPRIVILEGED = "root", "unprivileged"

by_one_worker = pytest.mark.parametrize(
    "attacked", [UNPRIVILEGED, pytest.param(ROOT, marks=pytest.mark.long)], indirect=True
)
"""For tests that do not depend on the worker; `test_sandbox_blocks_an_attack` runs on both."""


@dataclass
class Attacked:
    """A worker, and the targets of an attacker."""

    process: subprocess.Popen[str]
    places: dict[str, Any]

    def run(self, body: str, *, sandboxed: bool = True) -> dict[str, str]:
        """Run a function with this body, and return what became of it."""
        source = HEAD.format(**self.places, worker=self.process.pid)
        source += f"\ndef run_query(path):\n{textwrap.indent(body, '    ')}\n    return [1]\n"
        return self.ask(source, sandboxed=sandboxed)

    def ask(self, source: str, *, sandboxed: bool = True, seconds: float = 30) -> dict[str, str]:
        """Run a function, given as source, for so many seconds at most."""
        question = {
            "source": source,
            "input": self.places["input"],
            "sandboxed": "yes" if sandboxed else "no",
            "seconds": str(seconds),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        found: dict[str, str] = json.loads(self.process.stdout.readline())
        return found


def as_other_user(folder: Path, command: list[str]) -> list[str]:
    """Return the command that runs another one as a user without any rights.

    Python may lie in a home folder that only root can enter: then that folder is another one, with
    nothing but Python in it, for this command alone.
    """
    user = pwd.getpwnam("nobody").pw_uid - 1
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    become += ["--bounding-set=-all", *command]
    base = Path(sys.base_prefix).resolve()
    closed = next((p for p in reversed(base.parents) if not p.stat().st_mode & 0o001), None)
    if closed is None:
        return become
    script = (
        'mount --make-rprivate / && mkdir "$1/python" && mount --bind "$2" "$1/python" && '
        'mount -t tmpfs -o mode=755 none "$3" && mkdir -p "$2" && mount --move "$1/python" "$2" && '
        'shift 3 && exec "$@"'
    )
    prepare = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), str(base), str(closed)]
    return [*prepare, *become]


@pytest.fixture(scope="module", params=[ROOT, UNPRIVILEGED])
def attacked(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """Give a worker of root's, and one of a user's; each with services that it can reach."""
    if problem := sandbox.sandbox_problem():
        missing(problem)
    if request.param == ROOT and os.getuid() != 0:
        pytest.skip("a worker of root's needs root")
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="attacked-")))
        folder.chmod(0o755)
        data, scratch, files = folder / "data", folder / "scratch", folder / "files"
        for made in (data, scratch, files, scratch / "other-task"):
            made.mkdir(mode=0o700)
        private, other = data / "service.key", scratch / "other-task" / "result.root"
        sibling = files / "private.root"
        for secret in (private, other, sibling):
            secret.write_text(SECRET)
            secret.chmod(0o600)
        source = Path(shutil.copy(sample("uproot-Zmumu.root"), files / "in.root"))
        door = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        doors = [door]
        for name in (str(folder / "socket"), "\0" + str(folder / "socket")):
            doors.append(closing.enter_context(socket.socket(socket.AF_UNIX)))
            doors[-1].bind(name)
            doors[-1].listen()
        places = {
            "secret": SECRET,
            "input": str(source),
            "private": str(private),
            "data": str(data),
            "scratch": str(scratch),
            "other": str(other),
            "sibling": str(sibling),
            "port": door.getsockname()[1],
            "socket": str(folder / "socket"),
        }
        command = [sys.executable, str(WORKER)]
        if request.param == UNPRIVILEGED and os.getuid() == 0:
            command = as_other_user(folder, command)
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG")}
        environment = {"SECRET_FILE": str(private), "SECRET": SECRET, "TMPDIR": str(scratch)}
        process = closing.enter_context(
            subprocess.Popen(
                command,
                env=kept | environment | {"HOME": str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        yield Attacked(process, places)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("name", SHUT)
def test_sandbox_blocks_an_attack(attacked: Attacked, name: str) -> None:
    """The attack gets nothing, the function ends normally, and nothing of it is left."""
    found = attacked.run(SHUT[name])
    assert (found["kind"], found["message"]) == ("", ""), found
    lines = found["log"].splitlines()
    assert "OPEN" not in found["log"], [line for line in lines if "OPEN" in line]
    assert any(line.startswith("shut") for line in lines)
    assert SECRET not in found["log"]
    assert found["left"] == "[]"
    assert found["files"] == "out.parquet"


@by_one_worker
@pytest.mark.parametrize(
    "name",
    [
        "files of the service",
        "proc",
        "environment",
        "scheduler port",
        "scratch of others",
        "signals to the worker",
    ],
)
def test_an_attack_works_without_the_sandbox(attacked: Attacked, name: str) -> None:
    """So the sandbox blocks real attacks. The attacks of this test change nothing."""
    found = attacked.run(SHUT[name], sandboxed=False)
    assert "OPEN" in found["log"], found


@by_one_worker
@pytest.mark.parametrize("how", TARGETS.values(), ids=TARGETS)
def test_result_must_be_a_regular_file(attacked: Attacked, how: str) -> None:
    """The worker does not follow a link, or wait for a pipe, that the function leaves."""
    found = attacked.run(LINKS.format(how=how))
    assert found["kind"] == "FunctionError", found
    assert "not a regular file" in found["message"] or "left no result" in found["message"], found
    assert found["files"] == ""


def test_a_link_in_the_scratch_folder_is_not_followed(attacked: Attacked) -> None:
    """No link of the function leads the clean-up to files of the worker."""
    body = (
        "for name, target in (('a', DATA), ('b', PRIVATE), ('c', SCRATCH)):\n"
        "    os.symlink(target, name)\n"
        "    os.symlink(target, '../' + name)"
    )
    assert attacked.run(body)["kind"] == ""
    assert Path(attacked.places["private"]).read_text() == SECRET
    assert Path(attacked.places["other"]).read_text() == SECRET


@by_one_worker
@pytest.mark.parametrize(
    "report",
    [
        '{"events": 1e999}',
        '{"events": 1000000000000000000000000000000}',
        '{"events": -1}',
        '{"events": true}',
        '{"events": "7"}',
        '{"events": [7]}',
        '{"events": 7',
        "[]",
        "9" * 5000,
        "[" * 100_000,
        '{"error": 7}',
        '{"error": {"message": "\\ud800", "kind": "Function"}}',
        '{"error": {"message": "\\u0000\\u001b[31m", "kind": [1]}}',
        json.dumps({"error": {"message": "x" * 200_000, "traceback": "y" * 200_000}}),
        'File "' * 40_000,
        "\x00\xff" * 1000,
    ],
)
def test_a_forged_report_is_an_error_of_the_function(attacked: Attacked, report: str) -> None:
    """The worker limits the length of a report, and can store its text."""
    packed = base64.b64encode(zlib.compress(report.encode("latin-1", "replace"))).decode()
    source = HEAD.format(**attacked.places, worker=0)
    source += "\ndef run_query(path):\n    import base64, zlib\n"
    source += f"    os.write(report(), zlib.decompress(base64.b64decode({packed!r})))\n"
    source += "    os._exit(0)\n"
    found = attacked.ask(source)
    assert found["kind"] == "FunctionError", found
    assert len(found["message"]) < 40_000
    for text in (found["message"], found["log"]):
        text.encode()
        assert "\0" not in text
        assert "\x1b" not in text


@by_one_worker
def test_endless_report_ends_at_the_time_limit(attacked: Attacked) -> None:
    """The function writes without end, at once or when the worker asks where it is."""
    source = HEAD.format(**attacked.places, worker=0) + textwrap.dedent("""
        import signal
        def run_query(path):
            fd = report()
            def tell(*_):
                while True:
                    os.write(fd, b'File "' * 1000)
            signal.signal(signal.SIGUSR1, tell)
            tell() if {at_once} else time.sleep(99)
        """)
    for at_once in (True, False):
        found = attacked.ask(source.replace("{at_once}", str(at_once)), seconds=5)
        assert found["kind"] == "OutOfTimeError", found


def test_deeply_nested_folders_are_removed(attacked: Attacked) -> None:
    """A function may make folders deeper than any path. The worker counts and removes them."""
    found = attacked.run(
        "for _ in range(3000):\n    os.mkdir('a' * 50)\n    os.chdir('a' * 50)\nos.chmod('.', 0)"
    )
    assert found["kind"] in ("", "DiskFullError"), found
    assert found["files"] in ("", "out.parquet")


def test_seccomp_filter_has_the_call_numbers_of_the_kernel() -> None:
    """The numbers equal those of the headers, for both architectures."""
    headers = [
        next(Path("/usr/include").glob("*/asm/unistd_64.h"), None),
        Path("/usr/include/asm-generic/unistd.h"),
    ]
    for column, header in enumerate(headers):
        if header is None or not header.exists():
            missing("there are no headers of the kernel: apt-get install linux-libc-dev")
        words = header.read_text().split()
        calls = REFUSED | {"clone": CLONE, "clone3": CLONE3}
        for name, numbers in (calls | {"socket": SOCKET, "socketpair": SOCKETPAIR}).items():
            number = words[words.index(f"__NR_{name}") + 1]
            assert int(number) == numbers[column], name


def test_other_architectures_have_no_seccomp_filter() -> None:
    """The service does not know their call numbers. The namespaces stay."""
    assert seccomp_filter("riscv64") == b""
    assert len(seccomp_filter("x86_64")) == len(seccomp_filter("aarch64")) > 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "bubblewrap does not work here"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "the user is another one"),
        (None, "there is no bubblewrap"),
    ],
    ids=["fails", "is not allowed", "does nothing", "is missing"],
)
def test_ineffective_sandbox_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    """The service tries it. A program that only looks like bubblewrap does not pass."""
    if script is not None:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if script is None else f"{tmp_path}:/usr/bin:/bin")
    assert reason in sandbox.sandbox_problem()


def test_function_imports_modules_of_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A folder for temporary files, and a link, are visible. A home folder is not."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "mine.py").write_text("VALUE = 7\n")
    link = tmp_path / "link"
    link.symlink_to(modules)
    shown = sandbox.readable((str(link), "relative", "/", str(Path.home())))
    assert link in shown
    assert not any(Path.home().is_relative_to(path) for path in shown)
    monkeypatch.setenv("PYTHONPATH", f"{link}:{Path.home()}")
    run: Callable[..., Any] = request.getfixturevalue("in_this_process")
    assert run("import mine\ndef run_query(f): return [mine.VALUE] * mine.VALUE").events == 7


@pytest.fixture
def in_this_process(tmp_path: Path) -> Callable[[str], Any]:
    """Give a function that runs a function in the sandbox, from this process."""
    from base64 import b64encode

    from servicex_server.languages.python_function import PythonFunction
    from servicex_server.model import Limits, ResultFormat
    from servicex_server.worker.program import run_program

    def run(source: str) -> Any:
        text = b64encode(source.encode()).decode()
        program = PythonFunction().compile(text, ResultFormat.PARQUET)
        target = tmp_path / "out"
        form = ResultFormat.PARQUET
        return run_program(program, "/x", target, form, Limits(), tmp_path, sandboxed=True)

    return run
