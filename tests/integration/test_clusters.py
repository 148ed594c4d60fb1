"""The reader gives the entries of RNTuple clusters as uproot does, or raises an error."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from servicex_server.columnar.plan import parts
from servicex_server.columnar.reading import rntuple_pages
from servicex_server.columnar.reading.trees import RNTupleTree, open_root
from servicex_server.errors import CorruptError
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat
from tests.samples import coffea_samples

EVENTS = 3_000
CLUSTER = 700


@pytest.mark.timeout(300)
def test_every_field_of_the_samples_is_read_as_by_uproot() -> None:
    """Values and types agree for the fields of real RNTuples, in any range."""
    compared = 0
    for path in sorted(coffea_samples().glob("*rntuple*.root")):
        with uproot.open(path) as plain_file, open_root(str(path)) as file:
            for tree_name in file.trees:
                tree = file.tree(tree_name)
                middle = tree.entries // 2
                fields = {f.path: f for f in plain_file[tree_name].all_fields if f.path}
                # not all: neighbours are alike
                for name in list(fields)[::17]:
                    expected = fields[name].array()
                    for start, stop in ((0, tree.entries), (middle, tree.entries), (0, 0)):
                        got = tree.read([name], start, stop)[name]
                        assert got.type.content == expected.type.content, (path.name, name)
                        assert ak.array_equal(got, expected[start:stop], equal_nan=True)
                    compared += 1
    assert compared > 100


@pytest.fixture(scope="module", params=["zlib", "zstd", "lz4", "none"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of an RNTuple of all kinds of field, in several clusters."""
    codecs = {"zlib": uproot.ZLIB(1), "zstd": uproot.ZSTD(1), "lz4": uproot.LZ4(1), "none": None}
    path = tmp_path_factory.mktemp("made") / f"{request.param}.root"
    rng = np.random.default_rng(11)
    lists = ak.Array([list(range(n)) for n in rng.poisson(2, EVENTS)])
    whole = {
        **{k: rng.integers(0, 100, EVENTS).astype(k) for k in ("int8", "uint16", "int32", "int64")},
        "float32": rng.normal(size=EVENTS).astype("f4"),
        "bool": rng.random(EVENTS) < 0.3,
        "list": lists,
        "nested": ak.Array([[[1.5] * (n % 3)] * (n % 4) for n in range(EVENTS)]),
        "text": ak.Array([f"event {n}" * (n % 3) for n in range(EVENTS)]),
        "option": ak.Array([None if n % 5 else n for n in range(EVENTS)]),
        "objects": ak.zip({"a": lists, "b": lists * 0.5}),
    }
    with uproot.recreate(path, compression=codecs[request.param]) as file:
        ntuple = None
        for start in range(0, EVENTS, CLUSTER):
            part = {name: column[start : start + CLUSTER] for name, column in whole.items()}
            if ntuple is None:
                ntuple = file.mkrntuple("events", part)
            else:
                ntuple.extend(part)
    return path


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_ranges_in_any_order_have_the_values_of_uproot(made: Path, data: st.DataObject) -> None:
    """Values that the reader keeps of one range never appear in another."""
    names = data.draw(st.lists(st.sampled_from(["list", "text", "objects.b", "option", "bool"])))
    with uproot.open(made) as plain, open_root(str(made)) as file:
        tree = file.tree("events")
        for _ in range(4):
            start = data.draw(st.integers(0, EVENTS))
            stop = data.draw(st.integers(start, EVENTS))
            got = tree.read(list(dict.fromkeys(names)), start, stop)
            for name, array in got.items():
                whole = plain["events"][name].array()
                assert ak.array_equal(array, whole[start:stop], equal_nan=True), name


def test_chunks_of_all_fields_add_up_to_the_whole(made: Path) -> None:
    """Ranges that end with a cluster, and others, together have the values of uproot."""
    with uproot.open(made) as plain, open_root(str(made)) as file:
        tree = file.tree("events")
        names = tree.select((), ()).names
        bounds = [0, 100, CLUSTER, 2 * CLUSTER, 2 * CLUSTER + 1, EVENTS]
        pieces = [tree.read(names, start, stop) for start, stop in pairwise(bounds)]
        for name in names:
            expected = plain["events"][name].array()
            got = ak.concatenate([piece[name] for piece in pieces])
            assert ak.array_equal(got, expected, equal_nan=True), name


def test_a_page_is_decoded_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that cut through clusters do not decompress their pages again."""
    decoded: list[int] = []
    decode = rntuple_pages._decode

    def counted(page: Any, *rest: Any) -> None:
        decoded.append(page.locator.offset)
        decode(page, *rest)

    monkeypatch.setattr(rntuple_pages, "_decode", counted)
    with open_root(str(made)) as file:
        tree = file.tree("events")
        for start in range(0, EVENTS, 250):
            tree.read(["float32", "objects"], start, min(start + 250, EVENTS))
    assert len(decoded) == len(set(decoded)) >= 4 * (EVENTS // CLUSTER)


def test_sizes_are_known_before_a_read(made: Path) -> None:
    """The splits of a large RNTuple begin where its clusters begin."""
    (extraction,) = (
        UprootRaw().compile('[{"treename": "events"}]', ResultFormat.PARQUET).extractions
    )
    with open_root(str(made)) as file:
        tree = file.tree("events")
        assert tree.bytes_per_entry(["int64"]) == 8
        assert tree.bytes_per_entry(["int8", "float32"]) == 5
        size = round(tree.bytes_per_entry(tree.select((), ()).names) * EVENTS)
        found = parts(extraction.bind(tree), tree, size=size // 3)
    assert [start % CLUSTER for start, _ in found] == [0, 0, 0]
    assert found[-1][1] == EVENTS


@pytest.mark.parametrize("at", [0, 5, -1])
def test_error_of_a_corrupt_page_names_its_field(tmp_path: Path, at: int) -> None:
    """The checksum that ROOT writes shows a single wrong byte."""
    content = bytearray((coffea_samples() / "pfnano_rntuple.root").read_bytes())
    path = tmp_path / "corrupt.root"
    path.write_bytes(content)
    with open_root(str(path)) as file:
        tree = file.tree("Events")
        assert isinstance(tree, RNTupleTree)
        *_, values = tree._page_reader._columns_of([tree.names["Jet_pt"]])
        ((start, stop),) = tree._page_reader._spans(0, values)
    content[range(start, stop - 8)[at]] ^= 0x01
    path.write_bytes(content)
    with open_root(str(path)) as file:
        tree = file.tree("Events")
        assert len(tree.read(["run"], 0, tree.entries)["run"]) == tree.entries
        with pytest.raises(CorruptError, match=r"field Jet_pt of .*corrupt.root is corrupt"):
            tree.read(["run", "Jet_pt"], 0, tree.entries)
