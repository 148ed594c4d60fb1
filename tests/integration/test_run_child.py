"""A user's function runs in a child process: its results, its errors and the clean-up."""

import base64
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from servicex_server.errors import (
    DiskFullError,
    FormatError,
    FunctionError,
    OutOfMemoryError,
    OutOfTimeError,
    ServiceXError,
)
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import Limits, ResultFormat
from servicex_server.worker import program_child
from servicex_server.worker.process_tree import OF_WORKER, end_left_by
from servicex_server.worker.program import FIRST, LAST, ProgramResult, run_program
from servicex_server.worker.sandbox import sandbox_problem
from tests.support import missing, until

PARQUET, TTREE, RNTUPLE = ResultFormat.PARQUET, ResultFormat.TTREE, ResultFormat.RNTUPLE
MEMORY = 64 << 20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux only")


class Runner:
    """Runs sources, each on one file, and knows where the result is."""

    def __init__(self, folder: Path, *, sandboxed: bool) -> None:
        self.sandboxed = sandboxed
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.output = folder / "result"

    def __call__(
        self,
        source: str,
        result_format: ResultFormat = PARQUET,
        *,
        url: str = "/data/in.root",
        seconds: float = 20.0,
        memory: int = MEMORY,
        disk: int = 1 << 30,
    ) -> ProgramResult:
        selection = base64.b64encode(textwrap.dedent(source).encode()).decode()
        program = PythonFunction().compile(selection, result_format)
        limits = Limits(seconds=seconds, memory=memory)
        descriptors = psutil.Process().num_fds()
        try:
            return run_program(
                program,
                url,
                self.output,
                result_format,
                limits,
                self.scratch,
                disk=disk,
                sandboxed=self.sandboxed,
            )
        finally:
            assert psutil.Process().num_fds() <= descriptors

    def fails(self, kind: type[ServiceXError], source: str, **more: Any) -> tuple[str, str]:
        """Run what must fail, and return what is said and what was printed."""
        with pytest.raises(kind) as caught:
            self(source, **more)
        assert type(caught.value) is kind
        assert not self.output.exists()
        return str(caught.value), vars(caught.value)["log_tail"]


both_ways = pytest.mark.parametrize("run", ["sandboxed", "bare"], indirect=True)
"""For tests that also run without the sandbox."""


def cases(
    names: str, sandboxed: Mapping[str, tuple[Any, ...]], *, bare: Sequence[str]
) -> pytest.MarkDecorator:
    """Run a test on cases in the sandbox, and on some also without it.

    Those are the cases in which the worker does something else where there is no sandbox.
    """
    found = [("sandboxed", name) for name in sandboxed] + [("bare", name) for name in bare]
    return pytest.mark.parametrize(
        f"run, {names}",
        [pytest.param(way, *sandboxed[name], id=f"{way}-{name}") for way, name in found],
        indirect=["run"],
    )


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    """Run functions, in the sandbox; afterwards nothing of them is on the machine."""
    if problem := sandbox_problem():
        missing(problem)
    before = set(psutil.Process().children(recursive=True))
    runner = Runner(tmp_path, sandboxed=getattr(request, "param", "sandboxed") == "sandboxed")
    yield runner
    assert [p for p in psutil.Process().children(recursive=True) if p not in before] == []
    assert [p for p in processes() if str(tmp_path) in p] == []
    assert list(runner.scratch.iterdir()) == []


def processes() -> list[str]:
    """Return the folders and environments of all processes that may be looked at."""
    found = []
    for process in psutil.process_iter():
        try:
            found.append(f"{process.pid} {process.cwd()} {process.environ()}")
        except (psutil.Error, OSError):
            continue
    return found


def parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns: dict[str, list[Any]] = file.read().to_pydict()
    return columns


def root(path: Path, tree: str) -> dict[str, list[Any]]:
    import uproot

    with uproot.open(path) as file:
        arrays = file[tree].arrays()
        return {name: arrays[name].to_list() for name in arrays.fields if name[0] != "n"}


READERS: dict[ResultFormat, Callable[[Path, str], dict[str, list[Any]]]] = {
    PARQUET: lambda path, _: parquet(path),
    TTREE: root,
    RNTUPLE: root,
}


@pytest.mark.parametrize("result_format", list(ResultFormat))
class TestGoodReturns:
    """Return values of a function, in every format."""

    def test_an_array_with_fields_becomes_columns(
        self, run: Runner, result_format: ResultFormat
    ) -> None:
        """The fields are columns of the tree servicex. The result has the number of entries."""
        done = run(
            """
            import awkward as ak
            def run_query(f):
                return ak.Array({"pt": [1.5, 2.5, 3.5], "hits": [[1], [], [2, 3]]})
            """,
            result_format,
        )
        assert done == ProgramResult(events=3, log_tail="")
        assert READERS[result_format](run.output, "servicex") == {
            "pt": [1.5, 2.5, 3.5],
            "hits": [[1], [], [2, 3]],
        }

    def test_array_of_texts_becomes_the_column_branch(
        self, run: Runner, result_format: ResultFormat
    ) -> None:
        """A client asks for the structure of a file with one JSON text in an array."""
        run(
            """
            import awkward as ak, json
            def run_query(input_filenames):
                return ak.Array([json.dumps({"events": {"π": "float"}})])
            """,
            result_format,
        )
        read = READERS[result_format](run.output, "servicex")
        assert read == {"branch": ['{"events": {"\\u03c0": "float"}}']}


@pytest.mark.parametrize("result_format", [TTREE, RNTUPLE])
def test_lists_numpy_and_arrow_arrays_are_accepted(
    run: Runner, result_format: ResultFormat
) -> None:
    """Each becomes a tree with its values."""
    run(
        """
        import numpy as np, pyarrow as pa
        def run_query(f):
            return {
                "list": [1, 2, 3],
                "jagged": [[1.0], [], [2.0, 3.0]],
                "texts": ["a", "", "ccc"],
                "records": [{"x": 1, "y": 2.5}],
                "numpy": np.arange(3, dtype="u2"),
                "matrix": np.ones((2, 2)),
                "arrow": pa.array([1.5, 2.5]),
                "table": pa.table({"x": [1], "y": ["z"]}),
                "empty": np.array([], dtype="f4"),
            }
        """,
        result_format,
    )
    read = {tree: root(run.output, tree) for tree in ("table", "records")}
    assert read == {"table": {"x": [1], "y": ["z"]}, "records": {"x": [1], "y": [2.5]}}
    expected = {
        "list": [1, 2, 3],
        "jagged": [[1.0], [], [2.0, 3.0]],
        "texts": ["a", "", "ccc"],
        "numpy": [0, 1, 2],
        "matrix": [[1.0, 1.0], [1.0, 1.0]],
        "arrow": [1.5, 2.5],
        "empty": [],
    }
    for tree, values in expected.items():
        assert root(run.output, tree) == {"branch": values}


@pytest.mark.parametrize("result_format", [TTREE, RNTUPLE])
def test_a_dict_is_one_tree_for_each_name(run: Runner, result_format: ResultFormat) -> None:
    """Trees of a dict may have different columns and lengths."""
    done = run(
        """
        import awkward as ak, numpy as np
        def run_query(f):
            return {"a": ak.Array({"x": [1, 2]}), "b": np.arange(3.0), "c": {"y": [1], "z": [2.5]}}
        """,
        result_format,
    )
    assert done.events == 6
    assert root(run.output, "a") == {"x": [1, 2]}
    assert root(run.output, "b") == {"branch": [0.0, 1.0, 2.0]}
    assert root(run.output, "c") == {"y": [1], "z": [2.5]}


def test_a_dict_is_one_table_in_parquet(run: Runner) -> None:
    """A column names the tree of each row. With one tree, there is no such column."""
    run("def run_query(f): return {'a': [1, 2], 'b': [3]}")
    assert parquet(run.output) == {"branch": [1, 2, 3], "treename": ["a", "a", "b"]}
    run("def run_query(f): return {'a': [1, 2]}")
    assert parquet(run.output) == {"branch": [1, 2]}


@both_ways
def test_function_reads_a_real_file(run: Runner) -> None:
    """The function gets the path of its input file, also if that was relative."""
    spec = importlib.util.find_spec("skhep_testdata")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "uproot-Zmumu.root"
    done = run(
        """
        import uproot
        def run_query(input_filenames):
            with uproot.open({input_filenames: "events"}) as tree:
                return tree.arrays(["px1", "Run"])
        """,
        TTREE,
        url=os.path.relpath(path),
    )
    assert done.events == 2304
    read = root(run.output, "servicex")
    assert list(read) == ["px1", "Run"]
    assert read["px1"][0] == pytest.approx(-41.1952876442)


def test_large_results_are_written_in_row_groups(run: Runner) -> None:
    """A result of several row groups is complete and in order."""
    source = "import numpy as np\ndef run_query(f): return {'x': np.arange(5_000_000)}"
    assert run(source, memory=1 << 30).events == 5_000_000
    import pyarrow.parquet as pq

    with pq.ParquetFile(run.output) as file:
        assert file.num_row_groups > 1
        column = file.read().column("branch").to_numpy()
    assert column[0] == 0
    assert (column[1:] - column[:-1] == 1).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("None", "run_query returned None (is a return missing?"),
        ("3.5", "returned the number 3.5"),
        ("True", "returned True"),
        ("np.float32(2)", "returned the number 2.0"),
        ("np.array(2)", "returned a numpy ndarray"),
        ("'text'", "returned a text"),
        ("b'x'", "returned bytes"),
        ("([1], [2])", "returned a tuple (return a dict"),
        ("(x for x in f)", "returned a generator"),
        ("{1, 2}", "returned a builtins set"),
        ("open", "returned a builtins builtin_function_or_method"),
        ("np.ndarray", "returned a builtins type"),
        ("{}", "returned an empty dict"),
        ("{1: [1]}", "with the key 1, which names no tree"),
        ("{' ': [1]}", "with the key ' ', which names no tree"),
        ("{'a': [1], 'b': 7}", "a dict, and its 'b' is the number 7"),
        ("{'a': None}", "a dict, and its 'a' is None (is a return missing?"),
        (
            "{'a': {'x': [1, 2], 'y': [1]}}",
            "its 'a' is a dict of columns of different lengths: x 2, y 1",
        ),
        ("{'a': {}}", "its 'a' is a dict that does not name columns"),
        ("{'a': {'x': 3}}", "its 'a' is a dict whose 'x' is the number 3"),
        ("[1, object()]", "returned a list, which cannot become an array"),
        ("np.array([object()])", "returned a numpy ndarray, which cannot become an array"),
        ("ak.Array([{'x': 1}])[0]", "returned a single record"),
        ("ak.Array([{}, {}])", "returned records without fields"),
        ("lambda: 1", "returned a function"),
    ],
)
def test_invalid_return_value_is_rejected(value: str, expected: str) -> None:
    """The error says what the function returned, and what would be right."""
    imports = {"np.": "import numpy as np", "ak.": "import awkward as ak"}
    names: dict[str, Any] = {}
    for name, text in imports.items():
        if name in value:
            exec(text, names)
    exec(f"def run_query(f): return {value}", names)
    with pytest.raises(program_child.NotColumnsError) as caught:
        program_child._trees(names["run_query"]("/x"))
    error = caught.value
    assert expected in str(FunctionError(error.message, hint=error.hint))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("None", "run_query returned None (is a return missing?"),
        ("{'a': {'x': 3}}", "its 'a' is a dict whose 'x' is the number 3"),
        ("[1, object()]", "returned a list, which cannot become an array"),
    ],
)
def test_child_process_reports_an_invalid_return_value(
    run: Runner, value: str, expected: str
) -> None:
    """The error of the child process comes back with its hint."""
    said, _ = run.fails(FunctionError, f"def run_query(f): return {value}")
    assert expected in said


def test_result_that_the_format_cannot_hold_is_rejected(run: Runner) -> None:
    """The error names the column and the reason."""
    said, _ = run.fails(
        FormatError,
        "import awkward as ak\ndef run_query(f): return ak.Array({'x': [1, None]})",
        result_format=TTREE,
    )
    assert "a TTree cannot hold column x" in said
    said, _ = run.fails(FormatError, "def run_query(f): return {'a': [1], 'b': {'x': [1]}}")
    assert "different columns" in said


def test_an_exception_is_shown_with_its_line(run: Runner) -> None:
    """The message has type, text and line of the source. The log shows the user's frames."""
    said, log = run.fails(
        FunctionError,
        """
        import json
        print("before")
        def cut(x):
            return json.loads(x)
        def run_query(f):
            return cut("{")
        """,
    )
    assert said.startswith(
        "the function failed in line 5 (return json.loads(x)): JSONDecodeError: Expecting"
    )
    assert log.startswith("before\nTraceback (most recent call last):\n")
    assert 'File "query.py", line 7, in run_query' in log
    assert 'File "query.py", line 5, in cut' in log
    assert "json/" not in log
    assert "child.py" not in log


@cases(
    "source, expected",
    {
        "missing-module": (
            "import nosuchmodule",
            "line 1 (import nosuchmodule): ModuleNotFoundError",
        ),
        "missing-module-hint": (
            "import nosuchmodule",
            "workers have no nosuchmodule; there are numpy",
        ),
        "division": ("1/0", "line 1 (1/0): ZeroDivisionError: division by zero"),
        "recursion": ("def run_query(f): return run_query(f)", "RecursionError"),
        "interrupt": ("def run_query(f): raise KeyboardInterrupt", "KeyboardInterrupt"),
        "assertion": ("def run_query(f): assert f == 1", "AssertionError"),
        "no-text": (
            "class E(Exception):\n  __str__ = None\ndef run_query(f): raise E",
            "cannot be shown",
        ),
        "long-text": ("def run_query(f): raise ValueError('x' * 10**6)", "xxx…"),
        "exit": ("import sys\ndef run_query(f): sys.exit(3)", "called sys.exit(3) in line 2"),
        "exit-at-import": ("raise SystemExit", "called sys.exit() in line 1"),
        "os-exit": (
            "import os\ndef run_query(f): os._exit(7)",
            "exit code 7 before the function returned",
        ),
        "os-exit-0": (
            "import os\ndef run_query(f): os._exit(0)",
            "exit code 0 before the function returned",
        ),
        "killed": ("import os\ndef run_query(f): os.kill(os.getpid(), 9)", "by signal 9 (SIGKILL)"),
        "terminated": (
            "import os\ndef run_query(f): os.kill(os.getpid(), 15)",
            "by signal 15 (SIGTERM)",
        ),
        "aborted": ("import os\ndef run_query(f): os.abort()", "by signal 6 (SIGABRT)"),
        "no-function": (
            "run_query = None; exec('run_query = 3')",
            "run_query is the number 3, not a function",
        ),
    },
    bare=["division", "os-exit", "os-exit-0", "killed", "terminated", "aborted"],
)
def test_early_end_is_an_error_of_the_function(run: Runner, source: str, expected: str) -> None:
    """Exceptions, exits and signals give one class of error, which names the cause."""
    if "def run_query" not in source:
        source += "\nif 0:\n  def run_query(f): ..."
    said, log = run.fails(FunctionError, source)
    assert expected in said
    assert len(said) < 1000
    assert len(log) < FIRST + LAST + 10_000


def test_crash_shows_its_line(run: Runner) -> None:
    """After a segmentation fault, the log has the line of the user's source."""
    said, log = run.fails(
        FunctionError, "import ctypes\ndef run_query(f):\n    ctypes.string_at(0)"
    )
    assert "by signal 11 (SIGSEGV) (a compiled library crashed" in said
    assert 'File "query.py", line 3 in run_query' in log


@cases(
    "source, line",
    {
        "busy": (
            "def run_query(f):\n    while True: pass",
            "line 3 of run_query (while True: pass)",
        ),
        "asleep": (
            "import time\ndef g(): time.sleep(99)\ndef run_query(f): g()",
            "line 3 of g (def g(): time.sleep(99))",
        ),
        "imports": (
            "import threading\nthreading.Event().wait()\ndef run_query(f): ...",
            "line 3 of <module> (threading",
        ),
        "ignores-signals": (
            (
                "import signal, time\ndef run_query(f):\n"
                "    for n in (1, 2, 3, 10, 12, 15): signal.signal(n, signal.SIG_IGN)\n"
                "    time.sleep(99)"
            ),
            "",
        ),
        "stopped": (
            "import os, signal\ndef run_query(f): os.kill(os.getpid(), signal.SIGSTOP)",
            "",
        ),
    },
    bare=["busy", "ignores-signals", "stopped"],
)
def test_function_is_stopped_at_its_time_limit(run: Runner, source: str, line: str) -> None:
    """Wall time counts, whatever the process does. The message says where the function was."""
    said, log = run.fails(OutOfTimeError, f"print('begun')\n{source}", seconds=3)
    assert "took longer than 3 s and was stopped" in said
    assert line in said
    assert log == "begun"


@cases(
    "source",
    {
        "bytes": ("def run_query(f):\n    a = []\n    while True: a.append(bytearray(1 << 20))",),
        "numpy": ("import numpy as np\ndef run_query(f): return np.ones(10**11)",),
        "text": ("def run_query(f):\n    x = 'a'\n    while True: x += x",),
        "awkward": (
            (
                "import awkward as ak, numpy as np\ndef run_query(f):\n"
                "    a = ak.Array(np.ones(1 << 20))\n    while True: a = ak.concatenate([a, a])"
            ),
        ),
        "wrapped": (
            (
                "def run_query(f):\n    try: return bytearray(1 << 40)\n"
                "    except MemoryError: raise ValueError('no')"
            ),
        ),
        "shared": (
            (
                "import mmap\ndef run_query(f):\n    m = mmap.mmap(-1, 4 << 30)\n"
                "    while True: m.write(bytes(1 << 20))"
            ),
        ),
        "family": (
            (
                "import os, time\ndef run_query(f):\n    for _ in range(4): os.fork()\n"
                "    x = bytearray(os.urandom(1 << 10)) * (100 << 10)\n    time.sleep(20)"
            ),
        ),
    },
    bare=["bytes", "shared", "family"],
)
def test_function_is_stopped_at_its_memory_limit(run: Runner, source: str) -> None:
    """The limit holds for each process and for all together. The worker is not harmed."""
    said, _ = run.fails(OutOfMemoryError, source)
    assert "needs more than 64 MiB of memory" in said


@pytest.mark.parametrize("result_format", list(ResultFormat))
def test_memory_of_libraries_does_not_count(run: Runner, result_format: ResultFormat) -> None:
    """With uproot, awkward and pyarrow, 1 MiB is enough for a small result."""
    source = "import uproot, awkward, pyarrow.parquet\ndef run_query(f): return [1, 2]"
    assert run(source, result_format, memory=1 << 20).events == 2


@cases(
    "source, expected",
    {
        "one-file": (
            (
                "def run_query(f):\n    with open('x', 'wb') as o:\n"
                "        while True: o.write(bytes(1 << 20))"
            ),
            "in line 3 (while True: o.write(bytes(1 << 20))): File too large",
        ),
        "many-files": (
            (
                "import itertools\ndef run_query(f):\n    for n in itertools.count():\n"
                "        with open(f'x{n}', 'wb') as o: o.write(bytes(1 << 20))"
            ),
            "wrote more than 8 MiB and was stopped",
        ),
        "program": (
            (
                "import subprocess\ndef run_query(f):\n"
                "    subprocess.run('for i in 1 2 3; do head -c 4M /dev/zero > $i; done; sleep 20',"
                " shell=True)"
            ),
            "wrote more than 8 MiB and was stopped",
        ),
        "result": (
            "import numpy as np\ndef run_query(f):\n    return np.random.random(1 << 21)",
            "no space is left to write the result",
        ),
    },
    bare=["one-file", "program"],
)
def test_function_is_stopped_at_its_disk_limit(run: Runner, source: str, expected: str) -> None:
    """The limit holds for each file, for all files together, and for the result."""
    said, _ = run.fails(DiskFullError, source, disk=8 << 20)
    assert expected in said


def test_log_keeps_the_beginning_and_the_end_of_long_output(run: Runner) -> None:
    """Thirty megabytes of output cost no memory."""
    before = psutil.Process().memory_info().rss
    done = run(
        """
        import sys
        def run_query(f):
            print("first")
            for _ in range(30):
                sys.stdout.write("x" * 999_999 + "\\n")
            print("last", file=sys.stderr)
            return [1]
        """
    )
    assert done.log_tail.startswith("first\nxxx")
    assert done.log_tail.endswith("x\nlast")
    left_out = 30_000_011 - FIRST - LAST
    assert f"\n… {left_out:,} bytes left out …\n" in done.log_tail
    assert len(done.log_tail) < FIRST + LAST + 100
    assert psutil.Process().memory_info().rss - before < 20 << 20


def test_endless_output_ends_at_the_time_limit(run: Runner) -> None:
    """The worker does not wait for the end of the output."""
    said, log = run.fails(
        OutOfTimeError, "def run_query(f):\n    while True: print('y' * 1000)", seconds=1
    )
    assert "took longer than 1 s" in said
    assert "bytes left out" in log


def test_binary_output_becomes_text(run: Runner) -> None:
    """The log does not have characters that a terminal obeys or a database rejects."""
    done = run(
        """
        import sys
        def run_query(f):
            sys.stdout.buffer.write(bytes(range(256)) + "é\\x1b[31mμ\\r\\nend".encode())
            return [1]
        """
    )
    assert "\0" not in done.log_tail
    assert "\x1b" not in done.log_tail
    assert "ABCDEFG" in done.log_tail
    assert done.log_tail.endswith("é[31mμ\nend")


@pytest.mark.parametrize(
    "trick",
    [
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
        "sys.stdout = sys.stderr = None",
        "sys.modules.clear()",
        "sys.modules = None",
        "sys.modules['json'] = sys.modules['os'] = None",
        "sys.path.clear()",
        "os.chdir('/'); os.environ.clear()",
        "os.mkdir('d'); open('d/x', 'w').close(); os.chmod('d', 0)",
        "threading.Thread(target=threading.Event().wait).start()",
        "atexit.register(lambda: os._exit(9))",
        "signal.alarm(0); signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "os.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None",
        "os.fork()",
    ],
)
def test_tricks_do_not_lose_the_result(run: Runner, trick: str) -> None:
    """The worker delivers the result, whatever a function does to its interpreter."""
    source = (
        f"import atexit, os, signal, sys, threading\n"
        f"def run_query(f):\n    {trick}\n    return [1, 2, 3]"
    )
    assert run(source).events == 3
    assert parquet(run.output) == {"branch": [1, 2, 3]}


def test_closing_every_descriptor_is_an_error(run: Runner) -> None:
    """The error has the exit code only, because the function closes the pipe of its report."""
    said, _ = run.fails(
        FunctionError, "import os\ndef run_query(f):\n    os.closerange(0, 999)\n    return [1]"
    )
    assert "ended with exit code 0" in said


DAEMON = """
import os, time
def run_query(f):
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.chdir("/")
            os.write(tell, b"x")
            while True: time.sleep(1)
        os._exit(0)
    os.wait()
    os.read(ready, 1)
    {then}
"""


@both_ways
@on_linux
@pytest.mark.parametrize(
    ("then", "error"),
    [
        ("return [1]", None),
        ("1 / 0", FunctionError),
        ("os._exit(1)", FunctionError),
        ("time.sleep(99)", OutOfTimeError),
    ],
)
def test_daemon_does_not_outlive_the_function(
    run: Runner, then: str, error: type[ServiceXError] | None
) -> None:
    """The worker finds and ends a process that left its session, parent and folder."""
    source = DAEMON.format(then=then)
    if error:
        run.fails(error, source, seconds=1.5)
    else:
        assert run(source).events == 1


BOMB = """
import os, time
end = time.monotonic() + 60
def run_query(f):
    while time.monotonic() < end:
        if os.fork() == 0:
            try: {leave}
            except OSError: pass
"""


@on_linux
@pytest.mark.parametrize(
    ("run", "leave"),
    [
        ("sandboxed", "os.setsid()"),
        ("bare", ""),
        ("bare", "os.setsid()"),
        ("bare", "os.setpgid(0, 0)"),
    ],
    indirect=["run"],
)
def test_a_fork_bomb_is_stopped(run: Runner, leave: str) -> None:
    """The worker counts and ends processes. Or the system refuses more, but not to root."""
    said, _ = run.fails(FunctionError, BOMB.format(leave=leave or "pass"), memory=8 << 30)
    stopped = "started more than 256 processes, and was stopped" in said
    assert stopped or "BlockingIOError" in said


@on_linux
def test_chain_of_short_lived_processes_is_ended(run: Runner) -> None:
    """Each process starts a child and ends, over and over. The worker ends all of them."""
    run.fails(
        OutOfTimeError,
        """
        import os, time
        end = time.monotonic() + 15
        def run_query(f):
            if os.fork() == 0:
                while time.monotonic() < end:
                    if os.fork():
                        os._exit(0)
            time.sleep(15)
        """,
        seconds=1,
    )


@contextmanager
def children(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Give so many processes of this one that sleep."""
    own = [subprocess.Popen(["sleep", "300"]) for _ in range(count)]
    try:
        yield own
    finally:
        for one in own:
            one.kill()
            one.wait()


def test_other_children_of_the_worker_survive(run: Runner) -> None:
    """The worker ends only processes that the function started."""
    with children(1) as (own,):
        assert run(DAEMON.format(then="return [1]")).events == 1
        assert own.poll() is None


@on_linux
@pytest.mark.parametrize("run", ["bare"], indirect=True)
def test_a_fork_bomb_is_stopped_beside_many_processes_of_the_worker(run: Runner) -> None:
    """It was not, when the worker searched the whole machine for each of them."""
    with children(60) as own:
        said, _ = run.fails(FunctionError, BOMB.format(leave="os.setpgid(0, 0)"), memory=8 << 30)
        assert [one.poll() for one in own] == [None] * len(own)
    assert "more than 256 processes" in said or "BlockingIOError" in said


def test_function_gets_a_clean_environment(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees no secret or file of the worker. Home, scratch and current folder are the same."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("X509_USER_PROXY", "/tmp/x509up_u0")
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        done = run(
            """
            import os, sys, tempfile
            def run_query(f):
                print(sorted(os.environ))
                print(os.getcwd() == os.environ["HOME"] == tempfile.gettempdir(), os.listdir())
                print(sorted(int(n) for n in os.listdir("/dev/fd"))[:3], repr(sys.stdin.read()))
                for n in range(4, 999):
                    try:
                        os.set_inheritable(n, os.get_inheritable(n))
                    except OSError:
                        continue
                    print("open", n, os.get_inheritable(n))
                return [1]
            """
        )
    finally:
        os.close(reading)
        os.close(writing)
    names, folder, standard, *others = done.log_tail.splitlines()
    assert "SECRET" not in names
    assert "X509" not in names
    assert re.findall(r"SERVICEX\w*", names) == [OF_WORKER]
    assert folder == "True ['query.py']"
    assert standard.startswith("[0, 1, 2] ''")
    assert len(others) <= 1
    assert all(line.endswith("False") for line in others)


def test_functions_run_one_at_a_time_in_a_process(run: Runner) -> None:
    """Two threads of a worker do not end each other's processes."""
    source = "import time\ndef run_query(f):\n    time.sleep(0.3)\n    return [1]"
    results: list[ProgramResult] = []

    def work(number: int) -> None:
        folder = run.output.parent / f"thread-{number}"
        folder.mkdir()
        selection = base64.b64encode(source.encode()).decode()
        program = PythonFunction().compile(selection, PARQUET)
        done = run_program(program, "x", folder / "out", PARQUET, Limits(), folder)
        results.append(done)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.events for result in results] == [1, 1]


@on_linux
@pytest.mark.parametrize("sandboxed", [True, False])
def test_function_ends_with_its_worker(tmp_path: Path, *, sandboxed: bool) -> None:
    """A worker that is killed leaves no function behind, and in the sandbox no fork."""
    import subprocess

    script = f"""
import base64, pathlib
from servicex_server.languages.python_function import PythonFunction
from servicex_server.worker.program import run_program
from servicex_server.model import Limits, ResultFormat
source = '''
import os, time
def run_query(f):
    os.fork() or os.setsid()
    open("begun", "w").close()
    time.sleep(60)
'''
program = PythonFunction().compile(base64.b64encode(source.encode()).decode(), ResultFormat.TTREE)
folder = pathlib.Path({str(tmp_path)!r})
limits = Limits()
run_program(program, "x", folder / "o", ResultFormat.TTREE, limits, folder, sandboxed={sandboxed})
"""
    with subprocess.Popen([sys.executable, "-c", script]) as worker:
        until(lambda: any(tmp_path.glob("program-*/home/begun")), "it begins", seconds=20)
        below = psutil.Process(worker.pid).children(recursive=True)
        assert len(below) >= 1
        worker.send_signal(signal.SIGKILL)
    if not sandboxed:
        end_left_by(worker.pid)
    _, left = psutil.wait_procs(below, timeout=10)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)
