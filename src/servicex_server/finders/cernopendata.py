"""Records of the CERN Open Data portal: ``cernopendata://12341``, by number, DOI or title."""

import logging
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from pydantic import Field

from servicex_server.errors import CatalogueError, DatasetError, UnknownDatasetError
from servicex_server.finders.contract import (
    Finder,
    FinderOptions,
    adler32,
    asking,
    number,
    refusal,
)
from servicex_server.model import InputFile, Replica
from servicex_server.text.hints import did_you_mean

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

_LOOKS_LIKE = (
    "write cernopendata://12341, or the DOI or the title of a record instead of its number"
)

_EOS = "root://eospublic.cern.ch/"
"""Prefix of files that the portal also serves by HTTP, under the rest of the path
(cernopendata-client: config)."""

_HITS = 50
"""Hits of a search by title that are compared, as the search finds titles that contain the text."""


class CernOpenDataOptions(FinderOptions):
    """What an operator chooses, as ``finders: {cernopendata: {url: ...}}`` in the settings."""

    url: str = Field(default="https://opendata.cern.ch", pattern="^https?://[^/]")
    """URL of the portal."""

    seconds: float = Field(default=60.0, gt=0, le=3600)
    """Seconds that the portal may go without sending data."""


class CernOpenData(Finder):
    """Yields the ROOT files of a record that are on disk, with XRootD and HTTP replicas."""

    scheme: ClassVar[str] = "cernopendata"
    Options = CernOpenDataOptions

    def check(self, reference: str) -> None:
        """Reject a reference that is not a record."""
        if not reference.strip():
            raise DatasetError("did: cernopendata:// names no record", hint=_LOOKS_LIKE)
        if re.match(r"\w+://", reference):
            raise DatasetError(f"did: {reference[:200]!r} is a URL", hint=_LOOKS_LIKE)

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield the files of a record, in its order."""
        import httpx

        async with httpx.AsyncClient(
            base_url=self._url,
            timeout=self.options.seconds,
            follow_redirects=True,
            event_hooks={"request": [self._check_host]},
        ) as client:
            recid = reference.strip()
            if not re.fullmatch(r"[0-9]+", recid):
                recid = await self._search(client, recid)
            record = await self._get(client, f"/api/records/{recid}")
        if record is None:
            raise UnknownDatasetError(f"there is no record {recid} at {self._url}")
        for file in self._on_disk(recid, record):
            yield file

    @property
    def _url(self) -> str:
        return str(self.options.url).rstrip("/")

    async def _check_host(self, request: "httpx.Request") -> None:
        """Reject a redirect to another host, as the operator chose this one."""
        import httpx

        host = httpx.URL(self._url).host
        if request.url.host != host:
            raise CatalogueError(
                f"{self._url} redirects to {request.url.host}",
                hint=f"redirects are followed on {host} only; see finders.cernopendata.url",
            )

    async def _get(self, client: "httpx.AsyncClient", path: str, **query: str | int) -> Any:
        """Return an answer; None if the path does not exist."""
        with asking(self._url, self.options.seconds):
            answer = await client.get(path, params=query)
        if answer.status_code in (404, 410):
            return None
        if not answer.is_success:
            raise refusal(self._url, answer.status_code, answer.reason_phrase)
        try:
            return answer.json()
        except ValueError as error:
            raise self._nonsense(str(answer.url), error) from error

    async def _search(self, client: "httpx.AsyncClient", text: str) -> str:
        """Return the number of the record with a DOI or a title.

        Raises
        ------
        UnknownDatasetError
            No record has it; the hint names similar ones.
        DatasetError
            Several records have it.
        """
        doi = re.fullmatch(r"(?:doi:)?(10\.[0-9]{4,9}/\S+)", text, re.IGNORECASE)
        field, value = ("doi", doi[1]) if doi else ("title", text)
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        found = await self._get(
            client, "/api/records", page=1, size=_HITS, skip_files=1, q=f'{field}:"{quoted}"'
        )
        try:
            hits = {
                str(one["id"]): str(one["metadata"].get(field, "")) for one in found["hits"]["hits"]
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise self._nonsense(f"a search for {text!r}", error) from error
        same = [recid for recid, one in hits.items() if one.casefold() == value.casefold()]
        if len(same) == 1:
            return same[0]
        if same:
            raise DatasetError(
                f"{len(same)} records have the {field} {value!r}",
                hint=f"name one of them: {', '.join(same)}",
            )
        raise UnknownDatasetError(
            f"no record at {self._url} has the {field} {value!r}",
            hint=did_you_mean(value, hits.values(), otherwise="there are") if hits else _LOOKS_LIKE,
        )

    def _on_disk(self, recid: str, record: Any) -> Iterator[InputFile]:
        """Yield the readable files of a record.

        Raises
        ------
        DatasetError
            No file of the record is readable; the message says why.
        """
        try:
            files = {
                str(one["uri"]): one
                for one in self._entries(record["metadata"])
                if str(one["uri"]).endswith(".root")
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise self._nonsense(f"record {recid}", error) from error
        on_tape = sum(map(_is_on_tape, files.values()))
        if not files:
            raise DatasetError(f"record {recid} has no ROOT files")
        if on_tape == len(files):
            raise DatasetError(
                f"record {recid} is on tape",
                hint=f"request staging at {self._url}/record/{recid}, and submit again afterwards",
            )
        if on_tape:
            log.warning(
                "record %s: %d of %d files are on tape and are skipped",
                recid,
                on_tape,
                len(files),
            )
        for uri, one in files.items():
            if not _is_on_tape(one):
                yield self._file(uri, one)

    def _entries(self, metadata: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the entries of a record, and of its file indices, which large records have."""
        yield from metadata.get("files") or ()
        for index in metadata.get("_file_indices") or ():
            if len(index["files"]) < number(index.get("number_files")):
                raise CatalogueError(f"{self._url}: the file index {index['key']} is incomplete")
            yield from index["files"]

    def _file(self, uri: str, entry: Mapping[str, Any]) -> InputFile:
        replicas = [Replica(uri)]
        if uri.startswith(_EOS):
            path = quote(uri.removeprefix(_EOS).lstrip("/"))
            replicas.append(Replica(f"{self._url}/{path}"))
        return InputFile(
            tuple(replicas),
            size=number(entry.get("size")),
            adler32=adler32(entry.get("checksum")),
            name=re.sub(r"^\w+://[^/]+/+", "/", uri),
        )

    def _nonsense(self, what: str, error: Exception) -> CatalogueError:
        return CatalogueError(
            f"{self._url}: invalid answer for {what}: {type(error).__name__}: {error}"
        )


def _is_on_tape(entry: Mapping[str, Any]) -> bool:
    """Whether a file has to be staged (portal: FileAvailability, and its tag)."""
    return entry.get("availability") == "on demand" or "hot_deleted" in (entry.get("tags") or ())
