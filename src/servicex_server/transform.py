"""What runs on a worker for one file: replica -> query -> writer -> upload.

`transform` is a pure function of its `TaskSpec`: no database, no credential, no state but the
object it uploads. `check` is what can be said of it before there is a request: it goes the same
way as far as names and types reach, and leaves nothing.
"""

import errno
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server import plugins
from servicex_server.columnar.plan import Plan, Query, chunks, parts
from servicex_server.columnar.read import RootFile, Tree, open_root
from servicex_server.columnar.write import Writer, open_writer
from servicex_server.errors import (
    CorruptError,
    DiskFullError,
    ErrorRecord,
    FunctionError,
    InternalError,
    MissingError,
    OutOfMemoryError,
    QueryError,
    ReplicaError,
    ServiceXError,
    TruncatedError,
    UnknownNameError,
    UploadError,
)
from servicex_server.languages.contract import Language, Program
from servicex_server.languages.run_child import run_program
from servicex_server.model import (
    Attempt,
    CheckSpec,
    Entries,
    Limits,
    Outcome,
    Replica,
    ResultFormat,
    TaskSpec,
)
from servicex_server.objects.contract import UNFINISHED


def transform(spec: TaskSpec, step: Callable[[], None] = lambda: None) -> Outcome:
    """Do the work on one file.

    Replicas are tried in the order given, until one works or the query is at fault. The result
    is uploaded before this returns; whatever goes wrong is in the outcome, never raised.

    Parameters
    ----------
    spec
        What to do.
    step
        Called whenever the work on a query has gone on: who watches may take long silence for a
        read that hangs. Of a query that is code nothing is known until it ends.
    """
    started = time.monotonic()
    blank = Outcome(
        request_id=spec.request_id,
        file_id=spec.file_id,
        attempt=spec.attempt,
        entries=spec.entries,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        url=spec.path,
    )
    if not spec.replicas:
        return replace(blank, error=_NOWHERE.record())
    attempts: list[Attempt] = []
    outcome = blank
    with (
        tempfile.TemporaryDirectory(prefix="servicex-") as scratch,
        suppress(_UnfinishedError),
        ExitStack() as writing,
    ):
        result = _Result(spec, Path(scratch) / f"result{spec.format.suffix}", step, writing)
        for replica in spec.replicas:
            began = time.monotonic()
            try:
                work = compiled(spec.language, spec.selection, spec.format)
                outcome = _one_replica(spec, work, replica, result, blank)
            except Exception as error:  # noqa: BLE001  # nothing may be raised out of a task
                failure = _known(error)
                result.failed(failure)
                record = failure.record()
                attempts.append(Attempt(replica.url, time.monotonic() - began, record))
                tail = getattr(failure, "log_tail", "")
                outcome = replace(blank, error=record, url=replica.url, log_tail=tail)
                if not isinstance(failure, ReplicaError):
                    break  # no other copy can cure it
            else:
                attempts.append(Attempt(replica.url, time.monotonic() - began))
                break
        if outcome.error is not None:
            raise _UnfinishedError
    return replace(outcome, attempts=tuple(attempts), seconds=time.monotonic() - started)


_NOWHERE = MissingError(
    "the catalogue knows no replica of this file that can be read now",
    hint="it may be on tape, or its sites are down",
)

_FIRST_RANGE = 1 << 20
"""Bytes of columns that are read to see whether an error without entries is one with them too."""


def check(spec: CheckSpec, *, patience: float) -> ErrorRecord | None:
    """Hold a query against the names and types of one file, as far as that goes without reading it.

    What is an error of the query here is one of `transform` on this file too: a computation on no
    entries that fails is tried again on the first ones, for an empty column may have less of a
    type than a full one. The reverse does not hold. A query that is code is not looked at.

    Parameters
    ----------
    spec
        The query and the file.
    patience
        Seconds that one answer of a remote server may take.

    Returns
    -------
    The error, of whatever kind; None if there is none. Nothing is raised.
    """
    record = None
    with tempfile.TemporaryDirectory(prefix="servicex-check-") as scratch:
        for replica in spec.replicas:
            try:
                work = compiled(spec.language, spec.selection, spec.format)
                if not isinstance(work, Program):
                    with _opened(replica, spec.limits, patience=patience) as file:
                        _hold(work, file, Path(scratch), spec.format)
            except Exception as error:  # noqa: BLE001  # the caller asks for it, whatever it is
                failure = _known(error)
                record = failure.record()
                if not isinstance(failure, ReplicaError):
                    break  # no other copy can cure it
            else:
                return None
    return record


def _hold(query: Query, file: RootFile, scratch: Path, result_format: ResultFormat) -> None:
    """Compute a query without entries, and begin to write it; raise what is wrong with it."""
    try:
        _dry_run(query, file, scratch / "none", result_format, read=False)
    except QueryError:
        _dry_run(query, file, scratch / "some", result_format, read=True)


def _dry_run(
    query: Query, file: RootFile, output: Path, result_format: ResultFormat, *, read: bool
) -> None:
    with _writer(query, output, result_format) as writer:
        for _, name, plan, tree in _plans(query, file):
            if read:
                _, _, arrays = next(chunks(plan, tree, budget=_FIRST_RANGE))
            else:
                _, arrays = plan.compute(tree, 0, 0, typed=True)
            writer.write(name, arrays)


@lru_cache(maxsize=64)
def compiled(language: str, selection: str, result_format: ResultFormat) -> Query | Program:
    """Return what a query means; the same text comes with every file of a request."""
    found: Language = plugins.load("languages", language, wire_name="codegen")()
    return found.compile(selection, result_format)


def _known(error: Exception) -> ServiceXError:
    if isinstance(error, ServiceXError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError("the work on this file needs more memory than a worker has")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("no space is left where the result is written")
    return InternalError(f"{type(error).__name__}: {error}", hint="please report this")


class _UnfinishedError(Exception):
    """What is written is not whole, and is dropped."""


class _Result:
    """What becomes of a file: how far it is, so that another replica goes on where one failed.

    Parameters
    ----------
    spec
        What to do.
    output
        Where it is written.
    step
        Called whenever it has gone on.
    writing
        What ends the writing, by an error if it is not whole.
    """

    def __init__(
        self, spec: TaskSpec, output: Path, step: Callable[[], None], writing: ExitStack
    ) -> None:
        self.output = output
        self._spec = spec
        self._step = step
        self._writing = writing
        self._doubtful = False
        self.fetched = 0
        self._begin()

    def _begin(self) -> None:
        self._writer: Writer | None = None
        self._at: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._copied: set[str] = set()
        self.read = self.kept = 0

    def take(self, query: Query, replica: Replica) -> tuple[Entries, ...]:
        """Write what is not there yet from a replica; return the parts if it is done in parts.

        Raises
        ------
        ReplicaError
            What was written by then is good, and stays.
        """
        self._step()
        with _opened(replica, self._spec.limits) as file:
            try:
                plans = _plans(query, file)
                self._compare(replica, {number: tree for number, _, _, tree in plans})
                if self._writer is None:
                    if found := self._parts(query, plans):
                        return found
                    writer = _writer(query, self.output, self._spec.format)
                    self._writer = self._writing.enter_context(writer)
                for of_one in plans:
                    self._tree(self._writer, *of_one)
                self._copy_objects(self._writer, query, file)
            finally:
                self.fetched += file.bytes_read
        self._writing.close()
        return ()

    def failed(self, error: ServiceXError) -> None:
        """Hear of what was wrong with a replica; one that is broken is not believed any more."""
        self._doubtful |= isinstance(error, TruncatedError | CorruptError)

    def _compare(self, replica: Replica, trees: dict[int, Tree]) -> None:
        """Hold the trees of another replica against those that a part was written of.

        Raises
        ------
        CorruptError
            They differ, and nothing is known against the former one.
        """
        for number, entries in self._entries.items():
            there = trees[number].entries if number in trees else 0
            if there == entries:
                continue
            if not self._doubtful:
                raise CorruptError(
                    f"{replica.url} has {there} entries where another replica has {entries}"
                )
            with suppress(_UnfinishedError), self._writing.pop_all():
                raise _UnfinishedError  # what was written is dropped
            self._begin()
            return

    def _parts(self, query: Query, plans: list[tuple[int, str, Plan, Tree]]) -> tuple[Entries, ...]:
        if self._spec.entries is not None or len(plans) != 1 or query.copies:
            return ()  # only a single tree has parts
        (_, _, plan, tree), *_ = plans
        return parts(plan, tree, size=self._spec.limits.part)

    def _tree(self, writer: Writer, number: int, name: str, plan: Plan, tree: Tree) -> None:
        first, last = self._spec.entries or (0, None)
        for end, count, arrays in chunks(
            plan,
            tree,
            budget=self._spec.limits.chunk,
            start=self._at.get(number, first),
            stop=last,
            typed=number not in self._at,
        ):
            self._step()
            if arrays:
                writer.write(name, arrays)
            self.kept += count
            self.read += end - self._at.get(number, first)
            self._at[number], self._entries[number] = end, tree.entries

    def _copy_objects(self, writer: Writer, query: Query, file: RootFile) -> None:
        for pattern in query.copies:
            for path, found in file.objects(pattern):
                if path not in self._copied:
                    writer.copy(path, found)
                    self._copied.add(path)


def _one_replica(
    spec: TaskSpec, work: Query | Program, replica: Replica, result: _Result, blank: Outcome
) -> Outcome:
    if isinstance(work, Program):
        done = _run_program(spec, work, replica, result.output, blank)
    elif found := result.take(work, replica):
        return replace(blank, parts=found, url=replica.url)
    else:
        done = replace(
            blank,
            events_read=result.read,
            events_written=result.kept,
            bytes_read=result.fetched,
        )
    size = result.output.stat().st_size
    _upload(result.output, spec.upload_url)
    return replace(done, url=replica.url, bytes_written=size)


def _opened(
    replica: Replica, limits: Limits, *, patience: float = math.inf
) -> AbstractContextManager[RootFile]:
    return open_root(replica.url, opening=limits.opening, silence=limits.silence, patience=patience)


def _run_program(
    spec: TaskSpec, work: Program, replica: Replica, output: Path, blank: Outcome
) -> Outcome:
    try:
        ran = run_program(work, replica.url, output, spec.format, spec.limits, output.parent)
    except FunctionError:
        # what the program could not open may be the replica's fault, and another may work
        with suppress(CorruptError), _opened(replica, spec.limits):
            pass
        raise
    return replace(blank, events_read=ran.events, events_written=ran.events, log_tail=ran.log_tail)


def _writer(query: Query, output: Path, result_format: ResultFormat) -> Writer:
    several = len({extraction.output for extraction in query.extractions}) > 1
    return open_writer(output, result_format.value, tree_column=several)


def _plans(query: Query, file: RootFile) -> list[tuple[int, str, Plan, Tree]]:
    """Return the trees that are there: number of the extraction, what it becomes, plan, tree."""
    present = _present(query, file)
    plans = []
    for number, extraction in enumerate(query.extractions):
        if extraction.tree in present:
            tree = file.tree(extraction.tree or _only_tree(file))
            plans.append((number, extraction.output, extraction.bind(tree), tree))
    return plans


def _present(query: Query, file: RootFile) -> set[str]:
    """Return which of the query's trees the file has; a tree that must be there and is not raises.

    Raises
    ------
    UnknownNameError
        A required tree is missing; or all are, unless the query says that this is fine.
    """
    present = set()
    missing = []
    for extraction in query.extractions:
        if not extraction.tree or file.has(extraction.tree):
            present.add(extraction.tree)
        elif extraction.required:
            file.tree(extraction.tree)
        elif extraction.required is None:
            missing.append(extraction)
    if missing and not present and not query.copies:
        try:
            file.tree(missing[0].tree)
        except UnknownNameError as error:
            raise UnknownNameError(
                error.message, hint=f"{error.hint}; fail_on_missing_trees=false accepts such files"
            ) from None
    return present


def _only_tree(file: RootFile) -> str:
    """Return the tree that a query means which names none."""
    if len(file.trees) == 1:
        return file.trees[0]
    many = "several trees" if file.trees else "no tree"
    raise UnknownNameError(
        f"the query names no tree, and the file has {many}",
        hint=f"name one of {', '.join(file.trees[:8])}" if file.trees else "",
    )


def _upload(path: Path, url: str) -> None:
    """Put a finished file where it belongs; it is there whole or not at all."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        target = Path(unquote(parts.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is a rename on one file system
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=UNFINISHED, delete=False
        ) as part:
            try:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, part, 1 << 20)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).replace(target)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        return
    import httpx

    length = {"Content-Length": str(path.stat().st_size)}
    try:
        with path.open("rb") as source:
            response = httpx.put(url, content=source, timeout=120, headers=length)
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise UploadError(f"the object store cannot be reached: {why}") from error
    if response.is_error:
        raise UploadError(
            f"the object store refused the result: {response.status_code} {response.text[:200]}"
        )
