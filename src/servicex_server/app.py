"""The composition root: `App` builds every part from the settings, and closes it again."""

import fcntl
import logging
import os
from contextlib import AsyncExitStack, closing
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sqlalchemy.exc import OperationalError

from servicex_server.accounts.access import Access
from servicex_server.accounts.devices import Devices
from servicex_server.accounts.entrance import Entrance, Rules
from servicex_server.accounts.issuers import Issuers
from servicex_server.accounts.sessions import Sessions
from servicex_server.accounts.telling import Telling
from servicex_server.candidate import Candidate
from servicex_server.database import leadership
from servicex_server.database.buckets import RequestBuckets
from servicex_server.database.connection import Database
from servicex_server.engines.contract import Engine
from servicex_server.errors import ErrorRecord, StartupError, StateError
from servicex_server.keys import Keys, keys_of
from servicex_server.leader import STOPPED, WAKE, Leader
from servicex_server.lookup import check_finders
from servicex_server.model import LOCAL_USER, Attempt, CheckSpec, Principal
from servicex_server.objects.contract import ObjectStore
from servicex_server.objects.store import open_store
from servicex_server.settings import Settings
from servicex_server.submission import Submission

log = logging.getLogger(__name__)


class Duty(StrEnum):
    """What a process does, by the command that starts it."""

    ALL = "serve"
    API = "serve --no-dispatch"
    DISPATCH = "dispatch"

    @property
    def stands(self) -> bool:
        """Whether it stands for the lead."""
        return self is not Duty.API


class App:
    """The service without its web server: what `web` and `cli` work on.

    What every process has is an attribute here. What only the one has that leads is in `leader`.

    Parameters
    ----------
    settings
        What the operator chose.
    duty
        What this process is for.
    engine
        Where tasks run; a test's double instead of worker processes.
    """

    database: Database
    objects: ObjectStore
    submission: Submission
    buckets: RequestBuckets
    access: Access
    telling: Telling
    issuers: Issuers
    sessions: Sessions
    devices: Devices
    entrance: Entrance
    keys: Keys

    def __init__(
        self, settings: Settings, *, duty: Duty = Duty.ALL, engine: Engine | None = None
    ) -> None:
        self.settings = settings
        self.duty = duty
        self.ready = False
        self._engine = engine
        self._candidate: Candidate | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the data folder and start every part.

        Raises
        ------
        StartupError
            Something is in the way; one line says what.
        """
        async with AsyncExitStack() as opening:
            await self._start(opening)
            self._open = opening.pop_all()
        self.ready = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish what is being written, and end every part."""
        self.ready = False
        await self._open.aclose()

    async def _start(self, opening: AsyncExitStack) -> None:
        folder = self.settings.data_dir
        check_finders(self.settings)
        database = opening.enter_context(closing(Database(self.settings.database)))
        if self.settings.database_url is not None and not database.shared:
            # another folder's lock would not keep anybody off it
            raise StartupError(
                "setting database_url: only a PostgreSQL database is given so",
                hint="without it, SQLite keeps its file in the data folder",
            )
        if self.duty is not Duty.ALL and not database.shared:
            raise StartupError(
                f"`servicex-server {self.duty}` is one of several processes, and those need "
                "PostgreSQL",
                hint="give database_url, or `servicex-server serve`, which is everything in one",
            )
        opening.enter_context(lock_folder(folder, shared=database.shared))
        self.keys = keys_of(self.settings)
        database.migrate()
        self.database = database
        self.objects = open_store(self.settings.objects)
        self.buckets = RequestBuckets(database)
        self.issuers = Issuers(self.settings.issuers)
        self.access = Access(database, self.keys, self.issuers)
        self.sessions = Sessions(database)
        self.devices = Devices(database)
        self.entrance = Entrance(database, _rules(self.settings))
        self.submission = Submission(database, self, self.settings)
        self.telling = Telling(self.settings)
        opening.push_async_callback(self.telling.close)
        if self.duty.stands:
            who_leads = leadership.of(database)
            self._candidate = Candidate(who_leads, lambda: self._leader(who_leads))
            opening.push_async_callback(self._candidate.close)
            await self._candidate.start()

    def _leader(self, who_leads: leadership.Leadership) -> Leader:
        database = self.database.guarded(who_leads.guard)
        return Leader(self.settings, database, self.objects, engine=self._engine)

    @property
    def leader(self) -> Leader | None:
        """The workers, the dispatcher and the look-ups, while this process leads."""
        return self._candidate.leader if self._candidate is not None else None

    async def probe(self) -> list[Attempt]:
        """Look at every door of a site.

        Raises
        ------
        StateError
            This process has no workers.
        """
        if self.leader is None:
            raise StateError(
                "this process has no workers to look from", hint="ask the one that dispatches"
            )
        return await self.leader.dispatcher.probe()

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Hold a query against a file on a worker; a process without workers finds nothing."""
        return await self.leader.dispatcher.check(spec) if self.leader is not None else None

    async def is_led(self) -> bool:
        """Whether a process leads, this one or another."""
        return self.leader is not None or await self.database.read(leadership.taken)

    async def wake(self, request_id: str) -> None:
        """Have the leader begin a request that has become a row."""
        if self.leader is not None:
            self.leader.wake()
        else:
            await self._tell(WAKE, request_id)

    async def stopped(self, request_id: str) -> None:
        """Have the leader drop the files of a request that has ended, or is gone, in the rows."""
        if self.leader is not None:
            await self.leader.stop(request_id)
        else:
            await self._tell(STOPPED, request_id)

    async def _tell(self, word: str, request_id: str) -> None:
        try:
            await self.database.write(leadership.tell, f"{word} {request_id}")
        except OperationalError:
            log.warning("the leader is not told: %s", word, extra={"request_id": request_id})

    async def principal(self, authorization: str | None) -> Principal:
        """Return who asks, by the header of that name; while sign-in is off there is one user only.

        Raises
        ------
        SignInError
            It is nobody who may; says what to do.
        """
        if not self.settings.sign_in:
            return LOCAL_USER
        return await self.access.principal(authorization)


def _rules(settings: Settings) -> Rules:
    return Rules(settings.administrators, settings.approve_domains, settings.experiments)


def lock_folder(folder: Path, *, shared: bool) -> IO[str]:
    """Make the data folder if needed, and keep others off it while the file is open.

    Parameters
    ----------
    folder
        The data folder.
    shared
        Keep off only those that want it for themselves: what is not in the database can be
        written by several processes.

    Raises
    ------
    StartupError
        It cannot be written, or another server uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise StartupError(
            f"the data folder {folder} cannot be written: {error.strerror}",
            hint="choose another with --data-dir",
        ) from error
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise StartupError(
            f"the data folder {folder} is used by another server (process {owner})",
            hint="stop that one, or choose another with --data-dir",
        ) from None
    lock.truncate(0)
    if not shared:
        lock.write(str(os.getpid()))
        lock.flush()
    return lock
