"""Each fault of a replica: its class, its duration, and that another replica makes up for it."""

import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
import uproot

from servicex_server.model import Credential, Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration.grid import (
    Authority,
    Cache,
    Issuer,
    TokenXRootD,
    authority,
    cache,
    gsi_xrootd,
    private,
    token_xrootd,
)
from tests.integration.servers import Http, Manner, XRootD, free_port, http, put, xrootd

Door = Literal[
    "root", "http", "https", "gsi", "token", "token by https", "tls", "https stranger", "cache"
]

NOWHERE = "no-such-host.invalid"
GOOD = "good.root"
EVENTS, CLUSTERS = 20_000, 4
LIMITS = Limits(seconds=60, opening=3, silence=3, chunk=256 << 10)
"""Deadlines that a dead server meets soon, and about one cluster of the file at a time."""

SECONDS = 15.0
"""Limit for a replica that cannot be read, on a busy machine; XRootD's own deadlines are longer
than a minute."""

DEAD_SECONDS = 30.0
"""Limit for a silent replica: XrdCl looks at its deadlines once a second, and waits for the server
once more when it closes the file."""


# --- what is served ------------------------------------------------------------------------


@functools.cache
def content(name: str) -> bytes:
    """Return a file of several clusters, or a damaged one."""
    if name == GOOD:
        numbers = np.random.default_rng(7)
        with TemporaryDirectory() as folder:
            path = Path(folder) / GOOD
            with uproot.recreate(path) as file:
                tree = file.mktree("events", {"x": "f8", "y": "f8"})
                for _ in range(CLUSTERS):
                    tree.extend({one: numbers.random(EVENTS) for one in "xy"})
            return path.read_bytes()
    whole = content(GOOD)
    return {
        "truncated.root": whole[: len(whole) // 2],
        "cut_short.root": whole[: len(whole) * 3 // 4],
        "empty.root": b"",
        "no_root.root": b"x" * 999,
        "hollow.root": b"root" + bytes(400),
        "timeout eof [3011].root": b"x" * 999,
        "corrupt.root": corrupt(whole),
        "denied.root": whole,
    }[name]


def corrupt(whole: bytes) -> bytes:
    """Return a copy of a file in which one of the last baskets cannot be decompressed."""
    damaged = bytearray(whole)
    with TemporaryDirectory() as folder:
        path = put(Path(folder), GOOD, whole)
        with uproot.open(path) as file:
            branch = file["events"]["y"]
            start = int(branch.member("fBasketSeek")[CLUSTERS - 2])
            size = int(branch.member("fBasketBytes")[CLUSTERS - 2])
    for place in range(start + 100, start + size):
        damaged[place] ^= 0x5A
    return bytes(damaged)


FILES = (
    GOOD,
    "truncated.root",
    "cut_short.root",
    "empty.root",
    "no_root.root",
    "hollow.root",
    "timeout eof [3011].root",
    "corrupt.root",
)


def work(spec: TaskSpec, stopped: int) -> Outcome:
    """Do the work on a file; stop a process as soon as the worker has read the first part."""
    steps = itertools.count()

    def step() -> None:
        if stopped and next(steps):
            os.kill(stopped, signal.SIGSTOP)

    return transform(spec, step)


@dataclass(frozen=True)
class Bad:
    """An unreadable replica, the process to stop on the way, and the credentials to show."""

    url: str
    stopped: int = 0
    credentials: tuple[Credential, ...] = ()


@dataclass
class World:
    """Servers with the file, and a process that reads from them with short deadlines.

    XrdCl reads its deadlines and its trusted authorities once in the life of a process.
    """

    folder: Path
    known: Authority
    root: XRootD
    other: XRootD
    gsi: XRootD
    token: TokenXRootD
    tls: XRootD
    cache: Cache
    stranger: Authority
    issuer: Issuer
    reader: ProcessPoolExecutor
    expected: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Read the file from the disk, as the result that every read must have."""
        clean = self.run(str(put(self.folder, GOOD, content(GOOD))))
        assert clean.error is None, clean.error
        self.expected = self.result.read_bytes()

    @property
    def result(self) -> Path:
        """Where results go."""
        return self.folder / "result"

    def run(
        self,
        *urls: str,
        stopped: int = 0,
        credentials: tuple[Credential, ...] = (),
        whole: bool = False,
    ) -> Outcome:
        """Do the work on the file, whose replicas are at some URLs."""
        self.result.unlink(missing_ok=True)
        spec = TaskSpec(
            request_id="faults",
            file_id=1,
            attempt=1,
            replicas=tuple(map(Replica, urls)),
            language="uproot-raw",
            selection=json.dumps([{"treename": "events"}]),
            format=ResultFormat.PARQUET,
            object_name="result",
            upload_url=self.result.as_uri(),
            limits=LIMITS,
            credentials=credentials,
            whole=whole,
        )
        return self.reader.submit(work, spec, stopped).result(120)

    def came_out(self, outcome: Outcome) -> None:
        """Compare an outcome and its result with the clean ones, bit for bit."""
        assert outcome.error is None, outcome.error
        assert self.result.read_bytes() == self.expected
        assert (outcome.events_read, outcome.events_written) == (CLUSTERS * EVENTS,) * 2

    @contextmanager
    def bad(self, door: Door, what: str) -> Iterator[Bad]:
        """Give a bad replica: by the name of a file, or in brackets by the fault of the server."""
        name, word = (GOOD, what.strip("()")) if what.startswith("(") else (what, "")
        with ExitStack() as having:
            if door == "cache":
                yield having.enter_context(self._through_the_cache(what))
            elif word in ("closed", "unknown"):
                host = f"127.0.0.1:{free_port()}" if word == "closed" else NOWHERE
                yield Bad(f"{door}://{host}//{name}")
            elif door in ("token", "token by https") and word == "frozen":
                having.enter_context(self.token.frozen())
                yield replace(self._refused(door, name, word), credentials=self.shown("token"))
            elif door in ("http", "https", "https stranger"):
                yield Bad(having.enter_context(self._by_http(door, name, word)).url(name))
            elif word in ("frozen", "freezes"):
                own = having.enter_context(xrootd())
                put(own.folder, name, content(name))
                if word == "frozen":
                    having.enter_context(own.frozen())
                yield Bad(own.url(name), stopped=own.process.pid)
            elif door == "root":
                yield Bad(self.root.url(name))
            else:
                yield self._refused(door, name, word)

    @contextmanager
    def _through_the_cache(self, what: str) -> Iterator[Bad]:
        with self.bad("root", what) as bad:
            yield replace(bad, url=self.cache.of(bad.url))

    @contextmanager
    def _by_http(self, door: Door, name: str, what: str) -> Iterator[Http]:
        certificate = {"https": self.known.host, "https stranger": self.stranger.host}.get(door)
        with http(certificate=certificate) as own:
            if name in FILES:
                put(own.folder, name, content(name))
            word, _, well = what.partition(" after ")
            own.well = int(well or 0)
            if word.isdigit():
                own.status = int(word)
            elif word in _MANNERS:
                own.manner = _MANNERS[word]
                own.elsewhere = own.url(name)
            yield own

    def _refused(self, door: Door, name: str, word: str) -> Bad:
        url = {
            "gsi": self.gsi.url(name),
            "token": self.token.url(name),
            "token by https": self.token.https(name),
            "tls": self.tls.url(name),
        }[door]
        if word == "not of the VO":
            url = self.gsi.url(f"vo/{name}")
        return Bad(url, credentials=self.shown(word))

    def shown(self, word: str) -> tuple[Credential, ...]:
        """Return the credentials to show to the servers, or nothing for an unknown word."""
        proxy: Path | None = None
        token = ""
        match word:
            case "proxy" | "not of the VO":
                proxy = self.known.proxy()
            case "expired proxy":
                proxy = self.known.proxy("expired", seconds=-60)
            case "a stranger's proxy":
                proxy = self.stranger.proxy()
            case "token":
                token = self.issuer.token()
            case "expired token":
                token = self.issuer.token(seconds=-60)
            case "a stranger's token":
                token = Issuer().token()
            case "token for another path":
                token = self.issuer.token("storage.read:/other")
            case _:
                return ()
        path = None
        if token:
            path = self.folder / re.sub(r"\W", "-", word)
            path.unlink(missing_ok=True)
            private(path, token.encode())
        hosts = ("127.0.0.1", f"127.0.0.1:{self.token.http_port}")
        return (Credential(hosts, proxy=proxy, token=path),)


_MANNERS: dict[str, Manner] = {
    "breaks": "breaks",
    "whole": "whole",
    "silent": "silent",
    "redirects": "redirects",
}


def begin(environment: dict[str, str]) -> None:
    """Trust only the authorities that the environment names, and not those of the machine."""
    for name in list(os.environ):
        if name.startswith(("XRD_", "X509_", "BEARER_", "SSL_CERT_")):
            del os.environ[name]
    os.environ.update(environment)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Give the servers and the reader."""
    with ExitStack() as running:
        known = running.enter_context(authority())
        stranger = running.enter_context(authority("a stranger"))
        issuer = Issuer()
        root, other = (running.enter_context(xrootd(f"127.0.0.{n}")) for n in (1, 2))
        gsi = running.enter_context(gsi_xrootd(known))
        token = running.enter_context(token_xrootd(known, issuer))
        tls = running.enter_context(token_xrootd(stranger, issuer))
        near = running.enter_context(cache())
        for door in (root, other, gsi, token, tls):
            put(door.folder, GOOD, content(GOOD))
        put(gsi.folder / "vo", GOOD, content(GOOD))
        for name in FILES:
            put(root.folder, name, content(name))
        put(root.folder, "denied.root", content(GOOD)).chmod(0)
        (root.folder / "folder.root").mkdir()
        trusted = {
            "X509_CERT_DIR": str(known.certificates),
            "SSL_CERT_FILE": str(known.bundle),
        }
        reader = running.enter_context(
            ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=begin,
                initargs=(trusted,),
            )
        )
        folder = tmp_path_factory.mktemp("faults")
        yield World(folder, known, root, other, gsi, token, tls, near, stranger, issuer, reader)


# --- the table -----------------------------------------------------------------------------

# which server, what is wrong, its class, words of its message, seconds
TABLE: list[tuple[Door, str, str, str, float]] = [
    ("root", "missing.root", "Missing", "does not exist", SECONDS),
    ("root", "folder.root", "Missing", "does not exist", SECONDS),
    ("root", "(closed)", "Unreachable", "cannot be reached: Connection error", SECONDS),
    ("root", "(unknown)", "Unreachable", "cannot be reached: Invalid address", SECONDS),
    ("root", "(frozen)", "Slow", "did not answer in time", DEAD_SECONDS),
    ("root", "(freezes)", "Slow", "did not answer in time", DEAD_SECONDS),
    ("root", "empty.root", "Truncated", "ends before", SECONDS),
    ("root", "truncated.root", "Truncated", "ends before", SECONDS),
    ("root", "cut_short.root", "Truncated", "ends before", SECONDS),
    ("root", "corrupt.root", "Corrupt", "branch y of .* is corrupt", SECONDS),
    ("root", "no_root.root", "Corrupt", "not a ROOT file", SECONDS),
    ("root", "hollow.root", "Corrupt", "not a ROOT file", SECONDS),
    ("root", "timeout eof [3011].root", "Corrupt", "not a ROOT file", SECONDS),
    ("root", "denied.root", "Denied", "may not be read: .*permission denied", SECONDS),
    ("cache", "missing.root", "Missing", "does not exist", SECONDS),
    # it tries again, and answers before or after the deadline
    ("cache", "(closed)", "Slow|Unreachable", "did not answer|connection refused", DEAD_SECONDS),
    ("cache", "(frozen)", "Slow", "did not answer in time", DEAD_SECONDS),
    # a cache that is asked for it opens the file of the question before
    ("cache", "(unknown)", "Unreachable", "cannot be resolved", SECONDS),
    ("cache", "empty.root", "Truncated", "ends before", SECONDS),
    ("cache", "truncated.root", "Truncated", "ends before", SECONDS),
    ("cache", "corrupt.root", "Corrupt", "branch y of .* is corrupt", SECONDS),
    ("cache", "no_root.root", "Corrupt", "not a ROOT file", SECONDS),
    ("cache", "denied.root", "Denied", "may not be read: .*permission denied", SECONDS),
    ("http", "missing.root", "Missing", "does not exist", SECONDS),
    ("http", "(closed)", "Unreachable", "cannot be reached: .*refused", SECONDS),
    ("http", "(unknown)", "Unreachable", "cannot be reached: .*not known", SECONDS),
    ("http", "(silent)", "Slow", "did not answer in time", DEAD_SECONDS),
    ("http", "(silent after 5)", "Slow", "did not answer in time", DEAD_SECONDS),
    ("http", "empty.root", "Truncated", "ends before", SECONDS),
    ("http", "truncated.root", "Truncated", "ends before", SECONDS),
    ("http", "cut_short.root", "Truncated", "ends before", SECONDS),
    ("http", "corrupt.root", "Corrupt", "branch y of .* is corrupt", SECONDS),
    ("http", "no_root.root", "Corrupt", "not a ROOT file", SECONDS),
    ("http", "timeout eof [3011].root", "Corrupt", "not a ROOT file", SECONDS),
    ("http", "(401)", "Denied", "may not be read: .*401", SECONDS),
    ("http", "(403)", "Denied", "may not be read: .*403", SECONDS),
    ("http", "(410)", "Missing", "does not exist", SECONDS),
    ("http", "(429)", "Unreachable", "cannot be reached: .*429", SECONDS),
    ("http", "(500)", "Unreachable", "cannot be reached: .*500", SECONDS),
    ("http", "(500 after 5)", "Unreachable", "cannot be reached: .*500", SECONDS),
    ("http", "(503)", "Unreachable", "cannot be reached: .*503", SECONDS),
    ("http", "(504)", "Slow", "did not answer in time: .*504", SECONDS),
    ("http", "(breaks)", "Unreachable", "cannot be reached: .*closed connection", SECONDS),
    ("http", "(redirects)", "Unreachable", "redirects more than 20 times", SECONDS),
    ("http", "(whole)", "Unreachable", "does not send parts of files.*root://", SECONDS),
    ("https", "missing.root", "Missing", "does not exist", SECONDS),
    ("https", "(silent)", "Slow", "did not answer in time", DEAD_SECONDS),
    ("https stranger", "(unknown CA)", "Unreachable", "CERTIFICATE_VERIFY_FAILED", SECONDS),
    ("tls", "(unknown CA)", "Unreachable", "TLS error", SECONDS),
    ("gsi", "(no proxy)", "Denied", "Auth failed.*has no entry for this host and port", SECONDS),
    ("gsi", "(expired proxy)", "Expired", "the proxy .* expired at", SECONDS),
    ("gsi", "(a stranger's proxy)", "Denied", "Auth failed.*it was shown", SECONDS),
    ("gsi", "(not of the VO)", "Denied", "permission denied.*it was shown", SECONDS),
    ("token", "(no token)", "Denied", "Auth failed.*has no entry for this host and port", SECONDS),
    ("token", "(expired token)", "Expired", "the token .* expired at", SECONDS),
    ("token", "(a stranger's token)", "Denied", "it was shown", SECONDS),
    ("token", "(token for another path)", "Denied", "permission denied.*it was shown", SECONDS),
    ("token", "(frozen)", "Slow", "did not answer in time", DEAD_SECONDS),
    # it takes the connection, and says nothing of who it is
    ("token by https", "(frozen)", "Unreachable", "handshake .*timed out", DEAD_SECONDS),
    ("token by https", "(no token)", "Denied", "403.*has no entry for this host and port", SECONDS),
    ("token by https", "(expired token)", "Expired", "the token .* expired at", SECONDS),
    ("token by https", "(a stranger's token)", "Denied", "403.*it was shown", SECONDS),
    ("token by https", "(token for another path)", "Denied", "403.*it was shown", SECONDS),
]


@pytest.mark.parametrize(
    "alone",
    [pytest.param(True, marks=pytest.mark.long), False],
    ids=["alone", "with a good one"],
)
@pytest.mark.parametrize(
    ("door", "what", "kind", "words", "seconds"),
    TABLE,
    ids=[f"{door} {what}" for door, what, *_ in TABLE],
)
def test_bad_replica_fails_by_its_class_and_is_passed_over(  # a row of the table
    world: World, door: Door, what: str, kind: str, words: str, seconds: float, alone: bool
) -> None:
    """It fails in a bounded time. If there is another replica, the worker reads that."""
    good = world.other.url(GOOD)
    with world.bad(door, what) as bad:
        urls = [bad.url] if alone else [bad.url, good]
        outcome = world.run(*urls, stopped=bad.stopped, credentials=bad.credentials)
    kinds = [attempt.error.kind if attempt.error else "" for attempt in outcome.attempts]
    assert [attempt.url for attempt in outcome.attempts] == urls
    assert kinds[0] in kind.split("|"), outcome.attempts[0].error
    assert kinds[1:] == [""] * (len(urls) - 1)
    first = outcome.attempts[0]
    assert first.error is not None
    text = f"{first.error.message} {first.error.hint}"
    assert re.search(words, text), text
    assert "\n" not in text
    assert first.seconds < seconds
    if alone:
        assert (outcome.error, outcome.url) == (first.error, bad.url)
        assert not world.result.exists()
    else:
        assert outcome.url == good
        world.came_out(outcome)


@pytest.mark.parametrize(
    ("door", "shown"), [("gsi", "proxy"), ("token", "token"), ("token by https", "token")]
)
def test_right_credential_is_accepted(world: World, door: Door, shown: str) -> None:
    """So the servers of the table reject only the credential."""
    with world.bad(door, f"({shown})") as good:
        outcome = world.run(good.url, credentials=good.credentials)
    assert [attempt.url for attempt in outcome.attempts] == [good.url]
    world.came_out(outcome)


def test_worker_reads_the_last_of_many_replicas(world: World) -> None:
    """It tries all others first, each in turn."""
    bad = [
        ("Missing", world.root.url("missing.root")),
        ("Unreachable", f"root://127.0.0.1:{free_port()}//{GOOD}"),
        ("Corrupt", world.root.url("corrupt.root")),
        ("Unreachable", f"http://127.0.0.1:{free_port()}/{GOOD}"),
        ("Truncated", world.root.url("cut_short.root")),
    ]
    wrong = [bad[n % len(bad)] for n in range(39)]
    outcome = world.run(*(url for _, url in wrong), world.other.url(GOOD))
    kinds = [attempt.error.kind if attempt.error else "" for attempt in outcome.attempts]
    assert kinds == [*(kind for kind, _ in wrong), ""]
    assert outcome.seconds < 15
    world.came_out(outcome)


def test_dead_server_behind_a_cache_does_not_delay_others(world: World) -> None:
    """A cache answers one connection in order, so other servers have their own connections."""
    # it keeps what it has read by the name of the file alone
    put(world.root.folder, "behind.root", content(GOOD))
    with world.bad("cache", "(frozen)") as bad:
        outcome = world.run(bad.url, world.cache.of(world.root.url("behind.root")))
    kinds = [attempt.error.kind if attempt.error else "" for attempt in outcome.attempts]
    assert kinds == ["Slow", ""]
    world.came_out(outcome)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("root:///x.root", "Missing"),
        ("root://127.0.0.1:99999//x.root", "Missing"),
        ("http://127.0.0.1:port/x.root", "Missing"),
        ("https:///x.root", "Missing"),
        ("http://[::1/x.root", "Missing"),
        ("nope://127.0.0.1/x.root", "Missing"),
        ("/no/such/file.root", "Missing"),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["in part", "whole"])
def test_unreadable_url_is_a_fault_of_the_replica(
    world: World, url: str, kind: str, whole: bool
) -> None:
    """The worker reads another replica."""
    outcome = world.run(url, world.other.url(GOOD), whole=whole)
    kinds = [attempt.error.kind if attempt.error else "" for attempt in outcome.attempts]
    assert kinds == [kind, ""]
    world.came_out(outcome)


# --- names ---------------------------------------------------------------------------------

NAMES = (
    "a,b.root",
    "a b.root",
    "a%20b.root",
    "100%.root",
    "what?.root",
    "a&b=c;d+e.root",
    "a#b.root",
    "a:b.root",
    "ü é.root",
    "[1]{2}*.root",
    "a b%25+c#d ü?é.root",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["path", "file", "http", "https", "root"])
def test_names_with_special_characters_are_read(world: World, scheme: str, name: str) -> None:
    """URLs of http:// and file:// encode them by percent signs; root:// and paths do not.

    In root://, the name ends at a question mark.
    """
    if scheme == "root":
        on_disk = put(world.other.folder, name, content(GOOD))
        outcome = world.run(world.other.url(name))
        on_disk.unlink()
        if "?" in name:
            assert outcome.error is not None
            assert outcome.error.kind == "Missing"
        else:
            world.came_out(outcome)
    elif scheme in ("http", "https"):
        with http(certificate=world.known.host if scheme == "https" else None) as door:
            put(door.folder, name, content(GOOD))
            world.came_out(world.run(door.url(name)))
    else:
        path = put(world.folder, name, content(GOOD))
        world.came_out(world.run(str(path) if scheme == "path" else path.as_uri()))
