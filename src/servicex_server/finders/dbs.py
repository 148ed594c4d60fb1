"""CMS datasets in the Data Bookkeeping Service (DBS): ``dbs:///Primary/Processed/TIER``."""

import asyncio
import json
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import DirectoryPath, Field

from servicex_server.credentials import end_of
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    UnknownDatasetError,
)
from servicex_server.finders.contract import (
    Finder,
    FinderOptions,
    adler32,
    asking,
    number,
    refusal,
)
from servicex_server.finders.dbs_replicas import (
    CmsRucioOptions,
    ReplicaPrefetch,
    ReplicasByFile,
    declare,
    replicas_of_files,
)
from servicex_server.finders.rucio_client import check_options
from servicex_server.model import BadReplica, InputFile, Replica, now

if TYPE_CHECKING:
    import httpx

_LOOKS_LIKE = "write dbs:///Primary/Processed/TIER, as DAS shows it"

_NAME = re.compile(
    r"/([a-zA-Z0-9]+[a-zA-Z0-9\-._]*)/([a-zA-Z]+[a-zA-Z0-9_\-.]*)/([A-Z_\-.]+)", re.ASCII
)
_LONGEST = 301
"""Characters of a dataset name that the server accepts (dbs2go: static/lexicon_reader.json)."""

_READABLE = ("VALID", "PRODUCTION")
"""Types of datasets whose files ``validFileOnly`` lets through (dbs2go: dbs/files.go)."""


class DbsOptions(FinderOptions):
    """What an operator chooses, as ``finders: {dbs: {x509_file: ...}}`` in the settings."""

    url: str = Field(
        default="https://cmsweb.cern.ch/dbs/prod/global/DBSReader", pattern="^https?://[^/]"
    )
    """URL of the reader of a DBS instance. CMS's own client uses port 8443 of the same host."""

    x509_file: Path | None = None
    """PEM file of the proxy, or of the certificate and its key, that the service presents. It is
    read again for each look-up."""

    x509_key_file: Path | None = None
    """PEM file of the key, without a password, if it is not in ``x509_file``."""

    ca_folder: DirectoryPath | None = None
    """Folder of CA certificates, named by their hashes as in ``/etc/grid-security/certificates``,
    with which the server's certificate is verified. The default is the certificates that Python
    trusts."""

    rucio: CmsRucioOptions | None = None
    """The Rucio of CMS, with the options of the finder ``rucio``. Each option has its own variable,
    for example ``SERVICEX_SERVER_FINDERS__DBS__RUCIO__URL``."""

    redirector: str = Field(default="root://cms-xrd-global.cern.ch/", pattern="^x?roots?://[^/]")
    """Redirector through which files are read by their logical names, after all locations that
    Rucio lists."""

    seconds: float = Field(default=60.0, gt=0, le=3600)
    """Seconds that the server may go without sending data."""

    at_once: int = Field(default=4, ge=1, le=100)
    """Number of blocks whose files are requested at the same time, 1 to 100."""


class Dbs(Finder):
    """Yields the valid files of a dataset by block, with replicas of Rucio and a redirector."""

    scheme: ClassVar[str] = "dbs"
    Options = DbsOptions

    def __init__(self, options: DbsOptions | None = None) -> None:
        super().__init__(options)
        if self.options.rucio is not None:
            check_options(self.options.rucio)

    def check(self, reference: str) -> None:
        """Reject a reference that is not the name of one dataset."""
        shown = repr(reference[:_LONGEST])
        if "*" in reference:
            raise DatasetError(
                f"did: {shown} is a pattern, but one dataset is needed", hint=_LOOKS_LIKE
            )
        if "#" in reference:
            raise DatasetError(f"did: {shown} is a block, and not a dataset", hint=_LOOKS_LIKE)
        if len(reference) > _LONGEST or not _NAME.fullmatch(reference):
            raise DatasetError(f"did: {shown} is not the name of a dataset", hint=_LOOKS_LIKE)

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield the files of a dataset, sorted by the names of their blocks, and by their names.

        DBS does not define an order. Its answer does not show whether a list is complete, so the
        number of files is compared with the number in the summary of DBS.
        """
        import httpx

        context = await asyncio.to_thread(self._context)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=self.options.seconds, verify=context
        ) as client:
            await self._check_state(client, reference)
            expected = await self._count(client, reference)
            blocks = sorted(
                str(self._field(one, "block_name"))
                for one in await self._all(client, "blocks", dataset=reference)
            )
            found = 0
            prefetch = ReplicaPrefetch(self.options.rucio, blocks, at_once=self.options.at_once)
            async with prefetch, aclosing(self._in_order(client, blocks, prefetch)) as files:
                async for file in files:
                    found += 1
                    yield file
        if found < expected:
            raise CatalogueError(
                f"{self._url} lists only {found} of the {expected} files of {reference}"
            )
        if not found:
            raise DatasetError(f"{reference} has no valid files")

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Return the replicas that Rucio has now, and the redirector after them."""
        if self.options.rucio is None or not names:
            return {}
        places = await replicas_of_files(self.options.rucio, names)
        return {name: (*found, self._redirected(name)) for name, found in places.items()}

    async def report(self, bad: BadReplica) -> None:
        """Report a replica that came from Rucio to Rucio."""
        if self.options.rucio is not None:
            await declare(self.options.rucio, bad)

    @property
    def _url(self) -> str:
        return str(self.options.url).rstrip("/")

    @property
    def _shown(self) -> str:
        """The hint about the credential."""
        if self.options.x509_file is None:
            return "a proxy is needed; name its file in the setting finders.dbs.x509_file"
        return f"a proxy of a CMS member is needed; the service used {self.options.x509_file}"

    def _context(self) -> ssl.SSLContext:
        """Return the trusted authorities and the certificate of the service.

        Raises
        ------
        CatalogueDeniedError
            The certificate cannot be read, or has expired.
        """
        import httpx

        folder, shown = self.options.ca_folder, self.options.x509_file
        if folder is None:
            context = httpx.create_ssl_context()
        else:
            context = ssl.create_default_context(capath=folder)
        if shown is not None:
            try:
                _check_time(shown)
                # without a password here, OpenSSL would ask for one at the terminal
                context.load_cert_chain(shown, self.options.x509_key_file, password="")
            except (OSError, ValueError) as error:
                raise CatalogueDeniedError(
                    f"the certificate in {shown} cannot be used for {self._url}: {error}"
                ) from error
        return context

    async def _check_state(self, client: "httpx.AsyncClient", name: str) -> None:
        """Check that a dataset exists, and that its files may be used.

        Raises
        ------
        DatasetError
            The dataset does not exist, or its state in DBS does not allow to use it.
        """
        found = await self._all(client, "datasets", dataset=name, dataset_access_type="*", detail=1)
        if not found:
            raise UnknownDatasetError(f"there is no dataset {name} in {self._url}")
        state = str(self._field(found[0], "dataset_access_type"))
        if state not in _READABLE:
            raise DatasetError(f"{name} is {state} in DBS, so it may not be used")

    async def _count(self, client: "httpx.AsyncClient", name: str) -> int:
        found = await self._all(client, "filesummaries", dataset=name, validFileOnly=1)
        return number(self._field(found[0], "num_file")) if found else 0

    async def _in_order(
        self, client: "httpx.AsyncClient", blocks: Sequence[str], prefetch: ReplicaPrefetch
    ) -> AsyncGenerator[InputFile, None]:
        """Yield the files of blocks in order; some blocks are queried concurrently."""
        asked: deque[asyncio.Task[list[InputFile]]] = deque()
        left = iter(range(len(blocks)))
        try:
            while True:
                while len(asked) < self.options.at_once and (nth := next(left, None)) is not None:
                    block = self._block(client, blocks[nth], nth, prefetch)
                    asked.append(asyncio.create_task(block))
                if not asked:
                    return
                await asyncio.wait([asked[0]])  # not awaited directly: a cancellation must end all
                for file in asked[0].result():
                    yield file
                asked.popleft()
        finally:
            if asked:
                prefetch.abort()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _block(
        self, client: "httpx.AsyncClient", name: str, nth: int, prefetch: ReplicaPrefetch
    ) -> list[InputFile]:
        rows, places = await asyncio.gather(
            self._all(client, "files", block_name=name, detail=1, validFileOnly=1),
            prefetch.of(nth),
            return_exceptions=True,  # so that both are awaited
        )
        for one in (rows, places):
            if isinstance(one, BaseException):
                raise one
        return sorted(self._files(rows, places), key=lambda file: file.name)

    def _files(self, rows: Iterable[Any], places: ReplicasByFile) -> Iterable[InputFile]:
        for row in rows:
            name = str(self._field(row, "logical_file_name"))
            yield InputFile(
                (*places.get(name, ()), self._redirected(name)),
                size=number(row.get("file_size")),
                events=number(row.get("event_count")),
                adler32=adler32(row.get("adler32")),
                name=name,
            )

    def _redirected(self, name: str) -> Replica:
        redirector = str(self.options.redirector).rstrip("/")
        return Replica(f"{redirector}//{name.lstrip('/')}")

    async def _all(self, client: "httpx.AsyncClient", what: str, **query: str | int) -> list[Any]:
        """Return the rows of an answer, which is a stream of lines.

        Raises
        ------
        CatalogueError
            The server refuses the query, or its answer is incomplete.
        """
        rows: Any
        with asking(self._url, self.options.seconds):
            async with client.stream(
                "GET", what, params=query, headers={"Accept": "application/ndjson"}
            ) as answer:
                if not answer.is_success:
                    raise self._refused(answer.status_code, await answer.aread())
                if "ndjson" in answer.headers.get("Content-Type", ""):
                    lines = answer.aiter_lines()
                    rows = [self._parsed(what, line) async for line in lines if line.strip()]
                else:
                    rows = self._parsed(what, await answer.aread())
        # an error after the first row has the status 200, and is in the row
        rows = rows if isinstance(rows, list) else [rows]
        for row in rows:
            wrong = row[0] if isinstance(row, list) and row else row
            if not isinstance(wrong, dict) or "error" in wrong or "exception" in wrong:
                raise CatalogueError(f"{self._url}: the answer for {what} failed: {_reason(wrong)}")
        return list(rows)

    def _parsed(self, what: str, text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise CatalogueError(
                f"{self._url}: the answer for {what} ends in the middle of a row: {error}"
            ) from error

    def _field(self, row: Any, name: str) -> Any:
        if row.get(name) is None:
            raise CatalogueError(f"{self._url}: a row of the answer has no {name}")
        return row[name]

    def _refused(self, status: int, body: bytes) -> CatalogueError:
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return CatalogueDeniedError(f"{self._url} redirects to another page", hint=self._shown)
        try:
            said = json.loads(body)
        except ValueError:
            said = body[:300].decode(errors="replace")
        # the current server sends a list with one object, the former one sent the object
        only = said[0] if isinstance(said, list) and said else said
        return refusal(self._url, status, _reason(only), hint=self._shown)


def _reason(said: Any) -> str:
    """Return the reason in an error of DBS (dbs2go: web/handlers.go, dbs/errors.go)."""
    if not isinstance(said, dict):
        return str(said)[:300]
    inner = said.get("error")
    reason = inner.get("reason") if isinstance(inner, dict) else None
    return str(reason or said.get("message") or said)[:300]


def _check_time(path: Path) -> None:
    """Check that no certificate in a file has expired.

    Raises
    ------
    CatalogueDeniedError
        One has expired; the message says when.
    """
    end = end_of(path)
    if end < now():
        raise CatalogueDeniedError(
            f"the certificate in {path} expired at {end:%Y-%m-%d %H:%M} UTC",
            hint="renew it, for instance with voms-proxy-init",
        )
