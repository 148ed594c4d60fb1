"""The composition root: `App` builds every part from the settings, and closes it again."""

import asyncio
import fcntl
import logging
import os
from contextlib import AsyncExitStack, closing, suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import unquote, urlsplit

from sqlalchemy.exc import OperationalError

from servicex_server import plugins
from servicex_server.accounts.authentication import Authenticator
from servicex_server.accounts.device_flow import DeviceFlow
from servicex_server.accounts.oidc import OidcProviders
from servicex_server.accounts.owner_token import OwnerToken
from servicex_server.accounts.sessions import Sessions
from servicex_server.accounts.sign_up import Registration, SignUpPolicy
from servicex_server.accounts.signing_keys import SigningKeys, load_signing_keys
from servicex_server.credentials import WIDE, wide_patterns
from servicex_server.database import leader_lock
from servicex_server.database.connection import Database
from servicex_server.database.disk_reserve import DISK_FULL
from servicex_server.database.result_objects import RequestBuckets
from servicex_server.datasets.finder_registry import check_finders
from servicex_server.engine.contract import Engine
from servicex_server.errors import ErrorRecord, StartupError, StateError
from servicex_server.model import LOCAL_USER, Attempt, CheckSpec, Principal, SandboxChoice
from servicex_server.notifications.accounts import AccountNotifier
from servicex_server.query_processes.compiler import QueryCompiler
from servicex_server.requests.language_policy import LanguagePolicy
from servicex_server.requests.service import RequestService
from servicex_server.requests.submission import Submission
from servicex_server.retention.last_used import LastUsed
from servicex_server.scheduling.election import LeaderElection
from servicex_server.scheduling.leader import STOPPED, WAKE, Leader
from servicex_server.settings.data_folder import close_to_others
from servicex_server.settings.service import Settings
from servicex_server.storage.choose import open_store
from servicex_server.storage.contract import ObjectStore
from servicex_server.text.hints import did_you_mean
from servicex_server.worker import sandbox

log = logging.getLogger(__name__)


class Duty(StrEnum):
    """The duty of a process, by the command that starts it."""

    ALL = "serve"
    API = "serve --no-dispatch"
    DISPATCH = "dispatch"

    @property
    def stands(self) -> bool:
        """Whether the process takes part in the leader election."""
        return self is not Duty.API


class App:
    """The service without its web server, as `web` and `cli` use it.

    The attributes are the parts of every process. `leader` has the parts that only the leader has.

    Parameters
    ----------
    settings
        The settings of the operator.
    duty
        The duty of this process.
    engine
        An engine for tests; the default starts the workers of the settings.
    """

    database: Database
    objects: ObjectStore
    queries: QueryCompiler
    languages: LanguagePolicy
    submission: Submission
    buckets: RequestBuckets
    authenticator: Authenticator
    account_notifier: AccountNotifier
    oidc_providers: OidcProviders
    sessions: Sessions
    device_flow: DeviceFlow
    registration: Registration
    keys: SigningKeys

    def __init__(
        self, settings: Settings, *, duty: Duty = Duty.ALL, engine: Engine | None = None
    ) -> None:
        self.settings = settings
        self.duty = duty
        self.ready = False
        self.owner_token: OwnerToken | None = None
        self._engine = engine
        self._election: LeaderElection | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the data folder and start every part.

        Raises
        ------
        StartupError
            A part cannot start; the message is one line with the cause.
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
        """Finish pending writes, and close every part."""
        self.ready = False
        await self._open.aclose()

    async def _start(self, opening: AsyncExitStack) -> None:
        folder = self.settings.data_dir
        check_finders(self.settings)
        for pattern in wide_patterns(self.settings.reading.credentials):
            log.warning(WIDE, pattern)
        database = opening.enter_context(closing(Database(self.settings.database)))
        if self.settings.storage.database_url is not None and not database.shared:
            # the lock on this data folder would not protect an SQLite file elsewhere
            raise StartupError(
                "setting storage.database_url: only PostgreSQL is supported",
                hint="without this setting, SQLite stores its file in the data folder",
            )
        if self.duty is not Duty.ALL and not database.shared:
            raise StartupError(
                f"`servicex-server {self.duty}` runs as one of several processes, which need "
                "PostgreSQL",
                hint="set storage.database_url, or use `servicex-server serve`, which does all",
            )
        opening.enter_context(lock_folder(folder, shared=database.shared))
        self.keys = load_signing_keys(self.settings)
        database.migrate()
        if database.disk_full:
            log.warning("%s: no request is accepted", DISK_FULL)
        self.database = database
        self.objects = open_store(self.settings.objects)
        self.buckets = RequestBuckets(database, self.settings.storage.link_days)
        self.oidc_providers = OidcProviders(self.settings.accounts.issuers)
        self.authenticator = Authenticator(database, self.keys, self.oidc_providers)
        self.sessions = Sessions(database)
        self.device_flow = DeviceFlow(database)
        self.registration = Registration(database, _sign_up_policy(self.settings))
        self.queries = QueryCompiler()
        opening.push_async_callback(self.queries.close)
        self.queries.start()
        self.languages = await _languages(self.settings)
        self.submission = Submission(database, self, self.settings, self.queries, self.languages)
        self.requests = RequestService(
            database,
            self.objects,
            self.submission,
            self.wake,
            self.stopped,
            most_pinned=self.settings.limits.bytes_per_user,
        )
        self.last_used = LastUsed(database)
        opening.push_async_callback(self.last_used.close)
        self.account_notifier = AccountNotifier(self.settings)
        opening.push_async_callback(self.account_notifier.close)
        if self.duty.stands:
            who_leads = leader_lock.of(database)
            self._election = LeaderElection(who_leads, lambda: self._leader(who_leads))
            opening.push_async_callback(self._election.close)
            await self._election.start()

    def _leader(self, who_leads: leader_lock.Leadership) -> Leader:
        database = self.database.guarded(who_leads.guard)
        return Leader(
            self.settings,
            database,
            self.objects,
            digest=self.queries.digest,
            engine=self._engine,
        )

    @property
    def leader(self) -> Leader | None:
        """The workers, the dispatcher and the look-ups; None unless this process leads."""
        return self._election.leader if self._election is not None else None

    async def probe(self) -> list[Attempt]:
        """Probe every storage endpoint that a request has used.

        Raises
        ------
        StateError
            This process has no workers.
        """
        if self.leader is None:
            raise StateError(
                "this process has no workers to probe from", hint="ask the process that leads"
            )
        return await self.leader.dispatcher.probe()

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Dry-run a query on a worker; return None in a process without workers."""
        return await self.leader.dispatcher.check(spec) if self.leader is not None else None

    async def is_led(self) -> bool:
        """Whether any process leads, this one or another."""
        return self.leader is not None or await self.database.read(leader_lock.taken)

    async def wake(self, request_id: str) -> None:
        """Have the leader begin the new tasks of a request."""
        if self.leader is not None:
            self.leader.wake(request_id)
        else:
            await self._notify_leader(WAKE, request_id)

    async def stopped(self, request_id: str) -> None:
        """Have the leader drop the tasks of a request that was cancelled or deleted."""
        if self.leader is not None:
            await self.leader.stop(request_id)
        else:
            await self._notify_leader(STOPPED, request_id)

    async def _notify_leader(self, event: str, request_id: str) -> None:
        try:
            await self.database.write(leader_lock.notify_leader, f"{event} {request_id}")
        except OperationalError:
            log.warning("could not notify the leader: %s", event, extra={"request_id": request_id})

    async def principal(self, authorization: str | None) -> Principal:
        """Return the caller by the ``Authorization`` header; without sign-in, the only user.

        Raises
        ------
        SignInError
            The header does not authenticate a user; the hint says what to do.
        """
        if not self.settings.sign_in:
            if self.owner_token is not None:
                self.owner_token.check(authorization)
            return LOCAL_USER
        return await self.authenticator.principal(authorization)

    def ask_for_token(self) -> None:
        """Require the owner's token of all clients from now on, if sign-in is off."""
        self.owner_token = OwnerToken(self.keys)


def _sign_up_policy(settings: Settings) -> SignUpPolicy:
    return SignUpPolicy(
        settings.accounts.administrators,
        settings.accounts.approve_domains,
        settings.accounts.experiments,
    )


async def _languages(settings: Settings) -> LanguagePolicy:
    """Try the sandbox, and return the policy for languages.

    Raises
    ------
    StartupError
        The sandbox is required and does not work, or a language is not installed.
    """
    if unknown := sorted(set(settings.queries.languages) - set(plugins.available("languages"))):
        raise StartupError(
            f"setting queries.languages: {unknown[0]!r} is not installed",
            hint=did_you_mean(unknown[0], sorted(plugins.available("languages"))),
        )
    problem = await asyncio.to_thread(sandbox_problem, settings)
    if problem and settings.queries.sandbox is SandboxChoice.BUBBLEWRAP:
        raise StartupError(
            f"setting queries.sandbox: the sandbox for user code does not work: {problem}",
            hint="`servicex-server doctor` checks it; set sandbox to auto to start without it",
        )
    if problem and settings.sign_in:
        log.warning("languages that run user code are not offered: %s", problem)
    elif problem:
        log.warning("user code runs without a sandbox, as the account of the workers: %s", problem)
    return LanguagePolicy(settings, problem)


def sandbox_problem(settings: Settings) -> str:
    """Try the sandbox; return why it does not protect the service, or an empty text."""
    if settings.queries.sandbox is SandboxChoice.NONE:
        return "the setting queries.sandbox is none"
    objects = urlsplit(settings.objects)
    private = [settings.data_dir]
    if objects.scheme == "file":
        private.append(Path(unquote(objects.path)))
    private += [
        path for one in settings.reading.credentials for path in (one.proxy, one.token) if path
    ]
    for shown in sandbox.readable(sandbox.library_folders(os.environ)):
        for path in private:
            if path.resolve().is_relative_to(shown.resolve()):
                return f"{path} is in {shown}, which user code can read"
    return sandbox.sandbox_problem()


class FolderInUseError(StartupError):
    """Another server uses the data folder."""


def lock_folder(folder: Path, *, shared: bool) -> IO[str]:
    """Create the data folder if needed, and lock it while the returned file is open.

    Parameters
    ----------
    folder
        The data folder.
    shared
        Take a shared lock, which excludes only processes with an exclusive lock. Several processes
        may write the files in the folder if the database is elsewhere.

    Raises
    ------
    FolderInUseError
        Another server uses the folder.
    StartupError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        close_to_others(folder)
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
        raise FolderInUseError(
            f"the data folder {folder} is used by another server (process {owner})",
            hint="stop that one, or choose another with --data-dir",
        ) from None
    lock.truncate(0)
    if not shared:
        with suppress(OSError):  # on a full disk the error above names no process
            lock.write(str(os.getpid()))
            lock.flush()
    return lock
