"""A tree opens without parsing unused branches, and is otherwise as uproot opens it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.reading.lazy_branches import _Elements
from servicex_server.columnar.reading.sources import open_source
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import (
    CorruptError,
    ServiceXError,
    UnknownNameError,
    UnreadableError,
)
from tests.samples import coffea_samples
from tests.support import sample

FILES = sorted(sample("").glob("*.root"))
SHOWN_EVERY = 7
"""Of the branches of a file every so many are compared in full."""


def trees(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the TTrees that plain uproot can open."""
    try:
        file = uproot.open(path)
    except (OSError, ValueError, KeyError, uproot.DeserializationError):
        return
    with file:
        for name, kind in file.classnames(cycle=False).items():
            if kind in ("TTree", "TNtuple", "TNtupleD"):
                try:
                    tree = file[name]
                except (ValueError, NotImplementedError, uproot.DeserializationError):
                    continue
                yield name, tree


def told(branch: Any) -> tuple[Any, ...]:
    """Return all that reading needs of a branch."""
    counts = branch.count_branch
    try:
        interpretation = re.sub("0x[0-9a-f]+", "", repr(branch.interpretation))
    except KeyError as error:  # a defect of uproot, which is the same in both
        interpretation = repr(error)
    return (
        branch.name,
        branch.object_path,
        interpretation,
        branch.num_baskets,
        branch.num_entries,
        None if counts is None else counts.object_path,
    )


def compare(path: Path, every: int) -> int:
    """Compare all trees of a file with plain uproot; return how many branches were."""
    compared = 0
    for name, plain in trees(path):
        expected = list(plain.iteritems(recursive=True, full_paths=True))
        with open_root(str(path)) as file:
            index = file.tree(name).names
            paths = index.paths  # type: ignore[attr-defined]  # a TTree has them
            assert paths == [(place, b.name) for place, b in expected], path.name
            first: dict[str, Any] = {}
            for place, branch in expected:
                first.setdefault(branch.name, branch)
                first.setdefault(place, branch)
            assert list(index) == list(first)
            # from the last to the first, so that counters are parsed after what they count
            for key in list(first)[::-every]:
                assert told(index[key]) == told(first[key]), (path.name, key)
                compared += 1
    return compared


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 4))]
)
def test_every_branch_is_the_same_as_in_uproot(part: int) -> None:
    """Paths, names, interpretations and counters agree, on all sample files of the package.

    ``make test`` compares a quarter of the files, because neighbours are alike.
    """
    assert sum(compare(path, SHOWN_EVERY) for path in FILES[part::4]) > 100


@pytest.mark.parametrize(
    "name",
    [
        "PHYSLITE_example.root",
        "nano_tt_v15.root",
        "scouting_nano.root",
        "delphes.root",
        "edm4hep.root",
        "treemaker.root",
        "pduneana.root",
        "test_FCC_Winter2023.root",
    ],
)
def test_branches_of_experiments_are_the_same_as_in_uproot(name: str) -> None:
    """The files are of ATLAS, CMS, Delphes, EDM4hep, DUNE and FCC."""
    assert compare(coffea_samples() / name, 5 * SHOWN_EVERY) > 5


def test_only_requested_branches_are_parsed(tmp_path: Path) -> None:
    """For one column of a thousand, the reader parses its branch and the one that counts it."""
    wide = tmp_path / "wide.root"
    with uproot.recreate(wide) as file:
        columns = {f"x{n}": "f4" for n in range(500)} | {
            f"j{n}": "var * float32" for n in range(250)
        }
        tree = file.mktree("events", columns)
        empty = {name: np.zeros(2, "f4") for name in columns if name.startswith("x")}
        lists = {f"j{n}": [[1.0, 2.0], [float(n)]] for n in range(250)}
        tree.extend(empty | {name: ak.Array(v) for name, v in lists.items()})
    with open_root(str(wide)) as opened:
        found = opened.tree("events")
        array = found._tree.member("fBranches")  # type: ignore[attr-defined]  # the test looks
        assert isinstance(array._data, _Elements)
        assert found.read(["j249"], 0, 2)["j249"].tolist() == [[1.0, 2.0], [249.0]]
        parsed = {branch.name for branch in array._data._made.values()}
        assert parsed == {"j249", "nj249"}
        assert len(found.names) == 1000


def test_uproot_opens_a_tree_of_an_old_layout() -> None:
    """The service leaves a layout that it does not expect to uproot."""
    with open_root(str(sample("uproot-Zmumu.root"))) as opened:
        tree = opened.tree("events")
        assert tree.entries == 2304
        assert len(tree.read(["M"], 0, 10)["M"]) == 10


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_flipped_bytes_in_the_metadata_are_an_error_or_harmless(
    tmp_path: Path, place: float
) -> None:
    """With wrong bytes in the description of a tree, the answer is columns or one of our errors."""
    content = bytearray(sample("uproot-issue63.root").read_bytes())
    with uproot.open(sample("uproot-issue63.root")) as file:
        key = file.key(next(k for k, c in file.classnames().items() if c == "TTree"))
        name = key.name()
    at = int(key.fSeekKey + key.fKeylen + place * (key.fNbytes - key.fKeylen))
    for shift in range(40):
        content[at + shift] ^= 0x5A
    broken = tmp_path / "broken.root"
    broken.write_bytes(bytes(content))
    said = "columns"
    try:
        with open_root(str(broken)) as opened:
            tree = opened.tree(name)
            for column in list(tree.names)[:3]:
                tree.read([column], 0, 5)
    except ServiceXError as error:
        said = error.message
    assert said


def test_corrupt_branch_does_not_affect_other_branches(tmp_path: Path) -> None:
    """A branch that uproot cannot parse either is an error only for queries that use it."""
    path = tmp_path / "damaged.root"
    with uproot.recreate(path, compression=None) as file:
        tree = file.mktree("events", {"good": "f4", "bad": "f4", "last": "f4"})
        tree.extend({name: np.arange(3, dtype="f4") for name in ("good", "bad", "last")})
    content = path.read_bytes()
    # the title of a leaf is its name; the count of the leaf's TNamed is made another
    leaf = content.index(b"\x03bad", content.index(b"\x03bad\x05bad/F") + 10)
    count = leaf - 10 - 6
    path.write_bytes(content[: count + 3] + b"\x77" + content[count + 4 :])
    with open_root(str(path)) as opened:
        tree = opened.tree("events")
        assert list(tree.names) == ["good", "bad", "last"]
        for name in ("good", "last"):
            assert tree.read([name], 0, 3)[name].tolist() == [0, 1, 2]
        for ask in (
            lambda: tree.read(["bad"], 0, 3),
            lambda: tree.boundaries(["bad"]),
            lambda: tree.bytes_per_entry(["bad"]),
            lambda: tree.select(["b*"], []),
        ):
            with pytest.raises(ServiceXError) as error:
                ask()
            assert isinstance(error.value, CorruptError | UnreadableError)
        assert tree.read(["last"], 1, 2)["last"].tolist() == [1]


def test_streamer_info_is_parsed_once_in_a_process() -> None:
    """Files with the same TStreamerInfo share it; others have their own."""
    path, other = sample("uproot-issue63.root"), sample("uproot-HZZ.root")
    found = []
    for place in (path, path, other):
        with open_source(str(place)) as opened:
            before = opened.file.source.num_requests
            found.append((opened.file.streamers, opened.file.streamer_rules))
            assert opened.file.source.num_requests == before + 1
        with uproot.open(place) as plain:
            assert set(plain.file.streamers) == set(found[-1][0])
            assert plain.file.streamer_rules == found[-1][1]
    assert found[0][0] is found[1][0]
    assert found[0][0] is not found[2][0]


def test_only_folders_on_the_path_of_a_tree_are_read(tmp_path: Path) -> None:
    """Other folders cost no read. The error names the missing tree, or the object in its place."""
    path = tmp_path / "folders.root"
    with uproot.recreate(path) as file:
        for n in range(20):
            file[f"systematic{n}/deep/t"] = {"x": np.full(2, n)}
        file["top"] = {"x": np.arange(4)}
        file["text"] = "no tree"
    with open_root(str(path)) as opened:
        source = opened._file.file.source
        at_first = source.num_requests
        assert opened.has("top")
        assert source.num_requests == at_first
        assert opened.has("systematic7/deep/t")
        assert source.num_requests == at_first + 4, "two folders: where its keys are, and these"
        assert opened.tree("systematic7/deep/t").read(["x"], 0, 2)["x"].tolist() == [7, 7]
        assert opened.tree("top;1").entries == 4
        assert opened.has("/top"), "a slash before a path is not part of it"
        absent = ("systematic7/t", "top/x", "", "systematic7//deep/t", "text/x")
        assert [name for name in absent if opened.has(name)] == []
        assert len(opened.trees) == 21
        with pytest.raises(UnknownNameError, match="there is no tree systematic7/t"):
            opened.tree("systematic7/t")
        with pytest.raises(UnknownNameError, match="is not a tree but a folder"):
            opened.tree("systematic7/deep")
        with pytest.raises(UnknownNameError, match="is not a tree but a TObjString"):
            opened.tree("text")


def test_tree_opens_with_three_reads() -> None:
    """They read the head of the file, its keys and the tree. Each costs a round trip."""
    with open_root(str(sample("uproot-HZZ.root"))) as opened:
        tree = opened.tree("events")
        assert len(tree.names) > 10
        assert opened._file.file.source.num_requests == 3
