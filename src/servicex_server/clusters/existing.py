"""A Dask scheduler that the service does not manage, reached by its address."""

import logging
import ssl
from pathlib import Path
from typing import Any, Self

from distributed import Client, Security

from servicex_server.clusters.calls import call_scheduler
from servicex_server.clusters.contract import Cluster, first_cause
from servicex_server.clusters.dask_config import CONFIG
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import AddressOptions

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
"""Seconds to try to connect. A scheduler that restarts at the same time is up by then."""

ALLOWED_FAILURES = "distributed.scheduler.allowed-failures"


class ExistingScheduler(Cluster):
    """Uses the workers of an existing scheduler, and does not start or stop any.

    Parameters
    ----------
    options
        The address of the scheduler, and the certificates.
    """

    Options = AddressOptions

    @classmethod
    def from_settings(cls, options: AddressOptions, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings."""
        del memory, folder  # of workers that others start
        return cls(options)

    def __init__(self, options: AddressOptions) -> None:
        super().__init__()
        self._options = options

    async def open(self) -> Client:
        """Connect to the scheduler."""
        security = self._security()
        try:
            client: Client = await Client(
                self._options.scheduler,
                asynchronous=True,
                security=security,
                timeout=CONNECT_SECONDS,
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise StartupError(
                f"the scheduler {self._options.scheduler} cannot be reached: {first_cause(error)}",
                hint="each side has to trust the authority that signed the other's certificate"
                if security
                else "",
            ) from error
        await self._look_at(client)
        return client

    def _security(self) -> Security | None:
        """Return the certificates; None without encryption."""
        chosen = self._options
        files = (chosen.tls_ca_file, chosen.tls_cert_file, chosen.tls_key_file)
        if None in files:
            return None
        for file in filter(None, files):
            try:
                file.open("rb").close()
            except OSError as error:
                raise StartupError(f"{file} cannot be read: {error.strerror}") from error
        ca_file, cert_file, key_file = map(str, files)
        security = Security(
            tls_ca_file=ca_file,
            tls_client_cert=cert_file,
            tls_client_key=key_file,
            require_encryption=True,
        )
        try:
            security.get_connection_args("client")
        except ssl.SSLError as error:
            raise StartupError(
                f"the certificates for {chosen.scheduler} do not match: {first_cause(error)}"
            ) from error
        return security

    async def _look_at(self, client: Client) -> None:
        """Log a warning if the configuration of the scheduler is unsuitable."""
        found = await call_scheduler(client, _allowed_failures)
        if found != str(CONFIG[ALLOWED_FAILURES]).encode():
            log.warning(
                "the scheduler gives a task whose worker died to %s more workers,"
                " so a file that kills its worker kills them too: start the scheduler with %s 0",
                found.decode(errors="replace")[:8],
                ALLOWED_FAILURES,
            )

    async def scale(self, count: int) -> None:
        """Do nothing: the service does not manage these workers."""

    async def close(self) -> None:
        """Do nothing: nothing was started."""

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return self._options.scheduler


def _allowed_failures(dask_scheduler: Any) -> bytes:
    """Return how many workers a task may kill before Dask fails it; runs on the scheduler."""
    return str(dask_scheduler.allowed_failures).encode()
