"""Datasets, containers and files of a Rucio server, by ``rucio://scope:name``.

The client of Rucio blocks, so a thread asks, and files come through a buffer of bounded size. What
is known of its API is from rucio 41: a collection is answered without the files that have no copy
to read, and a list of files with them.
"""

import asyncio
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import islice
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr

from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    ServiceXError,
    StartupError,
    UnknownDatasetError,
    did_you_mean,
    nearest,
)
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.model import BadReplica, InputFile, Replica, now

log = getLogger(__name__)

T = TypeVar("T")

AHEAD = 2000
"""Files that are held for one who is slower than the catalogue."""

AT_A_TIME = 200
"""Files that are named in one question."""

NAMES = 500
"""Names that are looked through for one like a name that is not there."""

LONGEST = 500
"""Characters of a name, which is what a column of Rucio's tables may hold."""

REASON = 255
"""Characters of a reason, which is what a column of Rucio's tables may hold."""

END_SECONDS = 2.0
"""For how long the end of the thread is waited for, when nobody wants more files."""

FORM = "write rucio://scope:name, as in rucio://user.jdoe:user.jdoe.zmumu.v1"


def _listed(given: Any) -> Any:
    """Read a list from a text, as variables of the environment are: JSON, or with commas."""
    if not isinstance(given, str):
        return given
    if given.lstrip().startswith("["):
        return json.loads(given)
    return [one.strip() for one in given.split(",") if one.strip()]


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]

Scheme = Literal["root", "https", "davs", "http"]


class RucioOptions(FinderOptions):
    """Which server is asked, as whom, and which copies of files are wanted."""

    # a password may be what YAML takes for a number
    model_config = ConfigDict(coerce_numbers_to_str=True)

    url: str = ""
    """Address of the server, such as ``https://rucio.example.org``. Without it nothing is found."""

    auth_url: str = ""
    """Address of its authentication server, where that is another one."""

    account: str = ""
    """Account to ask as; the default account of the credential if there is none."""

    vo: str = "def"
    """Virtual organisation, on a server that has several."""

    auth: Literal["x509_proxy", "userpass", "oidc"] = "x509_proxy"
    """How the service says who it is: with a proxy, a password, or a token."""

    username: str = ""
    """For ``userpass``."""

    password: SecretStr = SecretStr("")
    """For ``userpass``."""

    proxy_file: Path | None = None
    """For ``x509_proxy``; else ``$X509_USER_PROXY``, or where ``voms-proxy-init`` puts it."""

    token_file: Path | None = None
    """For ``oidc``: read at each look-up; else where WLCG tokens are looked for."""

    ca_cert: Path | None = None
    """A file or a folder of certificates that vouch for the server; else ``$X509_CERT_DIR``, or
    those that Python has."""

    site: str = ""
    """Site of the workers: the server then names the nearest copies first, by the local door."""

    schemes: Annotated[tuple[Scheme, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "root",
        "https",
    )
    """Protocols that are used, the best first; ``davs`` is read as ``https``."""

    rse_expression: str = r"*\istape=True"
    """The RSEs that may be read, as an RSE expression; empty for all. Tapes never are."""

    sort: Literal["", "geoip", "custom_table", "random"] = ""
    """How the server orders copies; its own default, ``geoip``, if empty. A server that has no
    tables for that is slow at it, and ``random`` is not."""

    exclude: Names = ()
    """RSEs that are never read: names, or patterns such as ``*_LOCALGROUPDISK``."""

    prefer: Names = ()
    """RSEs or sites that are read first, the best first; of RSEs also patterns."""

    seconds: float = Field(default=60.0, gt=0)
    """For how long an answer, or the next piece of it, is waited for."""


class Did(NamedTuple):
    """The name of something in a catalogue."""

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"


class Rucio(Finder):
    """A Rucio server."""

    scheme: ClassVar[str] = "rucio"
    Options: ClassVar[type[FinderOptions]] = RucioOptions
    options: RucioOptions

    def __init__(self, options: RucioOptions | None = None) -> None:
        super().__init__(options)
        if self.options.url:
            _check_options(self.options)

    def check(self, reference: str) -> None:
        """Refuse what cannot be the name of a dataset, a container or a file."""
        did_of(reference)
        if not self.options.url:
            raise DatasetError(
                "did: this service knows no Rucio server",
                hint="an operator names it in the setting finders.rucio.url",
            )

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield each file once, also one that has no copy to read: it then fails by itself."""
        self.check(reference)
        asking = _Asking(self.options)
        files = _streamed(asking.files(did_of(reference)), stop=asking.hang_up)
        async with aclosing(files):
            async for file in files:
                yield file

    async def report(self, bad: Sequence[BadReplica]) -> None:
        """Have replicas declared suspicious, which any account may, with what was wrong.

        What becomes of them is decided by the rules of Rucio.
        """
        if self.options.url:
            await asyncio.to_thread(_Asking(self.options).declare, bad)


def did_of(reference: str) -> Did:
    """Read ``scope:name``; without a scope it is guessed from the name, as Rucio's tools do.

    Raises
    ------
    DatasetError
        It is neither; says what it looks like.

    Examples
    --------
    >>> did_of("data18_13TeV.00348885.physics_Main.deriv.DAOD_PHYSLITE.r13286/").scope
    'data18_13TeV'
    >>> did_of("user.jdoe.zmumu.v1")
    Did(scope='user.jdoe', name='user.jdoe.zmumu.v1')
    >>> did_of("cms:/SingleMuon/Run2018A-v1/NANOAOD").scope
    'cms'
    """
    shown = f"did: {reference[:200]!r}"
    if not reference.strip():
        raise DatasetError("did: there is no name after rucio://", hint=FORM)
    if reference.startswith("rucio://"):
        once = reference[:200].replace("rucio://", "")
        raise DatasetError(f"{shown} has rucio:// twice", hint=f"write rucio://{once}")
    if "://" in reference:
        raise DatasetError(f"{shown} is a URL, and no name in Rucio", hint=FORM)
    if "*" in reference or "?" in reference:
        raise DatasetError(f"{shown} is a pattern, and one name is needed", hint=FORM)
    if any(one.isspace() or not one.isprintable() for one in reference):
        raise DatasetError(f"{shown} has a space or a character that no name has", hint=FORM)
    if len(reference) > LONGEST:
        raise DatasetError(f"{shown}… has {len(reference)} characters; at most {LONGEST}")
    scope, mark, name = reference.removesuffix("/").partition(":")
    if not mark:
        name, parts = scope, scope.split(".")
        own = 2 if name.startswith(("user", "group")) else 1
        scope = ".".join(parts[:own])
        if len(parts) <= own or not all(parts[:own]) or "/" in scope:
            raise DatasetError(f"{shown} has no scope, and none can be guessed", hint=FORM)
    if not scope or not name or ":" in name:
        raise DatasetError(f"{shown} is not one scope and one name", hint=FORM)
    return Did(scope, name)


def _check_options(options: RucioOptions) -> None:
    if not options.url.startswith(("http://", "https://")):
        raise StartupError("setting finders.rucio.url: an address with https:// is needed")
    if options.auth_url and not options.auth_url.startswith(("http://", "https://")):
        raise StartupError("setting finders.rucio.auth_url: an address with https:// is needed")
    for name in ("username", "password") if options.auth == "userpass" else ():
        if not getattr(options, name):
            raise StartupError(f"setting finders.rucio.{name}: it is needed to sign in by userpass")
    if find_spec("rucio") is None:
        raise StartupError(
            "the finder rucio needs the package rucio-clients",
            hint="pip install 'servicex-server[rucio]'",
        )


class _Asking:
    """One look-up: what it asks of the server, and what it has seen. It blocks."""

    def __init__(self, options: RucioOptions) -> None:
        self._options = options
        self._client: Any = None
        self._seen: set[str] = set()
        self._of_site: dict[str, frozenset[str]] = {}

    def hang_up(self) -> None:
        """End a read of the server's answer that goes on in another thread."""
        if (answer := getattr(self._client, "answer", None)) is not None:
            with suppress(ValueError, RuntimeError, OSError):  # it has been read to its end
                answer.raw.shutdown()

    def files(self, did: Did) -> Generator[InputFile, None, None]:
        """Yield the files of a dataset, of all datasets below a container, or one file."""
        with self._errors(), TemporaryDirectory(prefix="sx-rucio-") as folder:
            self._client = _connected(self._options, Path(folder))
            try:
                yield from self._files(did)
            finally:
                self._client.forget()
                self._client.session.close()

    def declare(self, bad: Sequence[BadReplica]) -> None:
        """Declare replicas suspicious."""
        with self._errors(), TemporaryDirectory(prefix="sx-rucio-") as folder:
            self._client = _connected(self._options, Path(folder))
            try:
                for one in bad:
                    reason = f"servicex-server: {one.kind}: {one.message}"[:REASON]
                    # of what it does not know it says so, and takes the others
                    unknown = self._client.declare_suspicious_file_replicas([one.url], reason)
                    if unknown:
                        log.warning("Rucio does not know the replica %s: %s", one.url, unknown)
            finally:
                self._client.forget()
                self._client.session.close()

    def _files(self, did: Did) -> Iterator[InputFile]:
        kind = self._kind(did)
        sites = [one for one in self._options.prefer if not set(one) & set("*?[")]
        self._of_site = {one: self._rses(one) for one in sites}
        if kind == "FILE":
            yield from self._named([did])
            return
        datasets = self._below(did) if kind == "CONTAINER" else iter([did])
        for dataset in datasets:
            yield from self._of_dataset(dataset)
        if not self._seen:
            raise DatasetError(f"did: {did} has no files")

    def _kind(self, did: Did) -> str:
        from rucio.common.exception import DataIdentifierNotFound

        try:
            return str(self._client.get_did(*did)["type"])
        except DataIdentifierNotFound:
            raise self._unknown(did) from None

    def _unknown(self, did: Did) -> UnknownDatasetError:
        """Say what is nearest among the names that begin alike."""
        from rucio.common.exception import RucioException

        found: list[str] = []
        with suppress(RucioException):  # to be of help is not needed
            for share in (0.7, 0.3):
                start = did.name[: int(len(did.name) * share)]
                names = self._client.list_dids(did.scope, [{"name": f"{start}*"}])
                found = [str(name) for name in islice(names, NAMES)]
                if nearest(did.name, found):
                    break
        hint = f"nothing in the scope {did.scope} begins like it"
        if found:
            hint = did_you_mean(did.name, found, otherwise="of its beginning there are")
        return UnknownDatasetError(f"did: Rucio has no {did}", hint=hint)

    def _rses(self, site: str) -> frozenset[str]:
        """Return the RSEs of a site; none if it is no name of a site."""
        from rucio.common.exception import InvalidObject, InvalidRSEExpression

        try:
            found = self._records(self._client.list_rses(f"site={site}"))
            return frozenset(str(one["rse"]) for one in found)
        except (InvalidObject, InvalidRSEExpression):
            return frozenset()

    def _below(self, container: Did) -> Iterator[Did]:
        """Yield each dataset below a container once; a container may hold one that holds it."""
        known, containers = {container}, [container]
        while containers:
            inner = []
            # to the end before anything else is asked, so that no answer is kept waiting
            for one in list(self._records(self._client.list_content(*containers.pop()))):
                did = Did(one["scope"], one["name"])
                if did in known:
                    continue
                known.add(did)
                if one["type"] == "CONTAINER":
                    inner.append(did)
                else:
                    yield did
            containers += reversed(inner)

    def _of_dataset(self, dataset: Did) -> Iterator[InputFile]:
        listed = 0
        for record in self._replicas([dataset]):
            listed += 1
            yield from self._once(record)
        length = self._client.get_did(*dataset, dynamic_depth="FILE")["length"]
        if length is not None and listed >= length:
            return
        left = [
            did
            for one in self._records(self._client.list_files(*dataset))
            if str(did := Did(one["scope"], one["name"])) not in self._seen
        ]
        for start in range(0, len(left), AT_A_TIME):
            yield from self._named(left[start : start + AT_A_TIME])

    def _named(self, dids: list[Did]) -> Iterator[InputFile]:
        """Yield files that are asked for one by one, also those without a copy to read."""
        for record in self._replicas(dids):
            yield from self._once(record)

    def _once(self, record: dict[str, Any]) -> Iterator[InputFile]:
        name = str(Did(record["scope"], record["name"]))
        if name not in self._seen:
            self._seen.add(name)
            copies = self._ordered(record.get("pfns") or {})
            # catalogues have some without the zeros in front
            checksum = record["adler32"].zfill(8).lower() if record["adler32"] else None
            yield InputFile(copies, size=record["bytes"] or 0, adler32=checksum, name=name)

    def _replicas(self, dids: Iterable[Did]) -> Iterator[dict[str, Any]]:
        chosen = self._options
        return self._records(
            self._client.list_replicas(
                [did._asdict() for did in dids],
                schemes=list(chosen.schemes),
                # what is blocked for reading is left out
                ignore_availability=False,
                rse_expression=chosen.rse_expression or None,
                client_location={"site": chosen.site} if chosen.site else None,
                sort=chosen.sort or None,
            )
        )

    def _records(self, answer: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for one in answer:
            if not isinstance(one, dict):
                raise CatalogueError(f"Rucio at {self._options.url} answers nonsense: {one!r:.100}")
            yield one

    def _ordered(self, pfns: dict[str, dict[str, Any]]) -> tuple[Replica, ...]:
        """Order copies: preferred ones, the server's order of RSEs, our order of protocols."""
        exclude, schemes = self._options.exclude, self._options.schemes
        usable = {
            url: one
            for url, one in pfns.items()
            if one["type"] != "TAPE"
            and not one.get("client_extract")
            and url.partition("://")[0] in schemes
            and not any(fnmatchcase(one["rse"], pattern) for pattern in exclude)
        }
        best: dict[str, int] = {}
        for one in usable.values():
            best[one["rse"]] = min(one["priority"], best.get(one["rse"], one["priority"]))

        def rank(url: str) -> tuple[Any, ...]:
            one = usable[url]
            scheme = schemes.index(url.partition("://")[0])
            # a volatile copy may be gone at any time
            volatile = bool(one.get("volatile"))
            return self._preference(one["rse"]), volatile, best[one["rse"]], scheme, one["priority"]

        return tuple(
            Replica(f"https{url[4:]}" if url.startswith("davs:") else url, rse=usable[url]["rse"])
            for url in sorted(usable, key=rank)
        )

    def _preference(self, rse: str) -> int:
        prefer = self._options.prefer
        for place, one in enumerate(prefer):
            if fnmatchcase(rse, one) or rse in self._of_site.get(one, ()):
                return place
        return len(prefer)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from requests.exceptions import RequestException
        from rucio.common import exception as theirs

        place = f"Rucio at {self._options.url}"
        try:
            yield
        except ServiceXError:
            raise
        except (
            theirs.AccessDenied,
            theirs.CannotAuthenticate,
            theirs.MissingClientParameter,
            theirs.NoAuthInformation,
        ) as error:
            raise CatalogueDeniedError(
                f"{place} refuses the service: {_said(error)}",
                hint=f"it signs in by {self._options.auth}, see the settings finders.rucio",
            ) from error
        except theirs.InvalidRSEExpression as error:
            raise StartupError(
                f"setting finders.rucio.rse_expression: {place} refuses it: {_said(error)}"
            ) from error
        except (RequestException, OSError, theirs.ServerConnectionException) as error:
            raise CatalogueError(f"{place} does not answer: {_said(error)}") from error
        except (theirs.RucioException, ValueError, LookupError) as error:
            raise CatalogueError(f"{place} answers nonsense: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Return what an error says, without what Rucio and requests put around it."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    text = str(reason or error).removeprefix("An unknown exception occurred.")
    text = text.replace("Details:", "").rpartition("CannotAuthenticate: ")[2]
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(text.split()))
    return text[:300] or type(error).__name__


def _connected(options: RucioOptions, folder: Path) -> Any:
    """Return a client that has signed in, and shares nothing with others on this machine.

    Parameters
    ----------
    folder
        Where it keeps its token; others may be of another server or account.
    """
    from rucio.client.didclient import DIDClient
    from rucio.client.replicaclient import ReplicaClient
    from rucio.client.rseclient import RSEClient

    class Client(DIDClient, ReplicaClient, RSEClient):  # type: ignore[misc]  # it ships no types
        AUTH_RETRIES, REQUEST_RETRIES = 1, 0  # a look-up as a whole is tried again

        answer: Any = None

        def _get_auth_tokens(self) -> tuple[None, str, str, str]:
            self.account = options.account or None
            return None, str(folder / "expires"), str(folder / "token"), str(folder)

        def forget(self) -> None:
            """Close the last answer: nobody reads it any more, be it at its end or not."""
            if self.answer is not None:
                self.answer.close()

        def _send_request(self, url: str, method: Any, **given: Any) -> Any:
            signs_in = given.get("get_token", False)
            if options.auth == "oidc":
                given["get_token"] = True  # or it asks a person at a terminal for a new one
            self.forget()
            self.answer = answer = super()._send_request(url, method, **given)
            # it takes any answer but success for a refusal when it signs in
            if answer.status_code >= 500 and (signs_in or "ExceptionClass" not in answer.headers):  # noqa: PLR2004  # statuses of servers
                raise CatalogueError(f"Rucio at {url} answers with status {answer.status_code}")
            return answer

    secret = _credential(options)
    if options.auth == "oidc":
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(secret["token"], encoding="utf-8")
    program = sys.argv[0]
    try:
        client = Client(
            rucio_host=options.url,
            auth_host=options.auth_url or options.url,
            account=options.account,
            ca_cert=str(options.ca_cert) if options.ca_cert else None,
            auth_type=options.auth,
            creds=secret,
            timeout=options.seconds,
            user_agent="servicex-server",
            vo=options.vo,
            logger=log,
        )
    finally:
        sys.argv[0] = program  # it cuts the folder off
    client.request_retries = 0
    if options.auth == "oidc":
        client.auth_token = secret["token"]  # it would prefer one of the environment
    return client


def _credential(options: RucioOptions) -> dict[str, str]:
    if options.auth == "userpass":
        return {
            "username": options.username,
            "password": options.password.get_secret_value(),
        }
    if options.auth == "x509_proxy":
        standard = os.environ.get("X509_USER_PROXY", f"/tmp/x509up_u{os.getuid()}")  # noqa: S108
        path = options.proxy_file or Path(standard)
        _check_proxy(path)
        return {"client_proxy": str(path)}
    from rucio.common.utils import wlcg_token_discovery

    try:
        file = options.token_file
        token = file.read_text(encoding="utf-8") if file else wlcg_token_discovery()
    except (OSError, ValueError) as error:
        raise CatalogueDeniedError(
            f"the token {options.token_file} cannot be read: {error}",
            hint="see the setting finders.rucio.token_file",
        ) from None
    if not (token and token.strip()):
        raise CatalogueDeniedError(
            "there is no token for Rucio", hint="set finders.rucio.token_file, or BEARER_TOKEN_FILE"
        )
    return {"token": token.strip()}


def _check_proxy(path: Path) -> None:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CatalogueDeniedError(
            f"the proxy {path} cannot be read: {error}",
            hint="see the setting finders.rucio.proxy_file",
        ) from None
    ends = min(one.not_valid_after_utc for one in found)
    if ends <= now():
        raise CatalogueDeniedError(
            f"the proxy {path} expired at {ends:%Y-%m-%d %H:%M} UTC",
            hint="make a new one, as with voms-proxy-init",
        )


async def _streamed(
    source: Generator[T, None, None], *, stop: Callable[[], None]
) -> AsyncGenerator[T, None]:
    """Yield what a generator yields that runs in a thread of its own, at most `AHEAD` before.

    Parameters
    ----------
    stop
        Ends what the generator waits for; called when nobody wants more.
    """
    loop = asyncio.get_running_loop()
    arrived, ended = asyncio.Event(), loop.create_future()
    room, halted = threading.Semaphore(AHEAD), threading.Event()
    items: deque[T] = deque()

    def end(error: Exception | None) -> None:
        ended.set_result(error)
        arrived.set()

    def run() -> None:
        failure = None
        try:
            with closing(source):
                for item in source:
                    room.acquire()
                    if halted.is_set():
                        break
                    items.append(item)
                    if not arrived.is_set():
                        loop.call_soon_threadsafe(arrived.set)
        except Exception as error:  # noqa: BLE001  # it is raised where the files are taken
            failure = error
        with suppress(RuntimeError):  # a loop that has been closed wants to know nothing
            loop.call_soon_threadsafe(end, failure)

    thread = threading.Thread(target=run, name="look-up in Rucio", daemon=True)
    thread.start()
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            last = ended.done()
            while items:
                item = items.popleft()
                room.release()
                yield item
            if last:
                if failure := ended.result():
                    raise failure
                return
    finally:
        halted.set()
        room.release()
        if not ended.done():
            stop()
        await asyncio.wait([ended], timeout=END_SECONDS)
        if ended.done():
            thread.join()
