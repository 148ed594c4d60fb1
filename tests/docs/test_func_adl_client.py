"""The published client sends the text of a lambda that the page about func_adl states."""

import re
from pathlib import Path

import pytest
from servicex import query

from servicex_server.languages.func_adl import FuncAdl
from servicex_server.model import ResultFormat

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-query-func-adl.md"
ROW = re.compile(r"^\| `([^`]+)` \| (raises|sends no `axis`) \| `([^`]+)` \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text("utf-8"))


def sent(expression: str) -> str:
    """Return the text that is sent of an expression on an event."""
    selected = query.FuncADL_Uproot().FromTree("events").Select(f"lambda e: {{'y': {expression}}}")
    return str(selected.generate_selection_string())


def test_page_has_rows() -> None:
    """Otherwise, the next test would check nothing."""
    assert len(ROWS) == 7


@pytest.mark.parametrize(("expression", "how", "instead"), ROWS)
def test_client_sends_the_text_on_the_page(expression: str, how: str, instead: str) -> None:
    """If a newer client can send the expression, this test fails. Then remove the row."""
    if how == "raises":
        with pytest.raises((KeyError, SyntaxError)):
            sent(expression)
    else:
        assert "axis" not in sent(expression)
    (extraction,) = FuncAdl().compile(sent(instead), ResultFormat.PARQUET).extractions
    assert extraction.tree == "events"
