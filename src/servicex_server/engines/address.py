"""A scheduler that somebody else runs, reached by its address."""

import logging
import ssl
from typing import Any

from distributed import Client, Security

from servicex_server.engines.clusters import CONFIG, Cluster, first_cause
from servicex_server.engines.options import AddressOptions
from servicex_server.errors import StartupError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
"""How long to try: a scheduler that is restarted at the same time is there by then."""

ALLOWED_FAILURES = "distributed.scheduler.allowed-failures"


class ExistingScheduler(Cluster):
    """Uses the workers that are there; how many that is, is somebody else's choice.

    Parameters
    ----------
    options
        Where it is, and the certificates.
    """

    def __init__(self, options: AddressOptions) -> None:
        self._options = options

    async def open(self) -> Client:
        """Connect."""
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
                hint="each side has to trust who signed the other's certificate"
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
                f"the certificates for {chosen.scheduler} do not fit together: {first_cause(error)}"
            ) from error
        return security

    async def _look_at(self, client: Client) -> None:
        """Say what of the foreign scheduler is not as it should be."""
        found: Any = await client.run_on_scheduler(_allowed_failures)
        if found != CONFIG[ALLOWED_FAILURES]:
            log.warning(
                "the scheduler hands a task whose worker died to %s more workers;"
                " a file that kills its worker costs that many: start it with %s 0",
                found,
                ALLOWED_FAILURES,
            )

    async def scale(self, count: int) -> None:
        """Do nothing: the workers are somebody else's."""

    async def close(self) -> None:
        """Do nothing: nothing was started."""

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return self._options.scheduler


def _allowed_failures(dask_scheduler: Any) -> int:
    """Return, on the scheduler, how many deaths of workers a task may cause and be tried again."""
    allowed: int = dask_scheduler.allowed_failures
    return allowed
