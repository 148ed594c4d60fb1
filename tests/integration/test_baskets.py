"""The reader gives the entries of baskets as uproot does, for any range, or raises an error."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from servicex_server.columnar.reading.decompression import DecompressionError, decompress
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import ServiceXError
from tests.support import sample

EVENTS = 5_000


@pytest.fixture(scope="module", params=["zlib", "zstd", "lz4", "lzma", "none"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of all kinds of branch, in many baskets, compressed in one way."""
    kinds = {
        "zlib": uproot.ZLIB(1),
        "zstd": uproot.ZSTD(1),
        "lz4": uproot.LZ4(1),
        "lzma": uproot.LZMA(1),
        "none": None,
    }
    path = tmp_path_factory.mktemp("made") / f"{request.param}.root"
    rng = np.random.default_rng(7)
    with uproot.recreate(path, compression=kinds[request.param]) as file:
        columns = {
            "i1": "int8",
            "u2": "uint16",
            "i4": "int32",
            "i8": "int64",
            "f4": "float32",
            "f8": "float64",
            "b": "bool",
            "jf": "var * float32",
            "ji": "var * int64",
            "s": "string",
        }
        tree = file.mktree("events", dict(columns))
        for start in range(0, EVENTS, 700):
            count = min(700, EVENTS - start)
            lists = rng.poisson(1.5, count)
            batch: dict[str, Any] = {
                name: rng.integers(0, 100, count).astype(kind)
                for name, kind in columns.items()
                if "var" not in kind and kind != "string"
            }
            total = int(lists.sum())
            batch["jf"] = ak.unflatten(rng.normal(size=total).astype("f4"), lists)
            batch["ji"] = ak.unflatten(rng.integers(-9, 9, total), lists)
            batch["s"] = ak.Array(["x" * int(n) for n in lists])
            tree.extend(batch)
    return path


@settings(max_examples=30, deadline=None)
@given(edges=st.lists(st.integers(0, EVENTS), min_size=2, max_size=6))
def test_any_ranges_have_the_entries_of_uproot(made: Path, edges: list[int]) -> None:
    """Ranges in any order, forwards or backwards, have the values that uproot reads there."""
    with uproot.open({made: "events"}) as plain, open_root(str(made)) as file:
        whole = plain.arrays()
        tree = file.tree("events")
        names = [name for name in tree.names if name in whole.fields]
        for one, other in pairwise(edges):
            start, stop = min(one, other), max(one, other)
            got = tree.read(names, start, stop)
            for name in names:
                assert str(got[name].type) == str(whole[name][start:stop].type)
                assert got[name].tolist() == whole[name][start:stop].tolist()


@pytest.mark.parametrize(
    "name",
    [
        "uproot-HZZ.root",
        "uproot-vectorVectorDouble.root",
        "uproot-issue31.root",
        "uproot-sample-6.20.04-uncompressed.root",
        "uproot-small-evnt-tree-fullsplit.root",
    ],
)
def test_empty_range_has_the_type_of_its_branch(name: str) -> None:
    """It is at the beginning, within a basket or at the end of a branch without sub-branches."""
    compared = set()
    with uproot.open(sample(name)) as plain, open_root(str(sample(name))) as file:
        path = next(iter(plain.keys(filter_classname="TTree", cycle=False)))
        tree = file.tree(path)
        for column, branch in plain[path].iteritems(full_paths=False):
            if branch.branches or column not in tree.names:
                continue
            compared.add(column)
            for at in {0, 1, tree.entries}:
                expected = branch.array(entry_start=at, entry_stop=at)
                got = tree.read([column], at, at)[column]
                assert len(got) == 0
                assert str(got.type) == str(expected.type), column
    assert compared


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 0.999), change=st.integers(1, 255))
def test_a_flipped_byte_in_a_basket_is_an_error_or_another_value(
    made: Path, place: float, change: int
) -> None:
    """Corrupt bytes never end the process or hang; an error names the branch and its file."""
    with uproot.open({made: "events"}) as plain:
        branch = plain["jf"]
        start, size = int(branch.member("fBasketSeek")[1]), int(branch.member("fBasketBytes")[1])
    content = bytearray(made.read_bytes())
    content[start + int(place * size)] ^= change
    broken = made.with_name("broken.root")
    broken.write_bytes(bytes(content))
    with open_root(str(broken)) as file:
        tree = file.tree("events")
        said = ""
        try:
            got = tree.read(["jf"], 0, EVENTS)["jf"]
        except ServiceXError as error:
            said = error.message
    assert "jf" in said if said else len(got) == EVENTS


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 4),
        (b"ZL\x08\x01\x00", 4),
        (b"ZS\x01\xff\xff\xff\x04\x00\x00abc", 4),
        (b"QQ\x01\x03\x00\x00\x04\x00\x00abc", 4),
        (b"ZL\x08\x03\x00\x00\x04\x00\x00abc", 4),
        (b"L4\x01\x0b\x00\x00\x04\x00\x00abcdefghijk", 4),
        (b"XZ\x00\x03\x00\x00\x04\x00\x00abc", 4),
        (b"ZL\x08\x03\x00\x00\x05\x00\x00abc", 4),
    ],
)
def test_invalid_compressed_blocks_are_rejected(data: bytes, size: int) -> None:
    """A wrong header, an unknown algorithm and a wrong checksum give one kind of error."""
    with pytest.raises(DecompressionError, match="cannot decompress"):
        decompress(data, size)
