"""A session with a Rucio server: the files of a DID, their replicas, and bad-replica reports.

The client of Rucio blocks. As of Rucio 41, the replicas of a collection do not include files
without a readable replica, but the replicas of a list of files do.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import islice
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    ServiceXError,
    StartupError,
    UnknownDatasetError,
)
from servicex_server.finders.rucio_client import RucioOptions, connected, said
from servicex_server.model import BadReplica, InputFile, Replica
from servicex_server.text.hints import did_you_mean, nearest

log = getLogger(__name__)

AT_A_TIME = 200
"""Files in one query."""

NAMES = 500
"""Names that are searched for one similar to an unknown name."""

REASON = 255
"""Characters of a reason: the width of the column in Rucio's tables."""


class Did(NamedTuple):
    """A data identifier of Rucio: the name of a file, a dataset or a container."""

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"


class RucioSession:
    """A session with a Rucio server for one look-up. Its methods block.

    The session signs in with its first query. All methods except `abort` and `replicas_of` close
    the session at their end.
    """

    def __init__(self, options: RucioOptions) -> None:
        self._options = options
        self._client: Any = None
        self._folder: TemporaryDirectory[str] | None = None
        self._seen: set[str] = set()
        self.aborted = False
        self._of_site: dict[str, frozenset[str]] | None = None

    def abort(self) -> None:
        """Interrupt another thread that reads an answer of the server."""
        self.aborted = True
        if (answer := getattr(self._client, "answer", None)) is not None:
            with suppress(ValueError, RuntimeError, OSError):  # the answer was read completely
                answer.raw.shutdown()

    def files(self, did: Did) -> Generator[InputFile, None, None]:
        """Yield the files of a dataset, of all datasets below a container, or one file."""
        with closing(self), self._errors():
            self._sign_in()
            yield from self._files(did)

    def replicas(self, files: Sequence[Did]) -> dict[Did, tuple[Replica, ...]]:
        """Return the replicas of files; files without a readable replica are omitted."""
        found: dict[Did, tuple[Replica, ...]] = {}
        with closing(self):
            for start in range(0, len(files), AT_A_TIME):
                found |= self.replicas_of(files[start : start + AT_A_TIME])
        return found

    def replicas_of(self, dids: Sequence[Did]) -> dict[Did, tuple[Replica, ...]]:
        """Return the replicas of the files of a few datasets, or of a few files."""
        with self._errors():
            self._sign_in()
            found = {}
            for record in self._replicas(dids):
                if copies := self._ordered(record.get("pfns") or {}):
                    found[Did(record["scope"], record["name"])] = copies
            return found

    def declare(self, bad: BadReplica, did: Did | None) -> None:
        """Declare a replica suspicious or bad, as the option ``report_as`` says.

        Raises
        ------
        CatalogueDeniedError
            The account is not allowed to declare replicas.
        """
        from rucio.common import exception as theirs

        reason = f"servicex-server: {bad.kind}: {bad.message}"[:REASON]
        with closing(self), self._errors():
            self._sign_in()
            try:
                if self._options.report_as == "suspicious":
                    unknown = self._client.declare_suspicious_file_replicas([bad.url], reason)
                elif did is None or not bad.rse:
                    unknown = "its name or its RSE is not known"
                else:
                    # Rucio cannot derive a scope with a dot from a URL
                    one = {**did._asdict(), "rse": bad.rse}
                    unknown = self._client.declare_bad_file_replicas([one], reason)
            except theirs.AccessDenied as error:
                raise CatalogueDeniedError(
                    f"Rucio at {self._options.url} refuses bad-replica reports: {said(error)}",
                    hint=f"see the setting {self._options.setting}.report_as: "
                    "bad needs a privileged account, suspicious does not",
                ) from error
            except (theirs.ReplicaNotFound, theirs.RSENotFound) as error:
                unknown = said(error)
            # Rucio does not raise an error for an unknown replica
            if unknown:
                log.warning("Rucio does not know the replica %s: %s", bad.url, unknown)

    def close(self) -> None:
        """Close the connection, and delete the token of the session."""
        if self._client is not None:
            self._client.abort()
            self._client = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _sign_in(self) -> None:
        if self._client is None:
            self._folder = self._folder or TemporaryDirectory(prefix="sx-rucio-")
            self._client = connected(self._options, Path(self._folder.name))

    def _files(self, did: Did) -> Iterator[InputFile]:
        kind = self._kind(did)
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
        """Return the error for an unknown DID, with similar names as a hint."""
        from rucio.common.exception import RucioException

        found: list[str] = []
        with suppress(RucioException):  # the hint is optional
            for share in (0.7, 0.3):
                start = did.name[: int(len(did.name) * share)]
                names = self._client.list_dids(did.scope, [{"name": f"{start}*"}])
                found = [str(name) for name in islice(names, NAMES)]
                if nearest(did.name, found):
                    break
        hint = f"the scope {did.scope} has no name with the same beginning"
        if found:
            hint = did_you_mean(did.name, found, otherwise="names with the same beginning are")
        return UnknownDatasetError(f"did: Rucio has no {did}", hint=hint)

    def _rses(self, site: str) -> frozenset[str]:
        """Return the RSEs of a site; empty if it is not the name of a site."""
        from rucio.common.exception import InvalidObject, InvalidRSEExpression

        try:
            found = self._records(self._client.list_rses(f"site={site}"))
            return frozenset(str(one["rse"]) for one in found)
        except (InvalidObject, InvalidRSEExpression):
            return frozenset()

    def _below(self, container: Did) -> Iterator[Did]:
        """Yield each dataset below a container once; containers may contain each other."""
        known, containers = {container}, [container]
        while containers:
            inner = []
            # read the whole answer before the next query, as the client has one open answer
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
        """Yield files by name, also those without a readable replica."""
        for record in self._replicas(dids):
            yield from self._once(record)

    def _once(self, record: dict[str, Any]) -> Iterator[InputFile]:
        name = str(Did(record["scope"], record["name"]))
        if name not in self._seen:
            self._seen.add(name)
            copies = self._ordered(record.get("pfns") or {})
            # some catalogues omit leading zeros
            checksum = record["adler32"].zfill(8).lower() if record["adler32"] else None
            yield InputFile(copies, size=record["bytes"] or 0, adler32=checksum, name=name)

    def _replicas(self, dids: Iterable[Did]) -> Iterator[dict[str, Any]]:
        chosen = self._options
        if self._of_site is None:
            sites = [one for one in chosen.prefer if not set(one) & set("*?[")]
            self._of_site = {one: self._rses(one) for one in sites}
        return self._records(
            self._client.list_replicas(
                [did._asdict() for did in dids],
                schemes=list(chosen.schemes),
                # omit RSEs that are blocked for reading
                ignore_availability=False,
                rse_expression=chosen.rse_expression or None,
                client_location={"site": chosen.site} if chosen.site else None,
                sort=chosen.sort or None,
            )
        )

    def _records(self, answer: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for one in answer:
            if not isinstance(one, dict):
                raise CatalogueError(
                    f"Rucio at {self._options.url} sent an invalid answer: {one!r:.100}"
                )
            yield one

    def _ordered(self, pfns: dict[str, dict[str, Any]]) -> tuple[Replica, ...]:
        """Sort replicas: preferred first, then the server's order of RSEs, then our schemes."""
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
            # a volatile replica may be deleted at any time
            volatile = bool(one.get("volatile"))
            return self._preference(one["rse"]), volatile, best[one["rse"]], scheme, one["priority"]

        return tuple(
            Replica(f"https{url[4:]}" if url.startswith("davs:") else url, rse=usable[url]["rse"])
            for url in sorted(usable, key=rank)
        )

    def _preference(self, rse: str) -> int:
        prefer = self._options.prefer
        for place, one in enumerate(prefer):
            if fnmatchcase(rse, one) or rse in (self._of_site or {}).get(one, ()):
                return place
        return len(prefer)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from requests.exceptions import RequestException
        from rucio.common import exception as theirs

        place, setting = f"Rucio at {self._options.url}", self._options.setting
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
                hint=f"it signs in by {self._options.auth}, see the settings {setting}",
            ) from error
        except theirs.InvalidRSEExpression as error:
            raise StartupError(
                f"setting {setting}.rse_expression: {place} refuses it: {said(error)}"
            ) from error
        except (RequestException, OSError, theirs.ServerConnectionException) as error:
            raise CatalogueError(f"{place} does not answer: {said(error)}") from error
        except (theirs.RucioException, ValueError, LookupError) as error:
            raise CatalogueError(f"{place} sent an invalid answer: {said(error)}") from error
