'''``python``: base64 of Python source that defines ``run_query``.

::

    def run_query(input_filenames):
        """Take one path or URL; return an awkward array, or a dict of name -> array."""

The source is parsed here but never run. `servicex_server.worker.program_child` runs it in a process
of its own, once for each file.
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

from servicex_server.columnar.limits import check_words
from servicex_server.errors import QueryError
from servicex_server.languages.contract import Language, Program
from servicex_server.model import ResultFormat
from servicex_server.text.hints import nearest

FUNCTION = "run_query"
"""Name of the function that a query defines."""

SOURCE = "query.py"
"""Name of the file that holds the source in the scratch folder, and in tracebacks."""

MAX_SCOPES = 500
"""Most functions, classes, lambdas and comprehensions; the compiler compares all of them."""

MAX_NAME = 255
"""Most characters of the name of a function or class; the compiler prefixes names with it."""

MAX_WRITTEN = 100_000
"""Most nodes that the compiler writes; it may write the nodes of a ``finally`` many times."""

_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
_EXAMPLE = "def run_query(input_filenames): ..."
_WARNINGS = threading.Lock()
_SHOWN = 120


class PythonFunction(Language):
    """A function of one file, in Python."""

    name: ClassVar[str] = "python"
    description: ClassVar[str] = "a Python function run_query(path) that returns awkward arrays"
    runs_code: ClassVar[bool] = True

    def compile(self, selection: str, result_format: ResultFormat) -> Program:
        """Decode the source and check that it defines the function, without running it."""
        self.check_format(result_format)
        _check(_decoded(selection))
        return self.compile_accepted(selection, result_format)

    def compile_accepted(self, selection: str, result_format: ResultFormat) -> Program:
        """Decode the source without compiling it, which would take as long as the first time."""
        del result_format
        source = _decoded(selection)
        child = Path(__file__).parents[1] / "worker" / "program_child.py"
        # -P: neither the child's folder nor the scratch folder may shadow what the user imports;
        # -u: output is not lost when the process is killed
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
        return "its length is not a multiple of 4: is the end cut off, or the padding = missing?"
    return "send base64 of the source, with A-Z a-z 0-9 + / and = at the end"


def _check(source: str) -> None:
    check_words(source, "selection")
    try:
        # warning filters are global: two threads at once would restore each other's filters
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source, SOURCE)
            _check_scopes(module)
            if "finally" in source and _written(module)[0] > MAX_WRITTEN:
                raise QueryError(
                    "selection: there are too many exits from try blocks with a finally",
                    hint="call a function in the finally",
                )
            code = compile(module, SOURCE, "exec", dont_inherit=True)
        definitions = list(_definitions(module.body))
    except SyntaxError as error:
        raise _no_python(error, source) from None
    except (RecursionError, MemoryError, OverflowError):
        raise QueryError("selection is Python source that is nested too deeply") from None
    except ValueError as error:
        raise QueryError(f"selection is not Python source: {error}") from None
    named = [node for name, node in definitions if name == FUNCTION]
    if not named:
        raise _no_function([name for name, node in definitions if isinstance(node, _FUNCTIONS)])
    for node in named:
        _check_function(node)
    if isinstance(named[-1], ast.ClassDef | ast.Constant):
        raise QueryError(
            f"selection: {FUNCTION} is not a function (line {named[-1].lineno})",
            hint=f"write {_EXAMPLE}",
        )
    _check_returns(code)


def _check_scopes(module: ast.Module) -> None:
    """Refuse functions and classes that take long to compile, or whose code becomes very large.

    The compiler compares each function with those before it, and prefixes names with the name of
    the class or function that they are in.
    """
    scopes = 0
    for node in ast.walk(module):
        if not isinstance(node, _SCOPES):
            continue
        scopes += 1
        name = getattr(node, "name", "")
        if len(name) > MAX_NAME:
            raise QueryError(
                f"selection: a name has {len(name)} characters (line {node.lineno}); "
                f"at most {MAX_NAME}"
            )
        if scopes > MAX_SCOPES:
            raise QueryError(
                f"selection: more than {MAX_SCOPES} functions, classes, lambdas and "
                f"comprehensions (line {node.lineno})"
            )


def _written(node: ast.AST) -> tuple[int, int]:
    """Return the number of nodes that the compiler writes for a node, and the number of its exits.

    The compiler writes a ``finally`` again for each exit from its ``try``.
    """
    written, exits = 1, int(isinstance(node, ast.Return | ast.Break | ast.Continue))
    last = {id(one) for one in getattr(node, "finalbody", ())}
    finally_written = 0
    for child in ast.iter_child_nodes(node):
        more, ways = _written(child)
        written += more
        exits += ways
        finally_written += more if id(child) in last else 0
    written += finally_written * (1 + exits)
    return written, 0 if isinstance(node, _SCOPES) else exits


def _no_python(error: SyntaxError, source: str) -> QueryError:
    lines = source.splitlines()
    number = error.lineno or 0
    line = (error.text or (lines[number - 1] if 0 < number <= len(lines) else "")).strip()
    where = f", line {number}" if number else ""
    shown = f": {_short(line)}" if line else ""
    return QueryError(
        f"selection is not Python source: {_short(error.msg)}{where}{shown}",
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
    """Yield the names bound at the top level, also within ``if``, ``try`` and ``with``."""
    waiting = list(body)[::-1]
    while waiting:
        node = waiting.pop()
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
                waiting += list(ast.iter_child_nodes(node))[::-1]


def _check_function(node: ast.AST) -> None:
    if isinstance(node, ast.AsyncFunctionDef):
        raise QueryError(
            f"selection: {FUNCTION} is an async function (line {node.lineno})",
            hint=f"make it a plain {_EXAMPLE}",
        )
    if not isinstance(node, ast.FunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return  # a decorator may change the parameters
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
