"""Records of CERN Open Data as files.

A stand-in answers, because these tests cannot reach the portal. It follows the code of the portal
and of its client: `cernopendata-portal` (records, file indices, cold storage) and
`cernopendata-client` (search, protocols). The tests do not show that the portal itself does so.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    ServiceXError,
    UnknownDatasetError,
)
from servicex_server.finders.cernopendata import CernOpenData, CernOpenDataOptions
from servicex_server.model import InputFile
from tests.integration.servers import Answer, Asked, StandIn, free_port, stand_in

pytestmark = pytest.mark.anyio

EOS = "root://eospublic.cern.ch//eos/opendata/cms"
TITLE = "/HIDiMuon/HIRun2011-04Mar2013-v1/RECO"
DOI = "10.7483/OPENDATA.CMS.LVG5.QT81"


def entry(name: str, **more: Any) -> dict[str, Any]:
    """Return an entry of a list of files in the form of the portal."""
    return {
        "key": name.rpartition("/")[2],
        "uri": f"{EOS}/{name}",
        "size": 1000 + len(name),
        "checksum": "adler32:1fa61aca",
        "availability": "online",
        "tags": {},
    } | more


def index(*files: dict[str, Any], number: int | None = None) -> dict[str, Any]:
    """Return one of the lists of files of a large record."""
    return {
        "key": "CMS_file_index.json",
        "number_files": len(files) if number is None else number,
        "size": sum(one["size"] for one in files),
        "availability": {},
        "description": "",
        "files": list(files),
    }


@dataclass
class Portal:
    """Records by their number, in the form of the portal; a test may make it fail."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: Answer | None = None

    def __call__(self, asked: Asked) -> Answer:
        if self.wrong is not None:
            return self.wrong
        if asked.path == "/api/records":
            return self._search(asked.query)
        if (recid := asked.path.removeprefix("/api/records/")) not in self.records:
            return Answer(b'{"status": 404, "message": "PID does not exist."}', 404)
        return Answer(json.dumps({"id": recid, "metadata": self.records[recid]}).encode())

    def _search(self, query: Any) -> Answer:
        name, _, value = query["q"].partition(":")
        phrase = json.loads(value)
        hits = [
            {"id": recid, "metadata": {k: v for k, v in record.items() if "file" not in k}}
            for recid, record in self.records.items()
            if phrase in record.get(name, "")
        ]
        hits = hits[: int(query["size"])]
        return Answer(json.dumps({"hits": {"total": len(hits), "hits": hits}}).encode())


@pytest.fixture
def portal() -> Portal:
    """Give the records of the stand-in."""
    return Portal()


@pytest.fixture
def served(portal: Portal) -> Iterator[StandIn]:
    """Give the stand-in."""
    with stand_in(portal) as running:
        yield running


@pytest.fixture
def finder(served: StandIn) -> CernOpenData:
    """Give a finder that asks the stand-in."""
    return CernOpenData(CernOpenDataOptions(url=served.url, seconds=5))


async def files_of(finder: CernOpenData, reference: str) -> list[InputFile]:
    finder.check(reference)
    return [file async for file in finder.find(reference)]


async def fault_of(finder: CernOpenData, reference: str) -> ServiceXError:
    with pytest.raises(ServiceXError) as caught:
        await files_of(finder, reference)
    return caught.value


@pytest.mark.parametrize("url", ["", "/"])
async def test_record_is_found_by_its_number(
    portal: Portal, served: StandIn, finder: CernOpenData, url: str
) -> None:
    """Each file has its size, its checksum, and two replicas: XRootD first, HTTP second."""
    portal.records["12341"] = {"files": [entry("Run2012BC DoubleMuParked#1.root")]}
    finder = CernOpenData(CernOpenDataOptions(url=served.url + url))
    (file,) = await files_of(finder, "12341")
    assert [replica.url for replica in file.replicas] == [
        f"{EOS}/Run2012BC DoubleMuParked#1.root",
        f"{served.url}/eos/opendata/cms/Run2012BC%20DoubleMuParked%231.root",
    ]
    assert file.name == "/eos/opendata/cms/Run2012BC DoubleMuParked#1.root"
    assert (file.size, file.events, file.adler32) == (1031, 0, "1fa61aca")
    assert [asked.path for asked in served.asked] == ["/api/records/12341"]


async def test_file_indices_follow_the_files_of_a_record_without_duplicates(
    portal: Portal, finder: CernOpenData
) -> None:
    portal.records["80000"] = {
        "files": [entry("a.root")],
        "_file_indices": [
            index(entry("b/1.root"), entry("b/2.root")),
            index(entry("c/1.root"), entry("b/1.root")),
        ],
    }
    found = await files_of(finder, "80000")
    names = [file.name.removeprefix("/eos/opendata/cms/") for file in found]
    assert names == ["a.root", "b/1.root", "b/2.root", "c/1.root"]


async def test_finder_omits_files_without_readable_events(
    portal: Portal, finder: CernOpenData
) -> None:
    portal.records["5"] = {
        "files": [
            entry("index.json", type="index.json"),
            entry("index.txt", type="index.txt"),
            entry("README.md"),
            entry("good.root", availability=None),
            entry("tape.root", availability="on demand"),
            entry("deleted.root", tags={"hot_deleted": "2026-01-01"}),
        ]
    }
    (file,) = await files_of(finder, "5")
    assert file.name.endswith("/good.root")


@pytest.mark.parametrize(
    ("checksum", "expected"),
    [
        ("adler32:fa61aca", "0fa61aca"),
        ("adler32:1FA61ACA", "1fa61aca"),
        ("sha1:da39a3ee", None),
        ("", None),
        (None, None),
    ],
)
async def test_checksum_has_eight_digits_or_is_omitted(
    portal: Portal, finder: CernOpenData, checksum: str | None, expected: str | None
) -> None:
    portal.records["5"] = {"files": [entry("a.root", checksum=checksum, size=None)]}
    (file,) = await files_of(finder, "5")
    assert (file.adler32, file.size) == (expected, 0)


@pytest.mark.parametrize("reference", [DOI, f"doi:{DOI}", DOI.lower(), TITLE])
async def test_record_is_found_by_its_doi_or_its_title(
    portal: Portal, served: StandIn, finder: CernOpenData, reference: str
) -> None:
    """A record whose title only contains the given one is another record."""
    doi = reference.removeprefix("doi:") if "OPENDATA" in reference.upper() else DOI
    portal.records["14012"] = {"title": TITLE, "doi": doi, "files": [entry("a.root")]}
    portal.records["14013"] = {"title": f"{TITLE}-again", "doi": f"{doi}X", "files": []}
    (file,) = await files_of(finder, reference)
    assert file.name.endswith("/a.root")
    assert [asked.path for asked in served.asked] == ["/api/records", "/api/records/14012"]
    assert "skip_files" in served.asked[0].query


async def test_quotes_in_a_title_are_escaped(portal: Portal, finder: CernOpenData) -> None:
    title = r'the "golden" \ channel'
    portal.records["7"] = {"title": title, "files": [entry("a.root")]}
    assert len(await files_of(finder, title)) == 1


async def test_title_of_several_records_is_rejected_with_their_numbers(
    portal: Portal, finder: CernOpenData
) -> None:
    portal.records |= {"1": {"title": "Muons"}, "2": {"title": "Muons"}}
    error = await fault_of(finder, "Muons")
    assert type(error) is DatasetError
    assert "1, 2" in error.hint


@pytest.mark.parametrize("reference", ["99999", "10.7483/NO.SUCH", "HIDiMuon", "nothing at all"])
async def test_unknown_record_is_an_unknown_dataset(
    portal: Portal, finder: CernOpenData, reference: str
) -> None:
    portal.records["14012"] = {"title": TITLE, "files": [entry("a.root")]}
    error = await fault_of(finder, reference)
    assert type(error) is UnknownDatasetError
    assert reference in error.message
    assert (TITLE in error.hint) == (reference == "HIDiMuon")


async def test_record_on_tape_is_rejected_with_a_hint(
    portal: Portal, served: StandIn, finder: CernOpenData
) -> None:
    files = [entry(f"{n}.root", availability="on demand") for n in range(3)]
    portal.records["30"] = {"availability": "on demand", "_file_indices": [index(*files)]}
    error = await fault_of(finder, "30")
    assert type(error) is DatasetError
    assert error.message == "record 30 is on tape"
    assert f"{served.url}/record/30" in error.hint


async def test_record_without_root_files_is_rejected(portal: Portal, finder: CernOpenData) -> None:
    portal.records["40"] = {"files": [entry("slides.pdf")]}
    error = await fault_of(finder, "40")
    assert type(error) is DatasetError
    assert "has no ROOT files" in error.message


@pytest.mark.parametrize("reference", ["", "  ", "https://opendata.cern.ch/record/12341"])
def test_invalid_reference_is_rejected_without_a_call(reference: str) -> None:
    with pytest.raises(DatasetError, match=r"^did: .*cernopendata://12341"):
        CernOpenData().check(reference)


def truncated(body: bytes) -> Answer:
    return Answer(body, sent=len(body) // 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Answer(b"this is an error page", 503), "status 503"),
        (Answer(b"slow down", 429), "status 429"),
        (Answer(b"<html>welcome</html>"), "invalid answer"),
        (Answer(b"[]"), "invalid answer"),
        (Answer(b'{"metadata": {"files": [{"key": "a.root"}]}}'), "invalid answer"),
        (Answer(b'{"metadata": {"files": 3}}'), "invalid answer"),
        (truncated(b'{"metadata": {"files": []}}'), "failed: "),
    ],
)
@pytest.mark.parametrize("reference", ["12341", TITLE])
async def test_error_of_a_failing_portal_is_retryable(
    portal: Portal, finder: CernOpenData, wrong: Answer, said: str, reference: str
) -> None:
    portal.wrong = wrong
    error = await fault_of(finder, reference)
    assert type(error) is CatalogueError
    assert error.retryable
    assert said in error.message


async def test_incomplete_file_index_is_an_error(portal: Portal, finder: CernOpenData) -> None:
    portal.records["80000"] = {"_file_indices": [index(entry("a.root"), number=2)]}
    error = await fault_of(finder, "80000")
    assert type(error) is CatalogueError
    assert "file index CMS_file_index.json is incomplete" in error.message


async def test_refusal_of_the_portal_is_not_retryable(portal: Portal, finder: CernOpenData) -> None:
    portal.wrong = Answer(b"", 403)
    error = await fault_of(finder, "1")
    assert type(error) is CatalogueDeniedError
    assert not error.retryable


async def test_silent_portal_times_out(portal: Portal, served: StandIn) -> None:
    portal.wrong = Answer(None)
    began = time.monotonic()
    error = await fault_of(CernOpenData(CernOpenDataOptions(url=served.url, seconds=0.5)), "1")
    assert time.monotonic() - began < 5
    assert type(error) is CatalogueError
    assert "did not answer within 0.5 s" in error.message


async def test_unreachable_portal_is_an_error() -> None:
    options = CernOpenDataOptions(url=f"http://127.0.0.1:{free_port()}")
    error = await fault_of(CernOpenData(options), "1")
    assert type(error) is CatalogueError
    assert "failed: " in error.message
