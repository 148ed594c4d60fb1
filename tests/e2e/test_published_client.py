"""The published client, unchanged, against a real server: delivery and its command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from hashlib import md5
from pathlib import Path
from typing import Any

import awkward as ak
import pytest
import uproot

from tests.integration import rucio
from tests.integration.servers import put, xrootd
from tests.support import Server, sample, until

ZMUMU = sample("uproot-Zmumu.root")
HZZ = sample("uproot-HZZ.root")
SAME = sample("uproot-HZZ-zlib.root")
"""The same events as in `HZZ`, compressed otherwise."""


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Path:
    """Write a servicex.yaml with a cache of this test's own."""
    return configured(server, tmp_path)


def configured(server: Server, folder: Path) -> Path:
    """Write a servicex.yaml into a folder; the slash at the end is on purpose."""
    path = folder / "servicex.yaml"
    path.write_text(
        f"api_endpoints:\n  - name: test\n    endpoint: {server.url}/\n"
        f"cache_path: {folder / 'cache'}\n",
        encoding="utf-8",
    )
    return path


MUONS = [{"treename": "events", "filter_name": ["E1", "Q1"], "cut": "(Q1 > 0) & (E1 > 50)"}]
JETS = [{"treename": "events", "filter_name": "Jet_P*"}]
TWO_SAMPLES = {"muons": ([str(ZMUMU)], MUONS), "jets": ([str(HZZ), str(SAME)], JETS)}


def ask(
    config: Path, samples: dict[str, Any] = TWO_SAMPLES, *, region: str = "", **general: Any
) -> dict[str, Any]:
    """Deliver samples in a process of its own; a text instead of a list is an error."""
    order = {"config": str(config), "general": general, "samples": samples}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("client_program.py")), json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | ({"AWS_DEFAULT_REGION": region} if region else {}),
    )
    found = re.search(r"^DELIVERED (.*)$", ran.stdout, re.MULTILINE)
    assert found, ran.stdout + ran.stderr
    answer: dict[str, Any] = json.loads(found[1])
    return answer


def check(paths: dict[str, list[str]], read: Any) -> None:
    """Compare what was delivered with what uproot reads from the inputs."""
    with uproot.open({ZMUMU: "events"}) as tree:
        muons = tree.arrays(["E1", "Q1"], "(Q1 > 0) & (E1 > 50)")
    with uproot.open({HZZ: "events"}) as tree:
        jets = tree.arrays(filter_name="Jet_P*")
    assert [len(found) for found in (paths["muons"], paths["jets"])] == [1, 2]
    for expected, found in ((muons, paths["muons"]), (jets, paths["jets"])):
        for path in found:
            got = read(path)
            for field in expected.fields:
                assert ak.array_equal(got[field], expected[field])


def read_root(path: str) -> Any:
    """Read all columns of the only tree of a ROOT file or URL."""
    with uproot.open({path: "events"}) as tree:
        return tree.arrays()


@pytest.fixture(scope="module")
def delivered(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """Give a function that returns what is delivered in a format, of samples of all kinds."""

    @cache
    def deliver(output: str) -> dict[str, Any]:
        config = configured(server, tmp_path_factory.mktemp("delivered"))
        samples: dict[str, Any] = TWO_SAMPLES | {"func_adl": ([str(HZZ)], "func_adl")}
        if output == "parquet":
            samples |= {
                "half": ([str(HZZ), "/no/such.root"], JETS),
                "none": (["/no/such.root"], JETS),
                "wrong": ([str(ZMUMU)], [{"treename": "events", "cut": "sqroot(E1) > 3"}]),
                "python": ([str(ZMUMU)], "python"),
            }
        return ask(config, samples, OutputFormat=output)

    return deliver


@pytest.mark.long
def test_dataset_with_bad_replicas_is_delivered_completely(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Six of twenty files of Rucio have a bad replica at a site that the service reads first.

    The service delivers all files, with the same content as files without a fault. Rucio lists only
    these six as suspicious, with the reasons. In `make test`, test_replicas.py guards that no file
    is lost, and test_finder_rucio.py guards the reports to Rucio.
    """
    names = [f"data18:set.{n:02d}.root" for n in range(20)]
    content = ZMUMU.read_bytes()
    bad: dict[int, tuple[str, bytes | None]] = {
        1: ("Missing", None),
        4: ("Truncated", content[:9999]),
        7: ("Corrupt", b"x" * len(content)),
        10: ("Missing", None),
        13: ("Truncated", b""),
        16: ("Corrupt", b"root" + bytes(len(content) - 4)),
    }
    with (
        rucio.rucio() as catalogue,
        xrootd("127.0.0.2") as one,
        xrootd("127.0.0.3") as two,
        xrootd("127.0.0.4") as sound,
    ):
        catalogue.scope("data18")
        for rse, door, part in (
            ("ONE", one, names[:10]),
            ("TWO", two, names[10:]),
            ("SOUND", sound, names),
        ):
            catalogue.rse(rse, {"root": f"{door.address}:{door.port}"})
            catalogue.files(rse, part, size=len(content))
            for name in part:
                broken = bad.get(names.index(name), ("", content))[1]
                if (there := content if door is sound else broken) is not None:
                    mark = md5(name.encode(), usedforsecurity=False).hexdigest()
                    # where Rucio has files that nobody has said a place for
                    folder = door.folder / "data" / "data18" / mark[:2] / mark[2:4]
                    folder.mkdir(parents=True, exist_ok=True)
                    put(folder, name.partition(":")[2], there)
        catalogue.dataset("data18:set", names)
        options = {"URL": catalogue.url, "AUTH": "userpass", "USERNAME": rucio.ROOT}
        options |= {"PASSWORD": rucio.PASSWORD, "PREFER": '["ONE", "TWO"]'}
        server = new_server(
            *("--workers", "2"),
            SERVICEX_SERVER_REPORTS__TO_CATALOGUE="true",
            **{f"SERVICEX_SERVER_FINDERS__RUCIO__{name}": one for name, one in options.items()},
        )
        config = configured(server, tmp_path)
        samples = {"set": ("data18:set", MUONS), "clean": ([str(ZMUMU)], MUONS)}
        found = ask(config, samples, OutputFormat="parquet")
        until(lambda: len(catalogue.told("S")) == len(bad), "six replicas are suspicious")
        # whoever is told has been told: what is done is written down beside it
        until(
            lambda: all(one["reported"] for one in reported(server)), "all reports are written down"
        )
        told = catalogue.told("S")
    assert {name: reason.split(": ")[1] for name, reason in told.items()} == {
        names[number]: kind for number, (kind, _) in bad.items()
    }
    assert {one["file"] for one in reported(server)} == set(told)
    (clean,) = found["clean"]
    assert len(found["set"]) == len(names)
    assert {Path(path).read_bytes() for path in found["set"]} == {Path(clean).read_bytes()}


def reported(server: Server) -> list[dict[str, Any]]:
    """Return the bad replicas that a server knows of."""
    found: list[dict[str, Any]] = server.get("/servicex/replicas/bad").json()["replicas"]
    return found


@pytest.mark.parametrize("output", ["parquet", "root-ttree", "root-rntuple"])
def test_deliver_puts_columns_on_disk(
    delivered: Callable[[str], dict[str, Any]], output: str
) -> None:
    """The local files that deliver() names hold the columns, in each format."""
    found = delivered(output)
    check(found, ak.from_parquet if output == "parquet" else read_root)
    assert all(Path(path).is_file() for name in TWO_SAMPLES for path in found[name])


def test_client_caches_delivered_files(config: Path) -> None:
    """The next process returns the same files."""
    samples = {"muons": TWO_SAMPLES["muons"]}
    found = ask(config, samples, OutputFormat="parquet")
    assert len(found["muons"]) == 1
    assert ask(config, samples, OutputFormat="parquet") == found


def test_deliver_is_the_same_on_postgresql(postgresql_server: Server, tmp_path: Path) -> None:
    """The database makes no difference to a client, nor to the place of the results."""
    path = configured(postgresql_server, tmp_path)
    check(ask(path, OutputFormat="root-ttree"), read_root)
    rows = postgresql_server.rows("select count(*) from tasks where state = 'done'")
    assert rows[0][0] >= 3
    assert not (postgresql_server.data_dir / "servicex.sqlite").exists()


@pytest.mark.parametrize("region", [pytest.param("", marks=pytest.mark.long), "eu-central-1"])
def test_deliver_gives_urls_that_open(config: Path, region: str) -> None:
    """The client signs the links itself, with signatures of both kinds. They need no keys."""
    found = ask(config, region=region, OutputFormat="root-ttree", Delivery="URLs")
    link = found["muons"][0]
    assert ("X-Amz-Signature" if region else "AWSAccessKeyId") in link
    check(found, read_root)


def test_xrootd_pattern_is_delivered(config: Path) -> None:
    """The service finds and reads the files of a server, and reports a pattern without a match."""
    with xrootd() as door:
        for name in ("a", "b"):
            (door.folder / name).mkdir()
            put(door.folder / name, "muons, 50%.root", ZMUMU)
        samples = {"two": (door.url("*/*.root"), MUONS), "none": (door.url("c/*.root"), MUONS)}
        found = ask(config, samples, OutputFormat="parquet")
    with uproot.open({ZMUMU: "events"}) as tree:
        expected = tree.arrays(["E1", "Q1"], "(Q1 > 0) & (E1 > 50)")
    assert len(found["two"]) == 2
    assert all(ak.array_equal(ak.from_parquet(path).E1, expected.E1) for path in found["two"])
    assert "Dataset does not exist" in found["none"]


def test_deliver_reports_failed_files(delivered: Callable[[str], dict[str, Any]]) -> None:
    """deliver() returns the other results, and raises an error if every file failed."""
    found = delivered("parquet")
    assert len(found["half"]) == 1
    assert "Fatal issue in ServiceX server" in found["none"]


def test_deliver_reports_a_wrong_query(delivered: Callable[[str], dict[str, Any]]) -> None:
    """The user gets the message of the server, and the results of the other samples."""
    assert "did you mean sqrt" in delivered("parquet")["wrong"]


def test_deliver_reports_a_misspelt_branch_at_once(server: Server, config: Path) -> None:
    """deliver() raises an error with the nearest names."""
    wrong = [{"treename": "events", "filter_name": ["E1", "Q1"], "cut": "E11 > 3"}]
    server.refused(selection=json.dumps(wrong))  # by now the workers answer in time
    before = server.counts()
    said = ask(config, {"wrong": ([str(ZMUMU)], wrong)})["wrong"]
    assert "tree events has no branch E11 (did you mean E1" in said
    assert server.counts() == before


def test_python_function_runs_on_every_file(delivered: Callable[[str], dict[str, Any]]) -> None:
    """The user gets the columns that the function returns."""
    (path,) = delivered("parquet")["python"]
    with uproot.open({ZMUMU: "events"}) as tree:
        expected = tree["E1"].array()
    assert ak.array_equal(ak.from_parquet(path)["E1"], expected)


@pytest.mark.parametrize(
    "output",
    [
        "parquet",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("root-ttree", "root-rntuple")),
    ],
)
def test_func_adl_query_delivers_its_columns(
    delivered: Callable[[str], dict[str, Any]], output: str
) -> None:
    """The tree has the name that users of upstream know."""
    (path,) = delivered(output)["func_adl"]
    got = ak.from_parquet(path) if output == "parquet" else uproot.open(path)["servicex"].arrays()
    with uproot.open({HZZ: "events"}) as tree:
        events = tree.arrays(["NJet", "Jet_Px"], "NJet > 2")
    assert got.n.tolist() == events.NJet.tolist()
    assert got.px.tolist() == events.Jet_Px[events.Jet_Px > 20].tolist()


def command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the client's own command line."""
    script = Path(sys.executable).with_name("servicex")
    return subprocess.run(
        [str(script), *words, "-c", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=config.parent,
        env=os.environ | {"COLUMNS": "300", "NO_COLOR": "1"},
    )


def test_the_command_line_lists_and_downloads(server: Server, config: Path) -> None:
    """``transforms list|files|download`` and ``codegen list`` show what the server has."""
    status = server.run(title="for the command line")
    request_id = status["request_id"]
    listed = command(config, "transforms", "list")
    assert request_id in listed.stdout, listed.stderr
    assert "for the command line" in listed.stdout
    (name,) = [one["s3-object-name"] for one in server.results(request_id)]
    files = command(config, "transforms", "files", request_id)
    assert name in files.stdout, files.stderr
    command(config, "transforms", "download", request_id)
    (content,) = server.stored(request_id)
    (downloaded,) = config.parent.rglob(name)
    assert downloaded.read_bytes() == content.read_bytes()
    codegens = command(config, "codegen", "list")
    assert {"python", "uproot-raw"} <= set(json.loads(codegens.stdout)), codegens.stderr


def test_the_command_line_cancels_and_deletes(server: Server, config: Path) -> None:
    """``transforms cancel`` and ``delete`` change the server, whatever the client prints then."""
    slow = "import time; time.sleep(600)"
    import base64

    source = f"def run_query(path):\n    {slow}\n"
    answer = server.submit(codegen="python", selection=base64.b64encode(source.encode()).decode())
    request_id = answer.json()["request_id"]
    command(config, "transforms", "cancel", request_id)
    assert server.wait(request_id, seconds=5)["status"] == "Canceled"
    command(config, "transforms", "delete", request_id)
    assert server.get(f"/servicex/transformation/{request_id}").status_code == 404
    # the worker that was busy with it is free again
    assert server.run()["status"] == "Complete"


def test_the_command_line_lists_and_deletes_datasets(server: Server, config: Path) -> None:
    """``datasets list|get|delete`` list a dataset, show its files, and delete it."""
    dataset_id = str(
        server.run(file_list=[str(HZZ)], selection='[{"treename": "events"}]')["did_id"]
    )
    assert re.search(rf"\b{dataset_id}\b", command(config, "datasets", "list").stdout)
    assert str(HZZ) in command(config, "datasets", "get", dataset_id).stdout.replace("\n", "")
    command(config, "datasets", "delete", dataset_id)
    assert server.get(f"/servicex/datasets/{dataset_id}").json()["is_stale"] is True
