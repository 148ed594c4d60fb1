"""Texts that are made to cost, against the compiler of each language: the worst that was seen.

Each text is compiled twice. The first time by the service's `QueryCompiler`, to measure what this
takes of the process that users share. The second time in a child process without limits, to measure
what it takes of a helper process. ``python -m benchmarks.fuzz`` is that child: it reads one JSON
list of a language and a text from each line, and answers with the seconds of processor and the
bytes of memory that compiling took.
"""

import asyncio
import base64
import json
import resource
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.queries import QUERIES
from benchmarks.report import Section
from servicex_server.errors import ServiceXError
from servicex_server.model import ResultFormat
from servicex_server.query_processes.compiler import LIMITS, QueryCompiler
from tests.property.hostile_texts import LANGUAGES, Text
from tests.property.typed_trees import trees
from tests.property.written_queries import queries

MAX_TEXT = 1 << 20
"""Bytes of a selection, as the service has it by default."""

PATIENCE = 20.0
"""Seconds of processor after which a text is ended."""

MADE_UP = 200
"""Queries that hypothesis writes to begin with."""

_SHOWN = 60
_RAW = (
    '[{"treename": "events", "expressions": ["pt/1000", "sqrt(px**2 + py**2)"], "cut": "n > 1"}]',
    '[{"treename": ["a", "b"], "filter_name": ["Jet_*", "/^(el|mu)_/i"], "aliases": {"x": "y"}}]',
    '[{"treename": {"a": "b"}, "filter_typename": "float*"}, {"copy_histograms": "/h_.*/"}]',
)
_SOURCE = """
import awkward as ak
import uproot

def run_query(path):
    with uproot.open({path: "events"}) as tree:
        arrays = tree.arrays(["pt", "eta"])
    try:
        return {name: arrays[name][arrays.pt > 20] for name in ("pt", "eta")}
    finally:
        del arrays
"""
_PIECES = (
    "( ) [ ] { } , : ; . + - * ** / // % < <= == and or not if else lambda in is for while try: "
    "finally: return yield def class a x 0 1 9 1e9 0x1 '' 'a' \" \\ \\n \\x41 \\u0041 \\w \\d * ? "
    "(? | ^ $ {1,9} e attr list dict call Select Where True None \u00e9 \u0300\u0316 \u2028 \t"
).split(" ")


@dataclass(order=True, frozen=True)
class Seen:
    """What one text cost."""

    value: float
    language: str
    text: str
    answer: str

    def row(self, what: str, unit: str, asked: str) -> tuple[str, ...]:
        """Return a line of the table."""
        shown = self.text
        if self.language == "python":
            shown = base64.b64decode(shown, validate=False).decode(errors="replace")
        shown = " ".join(shown.split())
        size = len(self.text)
        if len(shown) > _SHOWN:
            shown = f"{shown[:_SHOWN]}…{shown[-20:]}"
        said = self.answer[:_SHOWN]
        return self.language, what, f"{self.value:.3f} {unit}", asked, f"{size:,}", shown, said


class Child:
    """The process that compiles; a new one after each that had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def cost(self, language: str, text: str) -> tuple[float, float, str]:
        """Return the seconds and MiB that a text took, and what was said to it."""
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([language, text]) + "\n")
        process.stdin.flush()
        began = _processor(process.pid)
        while not select.select([process.stdout], [], [], 1)[0]:
            if _processor(process.pid) - began > PATIENCE:
                self.close()
                return PATIENCE, 0.0, "ended"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            return 0.0, 0.0, f"died with {code}"
        seconds, size, answer = json.loads(line)
        return seconds, size, answer

    def _started(self) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fuzz"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has imported what it needs
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Shared:
    """The process that users share: it has each text compiled by a helper process."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._compiler = QueryCompiler()
        self._runner.run(self._begin())

    async def _begin(self) -> None:
        self._compiler.start()

    def cost(self, language: str, text: str) -> tuple[float, float, str]:
        """Return the seconds and MiB of this process that a text took, and what was said to it."""
        return self._runner.run(self._cost(language, text))

    async def _cost(self, language: str, text: str) -> tuple[float, float, str]:
        before = _memory(reset=True)
        began = time.process_time()
        try:
            await self._compiler.compile("somebody", language, text, ResultFormat.TTREE)
            answer = "accepted"
        except ServiceXError as error:
            answer = str(error)
        took = time.process_time() - began
        return took, (_memory(reset=False) - before) / (1 << 20), answer

    def close(self) -> None:
        """End the helper processes."""
        self._runner.run(self._compiler.close())
        self._runner.close()


def _processor(pid: int) -> float:
    spent = psutil.Process(pid).cpu_times()
    return float(spent.user + spent.system)


def fuzz(seconds: float) -> list[Section]:
    """Compile hostile, made-up and mutated texts for so long; return the worst."""
    random = Random(0)
    corpora = {name: _corpus(name) for name in LANGUAGES}
    slowest: dict[str, Seen] = {}
    largest: dict[str, Seen] = {}
    held: dict[str, Seen] = {}
    taken: dict[str, Seen] = {}
    crashes: dict[str, Seen] = {}
    tried = dict.fromkeys(LANGUAGES, 0)
    child, shared = Child(), Shared()
    ends = time.monotonic() + seconds
    queue = [(name, text) for name in LANGUAGES for text in _hostile(LANGUAGES[name])]
    try:
        while time.monotonic() < ends:
            if queue:
                language, text = queue.pop(0)
            else:
                language = random.choice(list(LANGUAGES))
                text = _mutated(random, language, corpora[language])
            took, size, answer = shared.cost(language, text)
            _keep(held, Seen(took, language, text, answer))
            _keep(taken, Seen(size, language, text, answer))
            took, size, answer = child.cost(language, text)
            tried[language] += 1
            _keep(slowest, Seen(took, language, text, answer))
            _keep(largest, Seen(size, language, text, answer))
            if answer.startswith(("!", "ended", "died")):
                crashes.setdefault(f"{language} {answer[:40]}", Seen(took, language, text, answer))
            elif took > slowest[language].value / 2:
                corpora[language].append(text)  # what is nearly the worst is worth changing
    finally:
        child.close()
        shared.close()
    rows = [seen.row("service: time", "s", "0.1 s") for seen in held.values()]
    rows += [seen.row("service: memory", "MiB", "64 MiB") for seen in taken.values()]
    rows += [
        seen.row("helper: time", "s", f"limit {LIMITS.processor:g} s") for seen in slowest.values()
    ]
    rows += [
        seen.row("helper: memory", "MiB", f"limit {LIMITS.memory >> 20} MiB")
        for seen in largest.values()
    ]
    rows += [seen.row("a crash", "s", "none") for seen in crashes.values()]
    _store(
        [*held.values(), *taken.values(), *slowest.values(), *largest.values(), *crashes.values()]
    )
    count = ", ".join(f"{number:,} of {name}" for name, number in tried.items())
    headings = ("language", "what", "worst", "asked for", "bytes", "text", "answer")
    note = (
        "Processor time and memory that one text takes of the service, which all users share, and "
        "of a helper process, which can be killed and compiles nothing else meanwhile. In "
        f"{seconds:g} s of hostile, made-up and mutated texts: {count}. "
        "The texts are in .cache/fuzz."
    )
    return [Section("Texts that are made to cost", headings, tuple(rows), note)]


def _keep(worst: dict[str, Seen], seen: Seen) -> None:
    if seen.language not in worst or worst[seen.language].value < seen.value:
        worst[seen.language] = seen


def _store(worst: list[Seen]) -> None:
    folder = Path(__file__).parents[1] / ".cache" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seen in enumerate(worst):
        (folder / f"{number}-{seen.language}.txt").write_text(seen.text, errors="backslashreplace")


def _hostile(texts: dict[str, Text]) -> list[str]:
    """Return each hostile text in sizes that are let through, at a limit, and refused."""
    found = []
    for make in texts.values():
        for size in (30, 300, 1_000, 2_500, 5_000, 9_900, 19_000, 60_000, 250_000):
            text = make(size)
            if len(text.encode()) > MAX_TEXT:
                break
            found.append(text)
    return found


def _corpus(language: str) -> list[str]:
    """Return right texts of a language."""
    if language == "uproot-raw":
        return list(_RAW)
    if language == "python":
        return [base64.b64encode(_SOURCE.encode()).decode()]
    made_up = [qastle for _, qastle in QUERIES.values()]

    @settings(
        max_examples=MADE_UP,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def write(data: Any) -> None:
        made_up.append(data.draw(queries(data.draw(trees()))).text)

    write()
    return made_up


def _mutated(random: Random, language: str, corpus: list[str]) -> str:
    """Return a text with pieces of it, or of others, put in, repeated or nested."""
    text = random.choice(corpus)
    if language == "python":
        text = base64.b64decode(text, validate=False).decode(errors="replace")
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(text) + 1)
        end = min(len(text), at + random.randint(0, 60))
        times = int(10 ** random.uniform(0, 5))
        match random.randrange(5):
            case 0:
                text = text[:at] + random.choice(_PIECES) * times + text[at:]
            case 1:
                text = text[:at] + text[at:end] * max(1, times // 20) + text[end:]
            case 2:
                opening, closing = random.choice(("()", "[]", "{}", ("(-", ")"), ("['a',", "]")))
                text = text[:at] + opening * times + text[at:end] + closing * times + text[end:]
            case 3:
                piece = f" {random.choice(_PIECES)} ".join(
                    random.choice(_PIECES) for _ in range(min(times, 5_000))
                )
                text = text[:at] + piece + text[at:]
            case 4:
                text = text[:at] + text[end:]
    text = text[: MAX_TEXT // 2]
    return base64.b64encode(text.encode()).decode() if language == "python" else text


def _compile_each() -> None:
    """Be the child."""
    from servicex_server import plugins

    languages = {name: plugins.load("languages", name, wire_name="codegen")() for name in LANGUAGES}
    for name, makes in LANGUAGES.items():  # what is imported at the first time is no cost of a text
        for make in makes.values():
            try:
                languages[name].compile(make(3), ResultFormat.TTREE)
            except ServiceXError:
                continue
    print("ready", flush=True)
    for line in sys.stdin:
        language, text = json.loads(line)
        before = _memory(reset=True)
        began = time.process_time()
        try:
            languages[language].compile(text, ResultFormat.TTREE)
            answer = "accepted"
        except ServiceXError as error:
            answer = str(error)
        except Exception as error:  # noqa: BLE001  # it is what is looked for
            answer = f"! {type(error).__name__}: {error}"
        took = time.process_time() - began
        size = (_memory(reset=False) - before) / (1 << 20)
        print(json.dumps([took, size, answer[:300]]), flush=True)


def _memory(*, reset: bool) -> int:
    """Return the highest memory of this process in bytes, on Linux since it was reset."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _compile_each()
