"""Every column of every sample file comes out as uproot reads it, in every format."""

import pytest

from tests.every_file import PACKAGES, PAGE, examine, files, limit

ROWS = PAGE.read_text(encoding="utf-8").splitlines()
MOST = 150
"""Branches of a tree; of more, some are looked at. ``make files`` looks at all, and takes long."""

EVERY, LONG_EVERY = 9, 3
"""One file of so many is compared with its row, because neighbours are alike."""

NAMES = [row.split(" ")[1] for row in ROWS if ".root |" in row]

CHOSEN = [
    pytest.param(name, marks=() if at % EVERY == 0 else pytest.mark.long)
    for at, name in enumerate(NAMES)
    if at % LONG_EVERY == 0
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHOSEN)
def test_file_matches_its_row_on_the_page(name: str) -> None:
    """All columns equal those of uproot, and the row in ``docs/reference/files.md`` is right."""
    path = next(path for package in PACKAGES for path in files(package) if path.name == name)
    found = examine(path, MOST)
    assert not found.wrong
    if found.whole:
        assert found.row(name) in ROWS, "make files writes the page anew"
    assert {limit(what) for what in found.limits} <= set(ROWS)


def test_page_lists_every_file() -> None:
    """The files are those of the installed packages."""
    assert sorted(path.name for package in PACKAGES for path in files(package)) == sorted(NAMES)
