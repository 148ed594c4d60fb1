"""The jobs of helper processes: compile a query, and dry-run one on a file. Data in, data out.

Both ends of each job are in this module, so that their data fit together.
"""

import hashlib
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from servicex_server import plugins
from servicex_server.credentials import chosen_for, forget, taken
from servicex_server.errors import ErrorRecord, QueryError, RequestError, ServiceXError
from servicex_server.languages.contract import Language, Program
from servicex_server.model import CheckSpec, Credential, Limits, Replica, ResultFormat
from servicex_server.network.policy import NetworkPolicy
from servicex_server.worker import transform

COMPILE, DRY_RUN = "compile", "dry-run"

LONGEST_TEXT = 16 << 10
"""Most characters of a text of an error in an answer; a message may quote the whole query."""

TOKEN_VARIABLES = ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "X509_USER_PROXY")
"""Variables in which `servicex_server.credentials` finds credentials without a setting."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the service needs to know about a query that compiles.

    ``is_code`` is true if it is a program. ``digest`` is equal for queries of equal meaning; it is
    None for code, whose meaning is unknown.
    """

    is_code: bool
    digest: str | None


def compile_job(language: str, selection: str, result_format: ResultFormat) -> dict[str, Any]:
    """Return the job that compiles a query."""
    return {
        "job": COMPILE,
        "language": language,
        "selection": selection,
        "format": result_format.value,
    }


def compiled_of(answer: dict[str, Any]) -> Compiled:
    """Return the result in the answer to a compile job.

    Raises
    ------
    RequestError
        The query does not compile.
    """
    if (error := answer.get("error")) is not None:
        raise _request_error(record_of(error))
    digest = answer["digest"]
    return Compiled(bool(answer["is_code"]), None if digest is None else str(digest))


def dry_run_job(spec: CheckSpec, *, patience: float, scratch: Path) -> dict[str, Any]:
    """Return the job that dry-runs a query, with only the credentials that it needs.

    ``scratch`` is a folder for temporary files. The caller removes it, because the helper may be
    killed.
    """
    places = [replica.place for replica in spec.replicas]
    chosen = [one for place in places if (one := chosen_for(place, spec.credentials)) is not None]
    searched = any(one.proxy is None and one.token is None for one in chosen)
    known = taken() | dict(os.environ)
    return {
        "job": DRY_RUN,
        "replicas": [asdict(replica) for replica in spec.replicas],
        "language": spec.language,
        "selection": spec.selection,
        "format": spec.format.value,
        "limits": asdict(spec.limits) | {"folders": [str(one) for one in spec.limits.folders]},
        "credentials": [
            {
                "hosts": one.hosts,
                "proxy": None if one.proxy is None else str(one.proxy),
                "token": None if one.token is None else str(one.token),
            }
            for one in dict.fromkeys(chosen)
        ],
        "environment": {
            name: known[name] for name in TOKEN_VARIABLES if searched and name in known
        },
        "patience": patience,
        "scratch": str(scratch),
    }


def record_of(error: dict[str, Any]) -> ErrorRecord:
    """Return the error record in an answer."""
    texts = {name: str(error[name]) for name in ("kind", "blame", "message", "hint")}
    return ErrorRecord(**texts, retryable=bool(error["retryable"]))  # type: ignore[arg-type]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job, in a helper process.

    Raises
    ------
    MemoryError
        The job has exceeded the memory limit.
    """
    return _JOBS[job["job"]](job)


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    result_format = ResultFormat(job["format"])
    try:
        meaning = _language(job["language"])().compiled(job["selection"], result_format)
        is_code = isinstance(meaning, Program)
        text = "" if is_code else f"{job['language']} {result_format} {meaning!r}"
    except ServiceXError as error:
        return {"error": _as_data(error.record(), _nearest_kind(type(error)))}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # a text that a language is not ready for
        failure = QueryError(
            f"selection: it cannot be compiled: {type(error).__name__}: {error}",
            hint="please report this if the query is right",
        )
        said = _as_data(failure.record(), "Query")
        return {"error": said, "traceback": traceback.format_exc(limit=-8)[-LONGEST_TEXT:]}
    # "surrogatepass": a text with lone surrogates needs a digest too
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return {"is_code": is_code, "digest": None if is_code else digest}


def _dry_run(job: dict[str, Any]) -> dict[str, Any]:
    spec = CheckSpec(
        tuple(Replica(**one) for one in job["replicas"]),
        job["language"],
        job["selection"],
        ResultFormat(job["format"]),
        _limits(job["limits"]),
        tuple(
            Credential(
                tuple(one["hosts"]),
                proxy=None if one["proxy"] is None else Path(one["proxy"]),
                token=None if one["token"] is None else Path(one["token"]),
            )
            for one in job["credentials"]
        ),
    )
    with _having(job["environment"], job["scratch"]):
        record = transform.check(spec, patience=job["patience"])
    return {"error": None if record is None else _as_data(record, record.kind)}


def _limits(given: dict[str, Any]) -> Limits:
    """Return limits from JSON, in which tuples are lists and paths are texts."""
    hosts = given["network"]
    network = NetworkPolicy(
        tuple(hosts["allowed"]), tuple(hosts["forbidden"]), public_only=hosts["public_only"]
    )
    folders = tuple(Path(one) for one in given["folders"])
    return replace(Limits(**given), network=network, folders=folders)


_JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    COMPILE: _compile,
    DRY_RUN: _dry_run,
}


@contextmanager
def _having(environment: dict[str, str], scratch: str) -> Iterator[None]:
    """Set environment variables and the temporary folder within this context."""
    os.environ.update(environment)
    tempfile.tempdir = scratch
    try:
        yield
    finally:
        tempfile.tempdir = None
        for name in environment:
            os.environ.pop(name, None)
        forget(environment)


@cache
def _language(name: str) -> type[Language]:
    """Return a language; cached, because finding it takes longer than compiling most queries."""
    found: type[Language] = plugins.load("languages", name, wire_name="codegen")
    return found


def preload() -> None:
    """Import all languages, so that no job has to."""
    for name in plugins.available("languages"):
        try:
            _language(name)
        except Exception:  # noqa: BLE001, S112  # the error is for those who ask for this language
            continue


def _as_data(record: ErrorRecord, kind: str) -> dict[str, Any]:
    """Return an error as data of bounded size."""
    message, hint = record.message[:LONGEST_TEXT], record.hint[:LONGEST_TEXT]
    return replace(record, kind=kind, message=message, hint=hint).as_dict()


def _nearest_kind(kind: type[ServiceXError]) -> str:
    """Return the nearest kind in `servicex_server.errors`; a plug-in may have other kinds."""
    ours = next(one for one in kind.__mro__ if one.__module__ == ServiceXError.__module__)
    return ours.__name__.removesuffix("Error")


def _request_error(record: ErrorRecord) -> RequestError:
    """Return the error of a record; as `QueryError` if it is not an error of the request."""
    kinds = {one.__name__.removesuffix("Error"): one for one in _with_subclasses(RequestError)}
    return kinds.get(record.kind, QueryError)(record.message, hint=record.hint)


def _with_subclasses(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)
