'''``python``: base64 of Python source that defines ``run_query``.

::

    def run_query(input_filenames):
        """Take one path or URL; return an awkward array, or a dict of name -> array."""

The source is read here and never run; it runs in `servicex_server.languages.child`, a process of
its own, once for each file.
'''

import ast
import binascii
import inspect
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import ClassVar

from servicex_server.errors import QueryError, nearest
from servicex_server.languages.contract import Language, Program
from servicex_server.model import ResultFormat

FUNCTION = "run_query"
"""Name of the function that a query defines."""

SOURCE = "query.py"
"""Name of the file that holds the source in the scratch folder, and in tracebacks."""

_EXAMPLE = "def run_query(input_filenames): ..."
_WARNINGS = threading.Lock()
_SHOWN = 120


class PythonFunction(Language):
    """A function of one file, in Python."""

    name: ClassVar[str] = "python"
    description: ClassVar[str] = "a Python function run_query(path) that returns awkward arrays"
    runs_code: ClassVar[bool] = True

    def compile(self, selection: str, result_format: ResultFormat) -> Program:
        """Read the source and check that it defines the function; nothing of it is run."""
        self.check_format(result_format)
        source = _decoded(selection)
        _check(source)
        child = Path(__file__).with_name("child.py")
        # -P: neither the child's folder nor the scratch folder may shadow what the user imports;
        # -u: what was printed is not lost when the process is killed
        command = (sys.executable, "-P", "-u", "-X", "faulthandler", str(child), SOURCE)
        return Program(command, files=((SOURCE, source),))


def _decoded(selection: str) -> str:
    text = "".join(selection.split())
    if not text:
        raise QueryError("selection is empty", hint=f"send base64 of Python source with {_EXAMPLE}")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise QueryError(
            f"selection is not standard base64: {str(error)[:80].lower()}", hint=_base64_hint(text)
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QueryError(
            f"selection is base64, but not of UTF-8 text (byte {error.start} of the decoded text)",
            hint="encode the source as UTF-8 before base64",
        ) from None


def _base64_hint(text: str) -> str:
    if "def" in text and ("(" in text or ":" in text):
        return "it looks like Python source; send base64 of it"
    if "-" in text or "_" in text:
        return "use the standard alphabet with + and /, not the URL-safe one with - and _"
    if len(text) % 4:
        return "its length is no multiple of 4: is the end cut off, or the padding = missing?"
    return "send base64 of the source, with A-Z a-z 0-9 + / and = at the end"


def _check(source: str) -> None:
    try:
        # the filters are global: two of these at once would restore each other's
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source, SOURCE)
            code = compile(module, SOURCE, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _no_python(error, source) from None
    except (RecursionError, MemoryError, OverflowError):
        raise QueryError("selection is Python source that is nested too deeply") from None
    except ValueError as error:
        raise QueryError(f"selection is no Python source: {error}") from None
    definitions = list(_definitions(module.body))
    named = [node for name, node in definitions if name == FUNCTION]
    if not named:
        raise _no_function([name for name, node in definitions if isinstance(node, _FUNCTIONS)])
    for node in named:
        _check_function(node)
    if isinstance(named[-1], ast.ClassDef | ast.Constant):
        raise QueryError(
            f"selection: {FUNCTION} is no function (line {named[-1].lineno})",
            hint=f"write {_EXAMPLE}",
        )
    _check_returns(code)


def _no_python(error: SyntaxError, source: str) -> QueryError:
    lines = source.splitlines()
    number = error.lineno or 0
    line = (error.text or (lines[number - 1] if 0 < number <= len(lines) else "")).strip()
    where = f", line {number}" if number else ""
    shown = f": {_short(line)}" if line else ""
    return QueryError(
        f"selection is no Python source: {_short(error.msg)}{where}{shown}",
        hint=f"it is read by Python {sys.version_info.major}.{sys.version_info.minor}",
    )


def _short(text: str) -> str:
    cut = "…" if len(text) > _SHOWN else ""
    return "".join(c for c in text[:_SHOWN] if c.isprintable()) + cut


def _no_function(found: list[str]) -> QueryError:
    if not found:
        return QueryError(
            f"selection defines no function; it must define {FUNCTION}", hint=f"write {_EXAMPLE}"
        )
    shown = _short(", ".join(found))
    close = nearest(FUNCTION, found, most=1)
    return QueryError(
        f"selection: the function must be called {FUNCTION}; found {shown}",
        hint=f"rename {(close or found)[0][:80]} to {FUNCTION}" if close or len(found) == 1 else "",
    )


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _definitions(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yield what is bound at the top level, in branches of ``if``, ``try`` and ``with`` too."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.Assign():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node.value
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                yield target.id, value
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    yield alias.asname or alias.name, node
            case ast.If() | ast.Try() | ast.TryStar() | ast.With() | ast.ExceptHandler():
                yield from _definitions(ast.iter_child_nodes(node))


def _check_function(node: ast.AST) -> None:
    if isinstance(node, ast.AsyncFunctionDef):
        raise QueryError(
            f"selection: {FUNCTION} is an async function (line {node.lineno})",
            hint=f"make it a plain {_EXAMPLE}",
        )
    if not isinstance(node, ast.FunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return  # a decorator may change what it takes
    given = node.args
    positional = len(given.posonlyargs) + len(given.args)
    required = positional - len(given.defaults)
    keywords = [
        name.arg
        for name, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if default is None
    ]
    what = f"selection: {FUNCTION} (line {node.lineno})"
    if required > 1 or keywords:
        names = [a.arg for a in (*given.posonlyargs, *given.args)][:required] + keywords
        raise QueryError(
            f"{what} needs {len(names)} arguments: {_short(', '.join(names))}",
            hint="it is called with one, the path or URL of a file",
        )
    if positional == 0 and given.vararg is None:
        raise QueryError(
            f"{what} takes no argument",
            hint=f"it is called with one, the path or URL of a file: {_EXAMPLE}",
        )


def _check_returns(code: CodeType) -> None:
    for inner in code.co_consts:
        is_code = isinstance(inner, CodeType) and inner.co_name == FUNCTION
        if is_code and inner.co_flags & inspect.CO_GENERATOR:
            raise QueryError(
                f"selection: {FUNCTION} (line {inner.co_firstlineno}) yields, so it is a generator",
                hint="return one array instead, as ak.concatenate(...) makes it of several",
            )
