"""The process that runs a user's function: ``program_child.py SOURCE INPUT OUTPUT FORMAT``.

It limits itself, runs the source, calls ``run_query`` with the input, writes the returned columns,
and reports success or the error on a separate pipe (`servicex_server.languages.contract.Program`).
It runs as a file, not as a module, and imports late, so that a function that fails early does not
wait for the import of awkward.
"""

import __future__

import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Number
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

FUNCTION = "run_query"

TREE = "servicex"
"""Name of the tree in the result of a function that returns one array."""

COLUMN = "branch"
"""Name of the column of an array that has no fields."""

RESERVE = 64 << 20
"""Bytes of memory above the limit that are reserved for reporting that it was exceeded."""

LINE, TRACE = 600, 8000
"""Most characters of a message and of a traceback."""

PIECE = 32 << 20
"""Bytes of columns that are passed to the writer at once."""


class NotColumnsError(Exception):
    """The returned value cannot be written as columns."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def main(arguments: list[str]) -> NoReturn:
    """Run one function on one file and end the process."""
    name, url, output, result_format = arguments
    report = int(os.environ.pop("SERVICEX_REPORT"))
    os.set_inheritable(report, False)  # noqa: FBT003  # it has no name
    _limit(int(os.environ.pop("SERVICEX_MEMORY")), int(os.environ.pop("SERVICEX_DISK")))
    _end_with_the_worker()
    # before a worker kills a slow function, it asks with this signal which line it is in
    faulthandler.register(signal.SIGUSR1, file=report, all_threads=False)
    me = os.getpid()
    source = str(Path(name).absolute())
    try:
        result = _call(source, url)
        if os.getpid() != me:
            os._exit(0)  # the function has forked, and this is the child
        said: dict[str, Any] = {"events": _write(_trees(result), output, result_format)}
    except BaseException as error:  # noqa: BLE001  (SystemExit too is the user's)
        if os.getpid() != me:
            os._exit(1)
        said = {"error": _explained(error, source)}
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(OSError):
        os.write(report, json.dumps(said).encode())
    # not sys.exit: that would wait for the user's threads and run their exit handlers
    os._exit(0)


def _limit(memory: int, disk: int) -> None:
    """Set the limits of this process; children inherit them."""
    processes = 4096 + 64 * (os.cpu_count() or 1)
    wanted = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, disk, disk),
        (resource.RLIMIT_DATA, memory, memory + RESERVE),
        # no memory limit counts kernel memory behind descriptors, such as socket buffers
        (resource.RLIMIT_NOFILE, 1024, 1024),
        # this limit counts all processes of the user, so leave room for other workers
        (resource.RLIMIT_NPROC, processes, processes),
    ]
    for kind, soft, hard in wanted:
        most = resource.getrlimit(kind)[1]
        most = sys.maxsize if most == resource.RLIM_INFINITY else most
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (min(soft, most), min(hard, most)))
    os.nice(10)  # so that the watching process gets its turn beside any number of processes
    if sys.platform == "linux":
        # if the machine runs out of memory, the kernel should kill this process, not the worker
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")


def _end_with_the_worker() -> None:
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _call(source: str, url: str) -> Any:
    """Run the source as a module and call its function."""
    text = Path(source).read_bytes().decode()
    module = ModuleType("query")
    module.__file__ = source
    sys.modules["query"] = module
    modules, path = sys.modules, sys.path
    kept, entries = dict(modules), list(path)
    try:
        # keep annotations as text: only the function's source is sent, without the imports
        # that its annotations may need
        code = compile(
            text, source, "exec", __future__.annotations.compiler_flag, dont_inherit=True
        )
        exec(code, module.__dict__)  # noqa: S102
        function = module.__dict__.get(FUNCTION)
        if not callable(function):
            raise NotColumnsError(
                f"the source ran, but {FUNCTION} is {_kind(function)}, not a function"
            )
        return function(url)
    finally:
        # the user's code must not change what is imported from here on
        modules.update(kept)
        path.extend(entry for entry in entries if entry not in path)
        sys.modules, sys.path = modules, path


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    simple = {
        "str": "a text",
        "bytes": "bytes",
        "tuple": "a tuple",
        "dict": "a dict",
        "list": "a list",
        "generator": "a generator",
        "function": "a function",
        "bool": f"{value!r:.5}",
    }
    if name in simple and type(value).__module__ == "builtins":
        return simple[name]
    if isinstance(value, Number):
        with suppress(Exception):
            return f"the number {value!s:.40}"
    return f"a {type(value).__module__.split('.')[0]} {name}"


def _trees(result: Any) -> dict[str, dict[str, Any]]:
    """Return the columns of each tree; those of one tree have equal lengths."""
    if not isinstance(result, dict):
        return {TREE: _columns(result, f"{FUNCTION} returned")}
    if not result:
        raise NotColumnsError(f"{FUNCTION} returned an empty dict", hint="name at least one tree")
    for name in result:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise NotColumnsError(
                f"{FUNCTION} returned a dict with the key {name!r:.40}, which names no tree",
                hint="keys are the names of the trees, values are their arrays",
            )
    return {
        name: _columns(value, f"{FUNCTION} returned a dict, and its {name!r:.80} is")
        for name, value in result.items()
    }


def _columns(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return _parallel(
            {
                name: _array(part, f"{what} a dict whose {name!r:.80} is")
                for name, part in value.items()
            },
            what,
        )
    array = _array(value, what)
    if not array.fields:
        if "{}" in str(array.type):
            raise NotColumnsError(f"{what} records without fields")
        return {COLUMN: array}
    return {name: array[name] for name in array.fields}


def _parallel(columns: dict[Any, Any], what: str) -> dict[str, Any]:
    if not columns or not all(isinstance(name, str) and name for name in columns):
        raise NotColumnsError(f"{what} a dict that does not name columns", hint=_WANTED)
    lengths = {name: len(array) for name, array in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:8])
        raise NotColumnsError(
            f"{what} a dict of columns of different lengths: {listed}",
            hint="columns of one tree have one entry for each event; put others in another tree",
        )
    return columns


_WANTED = "return an awkward array, or a dict of name -> array"

_HINTS = {
    "None": f"is a return missing? {_WANTED}",
    "a tuple": "return a dict of name -> array, one tree for each name",
    "a generator": "call it and return one array, as ak.concatenate(...) makes it of several",
    "a coroutine": "make the function a plain def",
}


def _array(value: Any, what: str) -> Any:
    """Convert a value to an awkward array."""
    package, name = type(value).__module__.split(".")[0], type(value).__name__
    if package == "awkward" and name == "Record":
        raise NotColumnsError(f"{what} a single record", hint="return an array of records")
    if package == "pandas":
        raise NotColumnsError(
            f"{what} a pandas {name}",
            hint="return ak.Array({name: df[name].to_numpy() for name in df.columns})",
        )
    if package in ("dask_awkward", "dask"):
        raise NotColumnsError(f"{what} a {package} {name}", hint="return what its compute() gives")
    makers: dict[str, Callable[[Any, Any], Any]] = {
        "awkward": lambda _, given: given,
        "numpy": lambda ak, given: ak.from_numpy(given),
        "pyarrow": lambda ak, given: ak.from_arrow(_strict(given)),
        "builtins": lambda ak, given: ak.Array(given),
    }
    is_scalar = getattr(value, "ndim", 1) == 0
    is_foreign = package == "builtins" and not isinstance(value, list)
    is_thing = not hasattr(value, "__len__") or isinstance(value, type)
    if package not in makers or is_scalar or is_foreign or is_thing:
        kind = _kind(value)
        raise NotColumnsError(f"{what} {kind}", hint=_HINTS.get(kind, _WANTED))
    import awkward as ak

    try:
        array = makers[package](ak, value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NotColumnsError(
            f"{what} {_kind(value)}, which cannot become an array: {_first_line(error)}",
            hint=_WANTED,
        ) from error
    if not isinstance(array, ak.Array):
        raise NotColumnsError(f"{what} {_kind(value)}", hint=_WANTED)
    return array


def _strict(table: Any) -> Any:
    """Return an Arrow table in which only columns with missing values are nullable."""
    if not hasattr(table, "schema"):
        return table
    schema = table.schema
    for place, field in enumerate(schema):
        if not table.column(place).null_count:
            schema = schema.set(place, field.with_nullable(nullable=False))
    return table.cast(schema)


def _write(trees: dict[str, dict[str, Any]], output: str, result_format: Any) -> int:
    """Write all trees and return the number of entries."""
    from servicex_server.columnar.writing.writer import open_writer

    entries = 0
    with open_writer(Path(output), result_format, tree_column=len(trees) > 1) as writer:
        for tree, columns in trees.items():
            length = min(len(array) for array in columns.values())
            size = sum(array.nbytes for array in columns.values())
            step = max(1, length * PIECE // max(size, 1))
            for start in range(0, max(length, 1), step):
                writer.write(tree, {n: array[start : start + step] for n, array in columns.items()})
            entries += length
    return entries


def _explained(error: BaseException, source: str) -> dict[str, str]:
    """Return the report of an error; an error in the user's code gets its line."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    import errno

    chain = list(_chain(error))
    if isinstance(error, NotColumnsError):
        return {"kind": "Function", "message": error.message, "hint": error.hint}
    where, trace = _user_frames(error, source)
    said = {"kind": "Function", "hint": "", "traceback": trace}
    if any(isinstance(one, MemoryError) for one in chain):
        return said | {"kind": "OutOfMemory", "message": where}
    if hasattr(error, "record") and type(error).__module__ == "servicex_server.errors":
        record = error.record()
        return {"kind": record.kind, "message": record.message, "hint": record.hint}
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    for one in chain:
        if isinstance(one, OSError) and one.errno in full:
            message = f"the function cannot write what it wants to{where}: {os.strerror(one.errno)}"
            return said | {"kind": "DiskFull", "message": message}
    if isinstance(error, SystemExit):
        code = "" if error.code is None else f"{error.code!r:.200}"
        return said | {
            "message": f"the function called sys.exit({code}){where}",
            "hint": "return the array, or raise an exception that says what is wrong",
        }
    message = f"the function failed{where}: {type(error).__name__}: {_first_line(error)}"
    return said | {"message": message.removesuffix(": "), "hint": _advice(error)}


def _advice(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"workers have no {error.name.split('.')[0]}; there are numpy, awkward, uproot, "
            "pyarrow and the standard library"
        )
    return ""


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """Return the text of an exception on one line, even if its class misbehaves."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  (the user's __str__ may raise anything)
        return "(its text cannot be shown)"
    return text[:LINE] + ("…" if len(text) > LINE else "")


def _user_frames(error: BaseException, source: str) -> tuple[str, str]:
    """Return the line in the user's source, and a traceback with the user's frames only."""
    import linecache
    import traceback

    with suppress(OSError):
        text = Path(source).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        linecache.cache[source] = (len(text), None, lines, source)
    try:
        told = traceback.TracebackException.from_exception(error, limit=-200, compact=True)
        one: traceback.TracebackException | None = told
        own = [frame for frame in told.stack if frame.filename == source]
        while one is not None:
            frames = [frame for frame in one.stack if frame.filename == source]
            for frame in frames:
                frame.filename = Path(source).name
            one.stack = traceback.StackSummary.from_list(frames)
            one = one.__cause__ or one.__context__
        trace = "".join(told.format())
    except Exception:  # noqa: BLE001  (nothing that is wrong with the error may hide the error)
        return "", ""
    if not own:
        return "", ""
    line = " ".join((own[-1].line or "").split())[:120]
    where = f" in line {own[-1].lineno}" + (f" ({line})" if line else "")
    if len(trace) > TRACE:
        trace = f"{trace[: TRACE // 4]}…\n{trace[-3 * TRACE // 4 :]}"
    return where, trace


if __name__ == "__main__":
    main(sys.argv[1:])
