"""Datasets, containers and files of a Rucio server, by ``rucio://scope:name``.

The client of Rucio blocks, so a thread asks, and files come through a buffer of bounded size. What
is known of its API is from rucio 41: a collection is answered without the files that have no copy
to read, and a list of files with them.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import islice
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple

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
from servicex_server.finders.blocking import apart, streamed
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.finders.rucio_client import RucioOptions, check_options, connected, said
from servicex_server.model import BadReplica, InputFile, Replica

log = getLogger(__name__)

AT_A_TIME = 200
"""Files that are named in one question."""

NAMES = 500
"""Names that are looked through for one like a name that is not there."""

LONGEST = 500
"""Characters of a name, which is what a column of Rucio's tables may hold."""

REASON = 255
"""Characters of a reason, which is what a column of Rucio's tables may hold."""

FORM = "write rucio://scope:name, as in rucio://user.jdoe:user.jdoe.zmumu.v1"


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
            check_options(self.options)

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
        files = streamed(asking.files(did_of(reference)), stop=asking.hang_up)
        async with aclosing(files):
            async for file in files:
                yield file

    async def report(self, bad: BadReplica) -> None:
        """Have a replica declared suspicious, which any account may, with what was wrong.

        What becomes of it is decided by the rules of Rucio.
        """
        if self.options.url:
            await asyncio.to_thread(_Asking(self.options).declare, bad)

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Return the copies that can be read by now, ordered as in a look-up."""
        if not self.options.url or not names:
            return {}
        dids = [Did(*name.split(":", 1)) for name in names if ":" in name]
        found = await apart(_Asking(self.options).replicas, dids)
        return {str(did): copies for did, copies in found.items()}


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
        with self._signed_in():
            yield from self._files(did)

    def replicas(self, dids: Sequence[Did]) -> dict[Did, tuple[Replica, ...]]:
        """Return where files can be read, of those that can; what is not known is not in it."""
        with self._signed_in():
            self._know_sites()
            found = {}
            for start in range(0, len(dids), AT_A_TIME):
                for record in self._replicas(dids[start : start + AT_A_TIME]):
                    if copies := self._ordered(record.get("pfns") or {}):
                        found[Did(record["scope"], record["name"])] = copies
            return found

    def declare(self, bad: BadReplica) -> None:
        """Declare a replica suspicious."""
        with self._signed_in():
            reason = f"servicex-server: {bad.kind}: {bad.message}"[:REASON]
            # what it does not know is no error to it
            if unknown := self._client.declare_suspicious_file_replicas([bad.url], reason):
                log.warning("Rucio does not know the replica %s: %s", bad.url, unknown)

    @contextmanager
    def _signed_in(self) -> Iterator[None]:
        with self._errors(), TemporaryDirectory(prefix="sx-rucio-") as folder:
            self._client = connected(self._options, Path(folder))
            try:
                yield
            finally:
                self._client.forget()
                self._client.session.close()

    def _know_sites(self) -> None:
        sites = [one for one in self._options.prefer if not set(one) & set("*?[")]
        self._of_site = {one: self._rses(one) for one in sites}

    def _files(self, did: Did) -> Iterator[InputFile]:
        kind = self._kind(did)
        self._know_sites()
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
                f"{place} refuses the service: {said(error)}",
                hint=f"it signs in by {self._options.auth}, see the settings finders.rucio",
            ) from error
        except theirs.InvalidRSEExpression as error:
            raise StartupError(
                f"setting finders.rucio.rse_expression: {place} refuses it: {said(error)}"
            ) from error
        except (RequestException, OSError, theirs.ServerConnectionException) as error:
            raise CatalogueError(f"{place} does not answer: {said(error)}") from error
        except (theirs.RucioException, ValueError, LookupError) as error:
            raise CatalogueError(f"{place} answers nonsense: {said(error)}") from error
