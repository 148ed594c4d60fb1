"""The checks of a Python query at submit, which run nothing of it."""

import base64
import textwrap
from pathlib import Path

import pytest

from servicex_server.errors import QueryError
from servicex_server.languages.contract import Program
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import ResultFormat

GOOD = "def run_query(input_filenames):\n    return [1, 2, 3]\n"


def compiled(selection: str) -> Program:
    return PythonFunction().compile(selection, ResultFormat.PARQUET)


def encoded(source: str | bytes) -> str:
    data = source if isinstance(source, bytes) else textwrap.dedent(source).encode()
    return base64.b64encode(data).decode()


def refusal(source: str | bytes) -> str:
    with pytest.raises(QueryError) as caught:
        compiled(encoded(source))
    return str(caught.value)


@pytest.mark.parametrize("result_format", list(ResultFormat))
def test_function_becomes_a_program(result_format: ResultFormat) -> None:
    """A file of the program has the unchanged source; the program can write every format."""
    program = PythonFunction().compile(encoded(GOOD), result_format)
    assert program.files == (("query.py", GOOD),)
    assert program.command[-1] == "query.py"
    assert Path(program.command[-2]).is_file()


def test_language_declares_that_it_runs_code() -> None:
    """If users sign in and there is no sandbox, the service can refuse this language."""
    assert PythonFunction.name == "python"
    assert PythonFunction.runs_code


def test_compiler_does_not_run_the_query(tmp_path: Path) -> None:
    """It runs nothing of the query, not even its module level."""
    witness = tmp_path / "witness"
    compiled(encoded(f"open({str(witness)!r}, 'w').close()\n{GOOD}"))
    assert not witness.exists()


def test_white_space_in_base64_is_ignored() -> None:
    """The compiler accepts the line breaks of MIME encoders, and blanks around the text."""
    wrapped = "  " + base64.encodebytes(GOOD.encode() * 9).decode().replace("\n", "\r\n ") + "\n"
    assert compiled(wrapped).files == (("query.py", GOOD * 9),)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("", "selection is empty"),
        (" \n ", "selection is empty"),
        (GOOD, "it looks like Python source; send base64 of it"),
        ("a", "not standard base64"),
        ("YWJ", "is the end cut off"),
        ("YW=J", "not standard base64"),
        ("_-__", "not the URL-safe one"),
        ("é" * 8, "not standard base64"),
        ("[{}]", "not standard base64"),
        ("\x00\x00\x00\x00", "not standard base64"),
        ("\ud800abc", "not standard base64"),
    ],
)
def test_text_that_is_not_base64_is_refused(selection: str, expected: str) -> None:
    """The answer says that base64 is expected, and what the text looks like instead."""
    with pytest.raises(QueryError) as caught:
        compiled(selection)
    assert expected in str(caught.value)
    assert caught.value.hint


def test_source_that_is_not_utf_8_is_refused() -> None:
    """The error has the place of the first bad byte."""
    said = refusal("# Größe\n".encode("latin-1") + GOOD.encode())
    assert "not of UTF-8 text (byte 4" in said


def test_byte_order_mark_is_accepted() -> None:
    """Many editors put a mark before UTF-8 text."""
    assert compiled(encoded(b"\xef\xbb\xbf" + GOOD.encode())).files[0][1] == GOOD


def test_syntax_error_is_shown_with_its_line() -> None:
    """The answer has the number and the text of the line."""
    said = refusal("import uproot\n\ndef run_query(f)\n    return f\n")
    assert "line 3: def run_query(f)" in said


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def run_query(f):\nreturn 1", "line 2: return 1"),
        ("return 1\n" + GOOD, "'return' outside function, line 1"),
        ("def run_query(f):\n    await f", "outside async function, line 2"),
        ("print 'x'", "line 1"),
        (GOOD + "\0", "null bytes"),
        ("x = '" + "a" * 500 + "\n", "…"),
    ],
)
def test_source_that_is_not_python_is_refused(source: str, expected: str) -> None:
    """The service refuses all that Python's compiler refuses, even if the parser accepts it."""
    said = refusal(source)
    assert "not Python source" in said
    assert expected in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "source",
    [
        "x = " + "(" * 10_000 + ")" * 10_000,
        "x = " + "[" * 10_000,
        "x = " + "-" * 100_000 + "1",
        "x = a" + ".b" * 100_000,
        "x = a" + "()" * 100_000,
        "x = " + "1+" * 100_000 + "1",
        "x = " + "9" * 100_000,
        "lambda: " * 20_000 + "1",
    ],
    ids=["parentheses", "brackets", "signs", "attributes", "calls", "sum", "number", "lambdas"],
)
def test_extreme_nesting_is_a_query_error(source: str) -> None:
    """Source that overflows the parser's stack gets the same answer as other wrong source."""
    said = refusal(source)
    assert any(why in said for why in ("not Python source", "nested too deeply", "more than 20000"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def py(f):\n    return f", "must be called run_query; found py (rename py to run_query)"),
        ("def helper(): ...\ndef run_qery(f): ...", "found helper, run_qery (rename run_qery"),
        ("def a(): ...\ndef b(): ...", "found a, b"),
        ("async def query(f): ...", "found query"),
        ("x = 1", "defines no function; it must define run_query"),
        ("# nothing", "defines no function"),
        ("class A:\n    def run_query(self): ...", "defines no function"),
        ("def outer():\n    def run_query(f): ...", "found outer"),
    ],
)
def test_function_must_have_the_expected_name(source: str, expected: str) -> None:
    """The published client does not check the name, so the error lists the names in the source."""
    assert expected in refusal(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def run_query(f): ...", "is an async function (line 1)"),
        ("def run_query(): ...", "takes no argument"),
        ("def run_query(*, f): ...", "needs 1 arguments: f"),
        ("def run_query(f, tree): ...", "needs 2 arguments: f, tree"),
        ("def run_query(f, *, tree): ...", "needs 2 arguments: f, tree"),
        ("run_query = lambda: 1", "takes no argument"),
        ("run_query = 3", "is not a function"),
        ("class run_query: ...", "is not a function"),
        ("def run_query(f):\n    yield f", "is a generator"),
    ],
)
def test_function_must_take_one_argument(source: str, expected: str) -> None:
    """The service refuses objects that cannot be called with one path or cannot return arrays."""
    assert expected in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "def run_query(f=None): ...",
        "def run_query(f, tree='events', *, cut=None): ...",
        "def run_query(f, /): ...",
        "def run_query(*files, **more): ...",
        "run_query = lambda f: [1]",
        "from functools import partial\nrun_query = partial(print, 1)",
        "from os.path import exists as run_query",
        "run_query: object = print",
        "try:\n    import x\nexcept ImportError:\n    def run_query(f): ...",
        "if True:\n    def run_query(f): ...\nelse:\n    def run_query(f): ...",
        "import functools\n@functools.cache\ndef run_query(): ...",
        "x = '\\d'\ndef run_query(f):\n    return f is 1",
        "def run_query(f):\n    def inner():\n        yield 1\n    return list(inner())",
        "# -*- coding: latin-1 -*-\ndef run_query(f):\n    return ['é']",
    ],
)
def test_every_way_to_define_the_function_is_accepted(source: str) -> None:
    """Defaults, lambdas, imports, decorators and branches are Python; warnings are not errors."""
    assert compiled(encoded(source)).files[0][1] == source
