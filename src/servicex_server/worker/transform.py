"""The work on one file, which runs on a worker: replica -> query -> writer -> upload.

`transform` is a pure function of its `TaskSpec`: it uses no database and no stored credential, and
its only effect is the uploaded object. `check` is its dry run before a request is accepted: it
checks names and types in the same way, and leaves nothing behind.
"""

import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from servicex_server import plugins
from servicex_server.columnar.plan import Plan, Query, chunks
from servicex_server.columnar.reading.access import checked_url
from servicex_server.columnar.reading.error_mapping import reading
from servicex_server.columnar.reading.local_files import checked_path
from servicex_server.columnar.reading.trees import RootFile, Tree, open_root
from servicex_server.columnar.writing.joining import join
from servicex_server.columnar.writing.read_back import read_back
from servicex_server.columnar.writing.writer import Writer
from servicex_server.credentials import chosen_for, what_was_shown
from servicex_server.errors import (
    CorruptError,
    DeniedError,
    ErrorRecord,
    FunctionError,
    InternalError,
    MissingError,
    OutOfMemoryError,
    QueryError,
    ReplicaError,
    SandboxError,
    ScratchFullError,
    ServiceXError,
)
from servicex_server.languages.contract import Language, Program
from servicex_server.model import (
    Attempt,
    CheckSpec,
    Outcome,
    Replica,
    ResultFormat,
    SandboxChoice,
    TaskSpec,
)
from servicex_server.network.urls import scheme_of
from servicex_server.worker.download import downloaded
from servicex_server.worker.extraction import (
    Bound,
    ExtractionJob,
    UnfinishedError,
    access_to,
    copies_of,
    fetched,
    is_part,
    new_writer,
    readable,
)
from servicex_server.worker.program import run_program
from servicex_server.worker.sandbox import sandbox_problem
from servicex_server.worker.upload import upload


@lru_cache(maxsize=64)
def compiled(
    language: str, selection: str, result_format: ResultFormat, *, accepted: bool = False
) -> Query | Program:
    """Compile a query; cached, because the same text comes with every file of a request.

    An ``accepted`` query has compiled before, and is not checked again.
    """
    found: Language = plugins.load("languages", language, wire_name="codegen")()
    return found.compiled(selection, result_format, accepted=accepted)


def transform(
    spec: TaskSpec,
    step: Callable[[], None] = lambda: None,
    compile_query: Callable[[str, str, ResultFormat], Query | Program] = compiled,
) -> Outcome:
    """Extract and upload the result of one file.

    Replicas are tried in the given order until one works, or until the error is not that of a
    replica. The result is uploaded before this returns. Errors are in the outcome, never raised.

    Parameters
    ----------
    spec
        The task.
    step
        Called whenever the work on a query makes progress, so that a watcher can take a long
        silence for a read that hangs. Code of a user reports no progress until it ends.
    compile_query
        Compiles the query; a worker passes a function that limits time and memory.
    """
    started = time.monotonic()
    blank = Outcome(
        request_id=spec.request_id,
        file_id=spec.file_id,
        attempt=spec.attempt,
        entries=spec.entries,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        url=spec.path,
        speculative=spec.speculative,
    )
    if spec.joins:
        return _joined(spec, step, blank)
    if not spec.replicas:
        return replace(blank, error=_NOWHERE.record())
    attempts: list[Attempt] = []
    outcome = blank
    with (
        tempfile.TemporaryDirectory(prefix="servicex-") as scratch,
        suppress(UnfinishedError),
        ExitStack() as writing,
    ):
        result = ExtractionJob(spec, Path(scratch) / f"result{spec.format.suffix}", step, writing)
        for replica in spec.replicas:
            began = time.monotonic()
            try:
                work = compile_query(spec.language, spec.selection, spec.format)
                outcome = _one_replica(spec, work, replica, result, blank)
            except Exception as error:  # noqa: BLE001  # nothing may be raised out of a task
                failure = _known(error)
                if isinstance(failure, DeniedError) and not failure.hint:
                    failure.hint = what_was_shown(replica.place, spec.credentials)
                result.failed(failure)
                record = failure.record()
                attempts.append(Attempt(replica.place, time.monotonic() - began, record))
                tail = getattr(failure, "log_tail", "")
                outcome = replace(blank, error=record, url=replica.url, log_tail=tail)
                if not isinstance(failure, ReplicaError):
                    break  # another replica would not help
            else:
                attempts.append(Attempt(replica.place, time.monotonic() - began))
                break
        if outcome.error is not None:
            raise UnfinishedError
    return replace(outcome, attempts=tuple(attempts), seconds=time.monotonic() - started)


def _joined(spec: TaskSpec, step: Callable[[], None], blank: Outcome) -> Outcome:
    """Join the results of the splits of a file to one result, and upload it."""
    started = time.monotonic()

    def parts(folder: Path) -> Iterator[AbstractContextManager[Path]]:
        for url in spec.joins:
            step()
            yield downloaded(url, folder)

    with tempfile.TemporaryDirectory(prefix="servicex-") as scratch:
        output = Path(scratch) / f"result{spec.format.suffix}"
        try:
            join(parts(Path(scratch)), output, spec.format.value)
            read_back(output, spec.format.value, None)
            size = output.stat().st_size
            step()
            upload(output, spec.upload_url, patience=spec.limits.upload, step=step)
        except Exception as error:  # noqa: BLE001  # nothing may be raised out of a task
            outcome = replace(blank, error=_known(error).record())
        else:
            outcome = replace(blank, bytes_written=size)
    return replace(outcome, seconds=time.monotonic() - started)


_NOWHERE = MissingError(
    "the catalogue knows no replica of this file that can be read now",
    hint="it may be on tape, or its sites are down",
)

_FIRST_RANGE = 1 << 20
"""Bytes of columns to read when a dry run without entries fails, to confirm the error."""


def check(spec: CheckSpec, *, patience: float) -> ErrorRecord | None:
    """Dry-run a query on one file: check its names and types without reading all entries.

    An error of the query that this finds is an error of `transform` on this file too. If the
    computation fails without entries, it is repeated with the first entries, because an empty
    column may have a less precise type than a filled one. The reverse does not hold: a query that
    passes may still fail. Code of users is not checked.

    Parameters
    ----------
    spec
        The query and the file.
    patience
        Seconds that one response of a remote server may take.

    Returns
    -------
    The error, of any kind, or None. Nothing is raised.
    """
    record = None
    with tempfile.TemporaryDirectory(prefix="servicex-check-") as scratch:
        for replica in spec.replicas:
            try:
                work = compiled(spec.language, spec.selection, spec.format)
                if not isinstance(work, Program):
                    as_us = access_to(replica, spec.limits, spec.credentials, patience=patience)
                    with open_root(replica.place, as_us) as file:
                        _dry_run(work, file, Path(scratch), spec.format)
            except Exception as error:  # noqa: BLE001  # the caller asks for it, whatever it is
                failure = _known(error)
                record = failure.record()
                if not isinstance(failure, ReplicaError):
                    break  # another replica would not help
            else:
                return None
    return record


def _dry_run(query: Query, file: RootFile, scratch: Path, result_format: ResultFormat) -> None:
    """Compute a query without entries and begin to write it; raise the error of the query."""
    copies_of(query, file)

    def attempt(output: Path, *, read: bool) -> None:
        readable(
            query,
            file,
            lambda plans: _dry_run_plans(
                plans, new_writer(query, output, result_format), read=read
            ),
        )

    try:
        attempt(scratch / "none", read=False)
    except QueryError:
        attempt(scratch / "some", read=True)


def _dry_run_plans(plans: Sequence[Bound], writer: Writer, *, read: bool) -> None:
    with writer:
        for _, name, plan, tree in plans:
            if read:
                _, _, arrays = next(chunks(plan, tree, budget=_FIRST_RANGE))
            else:
                arrays = _without_entries(plan, tree)
            writer.write(name, arrays)


def _without_entries(plan: Plan, tree: Tree) -> dict[str, Any]:
    """Compute a plan on no entries; that takes hardly any memory unless the query itself does."""
    try:
        return plan.compute(tree, 0, 0, typed=True)[1]
    except MemoryError:
        raise QueryError(
            "this query needs too much memory, even before it reads any entry",
            hint="does it multiply a text or a list by a large number?",
        ) from None


def _known(error: Exception) -> ServiceXError:
    if isinstance(error, ServiceXError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError("the work on this file needs more memory than a worker has")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ScratchFullError("no space is left where the result is written")
    return InternalError(f"{type(error).__name__}: {error}", hint="please report this")


def _one_replica(
    spec: TaskSpec, work: Query | Program, replica: Replica, result: ExtractionJob, blank: Outcome
) -> Outcome:
    if isinstance(work, Program):
        done = _run_program(spec, work, result, replica, blank)
    elif found := result.take(work, replica):
        return replace(blank, parts=found, url=replica.url)
    else:
        done = replace(
            blank,
            events_read=result.read,
            events_written=result.kept,
            bytes_read=result.fetched,
            log_tail=result.log,
        )
    if not is_part(spec):
        rows = None if isinstance(work, Program) else result.kept
        read_back(result.output, spec.format.value, rows)
    size = result.output.stat().st_size
    upload(result.output, spec.upload_url, patience=spec.limits.upload, step=result.step)
    return replace(done, url=replica.url, bytes_written=size)


def _checked(url: str, folders: Sequence[Path]) -> str:
    """Return what a program may open: a checked URL, or the real path of a local file."""
    with reading(url):
        local = scheme_of(url) in ("", "file")
        return str(checked_path(url, folders) if local else checked_url(url))


def _run_program(
    spec: TaskSpec, work: Program, result: ExtractionJob, replica: Replica, blank: Outcome
) -> Outcome:
    """Run a program on a replica, or on a copy if the program may not read the replica itself.

    A copy is made if the host needs credentials, which belong to the service and not to the code
    of its users; if the network policy forbids servers, because only this process resolves and
    checks names; and in the sandbox, which has no network.
    """
    folder = result.output.parent
    sandboxed = _sandboxed(spec.sandbox)
    remote = scheme_of(replica.place) not in ("", "file")
    fetches = sandboxed or spec.limits.network.restricts
    with ExitStack() as having:
        copy = None
        if spec.whole or chosen_for(replica.place, spec.credentials) or (fetches and remote):
            copy = having.enter_context(fetched(replica, spec, folder, result.step))
        place = str(copy) if copy else _checked(replica.place, spec.limits.folders)
        try:
            ran = run_program(
                work,
                place,
                result.output,
                spec.format,
                spec.limits,
                folder,
                sandboxed=sandboxed,
                used=time.monotonic() - result.began,
            )
        except FunctionError:
            # the replica may be the reason, and another one may work
            as_us = access_to(replica, spec.limits, spec.credentials)
            with suppress(CorruptError), open_root(replica.place, as_us, at=copy):
                pass
            raise
    return replace(blank, events_read=ran.events, events_written=ran.events, log_tail=ran.log_tail)


def _sandboxed(choice: SandboxChoice) -> bool:
    """Return whether to use the sandbox on this worker.

    Raises
    ------
    SandboxError
        The sandbox is required, but does not work here.
    """
    if choice is SandboxChoice.NONE:
        return False
    problem = sandbox_problem()
    if problem and choice is SandboxChoice.BUBBLEWRAP:
        raise SandboxError(
            f"worker {socket.gethostname()} does not run code of users: {problem}",
            hint="functions run only in a sandbox here; tell the operators of the service",
        )
    return not problem
