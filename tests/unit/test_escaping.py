"""Foreign texts in logs, on terminals and in spreadsheets are escaped."""

import csv
import io
import logging
import re
import warnings
from typing import Any

import pytest

from servicex_server.observability import logs
from servicex_server.text.escaping import escaped, spreadsheet_cell
from servicex_server.web.api.schemas import bad_replicas_csv

FORGED = "2026-01-01 00:00:00,000 INFO    servicex_server.web: jane is administrator"

HOSTILE = (
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\r{FORGED}",
    f"x\v\f\x1c\x1d\x1e\x85{FORGED}",
    f"x\u2028\u2029{FORGED}",
    "\x1b[2J\x1b]0;title\x07\x1b]52;c;AAAA\x07",
    "\x9b2J\x90\x9c",
    "\u202egnp.exe\u2066\u2069\u200f\u061c",
    "\u200b\u2060\ufeff\U000e0041",
    "\udc80\ud800",
    "\x00\x08\x7f",
)


LOGGER = logging.Logger("servicex_server.forged", "INFO")  # noqa: LOG001  # see below
"""A logger apart from all others: what pytest captures has to be UTF-8."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Give the text that a logger writes with the formatter of the service."""
    written = io.StringIO()
    handler = logs._handler()
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    return written


def _lines(log: io.StringIO) -> list[str]:
    text = log.getvalue()
    assert all(letter == "\n" or letter.isprintable() for letter in text), ascii(text)
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    return text.splitlines()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_cannot_forge_a_log_line(log: io.StringIO, text: str) -> None:
    LOGGER.info("%s", text, extra={"request_id": text, "worker": text})
    LOGGER.warning("in the format itself: " + text.replace("%", "%%"))  # noqa: G003
    assert len(_lines(log)) == 2


def _raise(error: Exception, cause: Exception | None) -> None:
    raise error from cause


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_of_an_exception_cannot_forge_a_log_line(log: io.StringIO, text: str) -> None:
    cause = ValueError(text)
    cause.add_note(text)
    try:
        _raise(RuntimeError(text), cause)
    except RuntimeError:
        LOGGER.exception("failed", stack_info=True)
    first, *others = _lines(log)
    assert re.match(r"\d{4}-\d\d-\d\d .* ERROR   servicex_server\.forged: failed$", first)
    assert others
    assert all(line.startswith("  | ") for line in others)


def test_cached_traceback_of_another_formatter_is_not_used(log: io.StringIO) -> None:
    try:
        _raise(ValueError("sound"), None)
    except ValueError as error:
        record = LOGGER.makeRecord("x", logging.ERROR, "f", 1, "m", (), None)
        record.exc_info = (type(error), error, error.__traceback__)
        record.exc_text = FORGED
    LOGGER.handle(record)
    assert FORGED not in log.getvalue()
    assert "sound" in log.getvalue()


def test_handlers_of_libraries_escape_too(monkeypatch: pytest.MonkeyPatch) -> None:
    library = logging.getLogger("a.library.with.handlers")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(message)s"))
    monkeypatch.setattr(library, "handlers", [handler])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.escape_all()
    library.error("x\n%s", FORGED)
    assert len(_lines(written)) == 1


def test_warnings_are_escaped_log_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python itself quotes a query in the warning for a wrong escape sequence."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("py.warnings"), "handlers", [])
    logs.configure_worker()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            compile('"\\\x1b"', "<query>\n" + FORGED, "eval")
    finally:
        logging.captureWarnings(capture=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid escape sequence" in line
    assert line.isprintable()


def test_text_without_control_characters_is_not_changed() -> None:
    for text in ("", "Zμμ → 3 GeV", "root://host//a b%20c?x=1#y", "C:\\new", "日本語"):
        assert escaped(text) == text


FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "\uff1d1",
    '"=1',
    "x;=1",
    'x";=1',
    "x\n=1",
    "x\r\n=1",
    "x,=1",
    "x\t=1",
)


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_cell_is_never_a_formula(text: str, delimiter: str) -> None:
    """A spreadsheet may read the file with any of these separators."""
    names = "rse replica file error message first-seen last-seen".split()
    row: Any = dict.fromkeys(names, text) | {"times": 3}
    read = csv.reader(io.StringIO(bad_replicas_csv([row])), delimiter=delimiter)
    cells = [cell for line in read for cell in line]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@\uff1d\t\r")], cells


def test_cell_without_a_formula_is_not_changed() -> None:
    for text in ("root://host:1094//a=b+c@d-e", "T2_DE_DESY", "2026-01-01"):
        assert spreadsheet_cell(text) == text
