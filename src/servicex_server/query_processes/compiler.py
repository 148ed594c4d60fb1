"""Compiles queries of users for the service process, which never compiles a query itself."""

import hashlib
import logging
from collections import OrderedDict

from servicex_server.errors import InternalError, QueryError, RequestError
from servicex_server.model import ResultFormat
from servicex_server.query_processes.client import (
    ForkServerProcess,
    HelperDiedError,
    LimitExceededError,
    NoHelperError,
)
from servicex_server.query_processes.jobs import Compiled, compile_job, compiled_of
from servicex_server.query_processes.limits import JobLimits
from servicex_server.query_processes.pool import HelperPool
from servicex_server.query_processes.turns import Turns

log = logging.getLogger(__name__)

LIMITS = JobLimits(processor=2.0, wall=10.0, memory=256 << 20)
"""Limits for compiling one query."""

AGAIN_LIMITS = JobLimits(processor=0.5, wall=1.0, memory=256 << 20)
"""Limits for compiling a query for its digest; meanwhile the files of all users wait."""

MOST, MOST_OF_USER = 4, 2
"""Queries that are compiled at once: of all users, and of one user."""

WAITING_BYTES = 16 << 20
"""Bytes of queries of one user that may wait to be compiled."""

MOST_KNOWN = 4096
"""Queries whose result is cached; each takes some hundred bytes."""


class QueryCompiler:
    """Compiles queries in helper processes; users take turns."""

    def __init__(self) -> None:
        self._server = ForkServerProcess()
        self._pool = HelperPool(self._server, LIMITS, ready=2)
        self._again = HelperPool(self._server, AGAIN_LIMITS, ready=0)
        self._turns = Turns(MOST, most_of_user=MOST_OF_USER, waiting_bytes=WAITING_BYTES)
        self._known: OrderedDict[bytes, Compiled | None] = OrderedDict()

    def start(self) -> None:
        """Start the helpers; the first query waits until they are ready."""
        self._pool.start()

    async def close(self) -> None:
        """End all helpers at once, even during jobs."""
        await self._pool.close()
        await self._again.close()
        self._server.close()

    async def compile(
        self, user: str, language: str, selection: str, result_format: ResultFormat
    ) -> Compiled:
        """Compile a query that a user submits; return a cached result if there is one.

        Raises
        ------
        RequestError
            The query does not compile, or not within the limits.
        TooManyError
            Too many queries of this user are waiting to be compiled.
        """
        key = _key(language, selection, result_format)
        if (known := self._recall(key)) is not None:
            return known
        async with self._turns.turn(user, len(selection)):
            found = await compiled(self._pool, LIMITS, language, selection, result_format)
        self._remember(key, found)
        return found

    async def digest(
        self, language: str, selection: str, result_format: ResultFormat
    ) -> str | None:
        """Return a digest that is equal for queries of equal meaning; None if it is not known."""
        key = _key(language, selection, result_format)
        if key in self._known:
            known = self._recall(key)
            return None if known is None else known.digest
        found = None
        try:
            found = await compiled(self._again, AGAIN_LIMITS, language, selection, result_format)
        except RequestError as error:
            # the worker reports the same error for each file
            log.info("a query of a stored request does not compile: %s", error.message)
        except InternalError as error:
            log.warning("the digest of a query is not known: %s", error.message)
            return None
        self._remember(key, found)
        return None if found is None else found.digest

    def _recall(self, key: bytes) -> Compiled | None:
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def _remember(self, key: bytes, found: Compiled | None) -> None:
        """Cache the result of a query; None stands for a query that does not compile."""
        self._known[key] = found
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)


async def compiled(
    pool: HelperPool,
    limits: JobLimits,
    language: str,
    selection: str,
    result_format: ResultFormat,
) -> Compiled:
    """Compile a query in a pool that has these limits.

    Raises
    ------
    RequestError
        The query does not compile, or not within the limits.
    InternalError
        No helper process is available.
    """
    try:
        answer = await pool.run(compile_job(language, selection, result_format))
    except LimitExceededError as error:
        raise QueryError(
            f"selection: compiling this query {_exceeded(error.limit, limits)}",
            hint="make it shorter, or ask for the columns in several requests",
        ) from None
    except HelperDiedError as error:
        raise QueryError(
            "selection: this query cannot be compiled: "
            f"twice the process that compiled it {error.how}",
            hint="please report this if the query is right",
        ) from None
    except NoHelperError as error:
        raise InternalError(f"queries cannot be compiled at the moment: {error}") from error
    if trace := answer.get("traceback"):
        log.error("query language %s failed to compile a query:\n%s", language, trace)
    return compiled_of(answer)


def _exceeded(limit: str, limits: JobLimits) -> str:
    if limit == "memory":
        return f"needs more than {limits.memory >> 20} MiB of memory"
    if limit == "processor":
        return f"takes more than {limits.processor:g} s of processor time"
    return f"takes more than {limits.wall:g} s"


def _key(language: str, selection: str, result_format: ResultFormat) -> bytes:
    text = f"{language} {result_format} {selection}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
