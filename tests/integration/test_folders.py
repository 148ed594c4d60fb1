"""Files in which an attacker has put folders into each other."""

import struct
from pathlib import Path

import numpy as np
import pytest
import uproot

from servicex_server.columnar.reading.folders import DEEPEST
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import CorruptError, UnknownNameError


def made(path: Path) -> Path:
    """Write a file with the folders ``a`` and ``a/b``, and a tree in each place."""
    with uproot.recreate(path) as file:
        folder = file.mkdir("a")
        for place in (file, folder, folder.mkdir("b")):
            place.mktree("t", {"x": "f8"}).extend({"x": np.arange(3.0)})
    return path


def with_itself(path: Path) -> Path:
    """Make the key of ``a/b`` lead to ``a``."""
    with uproot.open(made(path)) as file:
        above, below = file.key("a"), file["a"].key("b")
        keys = file["a"].fSeekKeys
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack(">i", below.fSeekKey), keys)
    content[place : place + 4] = struct.pack(">i", above.fSeekKey)
    path.write_bytes(content)
    return path


def test_folders_are_listed_as_uproot_does(tmp_path: Path) -> None:
    with open_root(str(made(tmp_path / "x.root"))) as file, uproot.open(tmp_path / "x.root") as own:
        expected = [key for key, kind in own.classnames(cycle=False).items() if kind == "TTree"]
        assert file.trees == expected


def test_folder_that_contains_itself_is_corrupt(tmp_path: Path) -> None:
    """The reader once followed it until the stack was full. For 34 s, the worker did not answer."""
    with open_root(str(with_itself(tmp_path / "x.root"))) as file:
        with pytest.raises(CorruptError, match="has a folder a/b that contains itself"):
            _ = file.trees
        assert file.tree("a/t").entries == 3


def test_path_of_very_many_folders_is_not_followed(tmp_path: Path) -> None:
    path = with_itself(tmp_path / "x.root")
    with open_root(str(path)) as file:
        name = "a/" + "b/" * DEEPEST + "t"
        assert not file.has(name)
        with pytest.raises((CorruptError, UnknownNameError)):
            file.tree(name)
