"""Finders keep the contract: those that need no server, and the one of the documentation."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from servicex_server.finders.contract import Finder
from servicex_server.finders.file_list import FileList
from servicex_server.testing.finder_suite import FinderSuite

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-plug-in.md"


def from_page(*numbers: int) -> dict[str, Any]:
    """Run code blocks of the page on plug-ins; return what they define."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {"__name__": "plug_in"}
    for number in numbers:
        exec(compile(blocks[number], str(PAGE), "exec"), made)
    return made


class TestFileList(FinderSuite):
    """The files that a request lists."""

    known: ClassVar[Any] = ["/data/a.root", "root://host.example.org//b.root"]

    @pytest.fixture
    def finder(self) -> Finder:
        """Return the finder."""
        return FileList()

    def test_known_reference_passes_the_check(self, finder: Finder) -> None:
        """Another method checks a list entry by entry."""
        assert isinstance(finder, FileList)
        for entry in self.known:
            finder.check_entries([entry], folders=[Path("/data")])


# the finder on the page, and its test as it stands there
TestMyLab: type[FinderSuite] = from_page(0, 4)["TestMyLab"]
