"""The composition root: `App` builds every part from the settings, and closes it again."""

import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from servicex_server.database.buckets import RequestBuckets
from servicex_server.database.connection import Database
from servicex_server.dispatch import Dispatcher
from servicex_server.engines.contract import Engine
from servicex_server.errors import StartupError
from servicex_server.lookup import Lookups
from servicex_server.model import LOCAL_USER, Limits, Principal
from servicex_server.objects.contract import ObjectStore
from servicex_server.objects.store import open_store
from servicex_server.settings import Settings
from servicex_server.submission import Submission


class App:
    """The service without its web server: what `web` and `cli` work on.

    Parameters
    ----------
    settings
        What the operator chose.
    engine
        Where tasks run; a test's double instead of worker processes.
    """

    database: Database
    objects: ObjectStore
    dispatcher: Dispatcher
    lookups: Lookups
    submission: Submission
    buckets: RequestBuckets
    service_key: bytes

    def __init__(self, settings: Settings, *, engine: Engine | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self._lock: IO[str] | None = None
        self.ready = False

    async def __aenter__(self) -> Self:
        """Open the data folder and start every part.

        Raises
        ------
        StartupError
            Something is in the way; one line says what.
        """
        folder = self.settings.data_dir
        self._lock = lock_folder(folder)
        self.service_key = service_key(folder)
        self.database = Database(f"sqlite:///{folder / 'servicex.sqlite'}")
        try:
            self.database.migrate()
            self.objects = open_store((folder / "objects").absolute().as_uri())
            self.buckets = RequestBuckets(self.database)
            self.dispatcher = Dispatcher(
                self.database,
                self.engine or self._workers(),
                self.objects,
                limits=Limits(
                    seconds=self.settings.file_seconds,
                    memory=self.settings.worker_memory,
                    chunk=self.settings.chunk_bytes,
                    part=self.settings.part_bytes,
                ),
                most_attempts=self.settings.attempts,
                fatal_after=self.settings.fatal_after,
            )
            self.lookups = Lookups(self.database, self.dispatcher)
            self.submission = Submission(
                self.database, self.lookups, self.dispatcher, self.settings
            )
            await self.dispatcher.start()
            await self.lookups.start()
        except BaseException:
            self.database.close()
            self._lock.close()
            raise
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
        await self.lookups.close()
        await self.dispatcher.close()
        self.database.close()
        if self._lock is not None:
            self._lock.close()

    def _workers(self) -> Engine:
        from servicex_server.engines.clusters import cluster_of
        from servicex_server.engines.dask import DaskEngine

        cluster = cluster_of(
            self.settings.engine,
            memory=self.settings.worker_memory,
            folder=self.settings.data_dir,
        )
        return DaskEngine(cluster, workers=self.settings.workers)

    def principal(self) -> Principal:
        """Return who asks; while sign-in is off there is one user only."""
        return LOCAL_USER


def lock_folder(folder: Path) -> IO[str]:
    """Make the data folder if needed, and keep other servers off it while the file is open.

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
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise StartupError(
            f"the data folder {folder} is used by another server (process {owner})",
            hint="stop that one, or choose another with --data-dir",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def service_key(folder: Path) -> bytes:
    """Return the key that all others are derived from; made at the first start, mode 600."""
    path = folder / "service.key"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()
