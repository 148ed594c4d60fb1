"""What runs on a worker for one file: replica -> query -> writer -> upload.

`transform` is a pure function of its `TaskSpec`: no database, no credential, no state but the
object it uploads. `check` is what can be said of it before there is a request: it goes the same
way as far as names and types reach, and leaves nothing.
"""

import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from servicex_server import plugins
from servicex_server.columnar.plan import Query, chunks
from servicex_server.columnar.read import RootFile, open_root
from servicex_server.credentials import chosen_for, what_was_shown
from servicex_server.errors import (
    CorruptError,
    DeniedError,
    DiskFullError,
    ErrorRecord,
    FunctionError,
    InternalError,
    MissingError,
    OutOfMemoryError,
    QueryError,
    ReplicaError,
    ServiceXError,
)
from servicex_server.languages.contract import Language, Program
from servicex_server.languages.run_child import run_program
from servicex_server.model import (
    Attempt,
    CheckSpec,
    Outcome,
    Replica,
    ResultFormat,
    TaskSpec,
)
from servicex_server.objects.upload import upload
from servicex_server.result import (
    Result,
    UnfinishedError,
    access_to,
    fetched,
    new_writer,
    plans_of,
)


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
        raced=spec.raced,
    )
    if not spec.replicas:
        return replace(blank, error=_NOWHERE.record())
    attempts: list[Attempt] = []
    outcome = blank
    with (
        tempfile.TemporaryDirectory(prefix="servicex-") as scratch,
        suppress(UnfinishedError),
        ExitStack() as writing,
    ):
        result = Result(spec, Path(scratch) / f"result{spec.format.suffix}", step, writing)
        for replica in spec.replicas:
            began = time.monotonic()
            try:
                work = compiled(spec.language, spec.selection, spec.format)
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
                    break  # no other copy can cure it
            else:
                attempts.append(Attempt(replica.place, time.monotonic() - began))
                break
        if outcome.error is not None:
            raise UnfinishedError
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
                    as_us = access_to(replica, spec.limits, spec.credentials, patience=patience)
                    with open_root(replica.place, as_us) as file:
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
    with new_writer(query, output, result_format) as writer:
        for _, name, plan, tree in plans_of(query, file):
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


def _one_replica(
    spec: TaskSpec, work: Query | Program, replica: Replica, result: Result, blank: Outcome
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
        )
    size = result.output.stat().st_size
    upload(result.output, spec.upload_url)
    return replace(done, url=replica.url, bytes_written=size)


def _run_program(
    spec: TaskSpec, work: Program, result: Result, replica: Replica, blank: Outcome
) -> Outcome:
    """Run a program on a replica, or a copy of it where it is one that the program may not read.

    What is shown to a host is for the service, and not for the code of its users.
    """
    folder = result.output.parent
    with ExitStack() as having:
        copy = None
        if spec.whole or chosen_for(replica.place, spec.credentials):
            copy = having.enter_context(fetched(replica, spec, folder, result.step))
        place = str(copy or replica.place)
        try:
            ran = run_program(work, place, result.output, spec.format, spec.limits, folder)
        except FunctionError:
            # what the program could not open may be the replica's fault, and another may work
            as_us = access_to(replica, spec.limits, spec.credentials)
            with suppress(CorruptError), open_root(replica.place, as_us, at=copy):
                pass
            raise
    return replace(blank, events_read=ran.events, events_written=ran.events, log_tail=ran.log_tail)
