"""A cluster of a Dask Gateway, which starts scheduler and workers by its own configuration."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from distributed import Client

from servicex_server.clusters.contract import Managed, first_cause
from servicex_server.clusters.dask_config import extra
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import GatewayOptions


class GatewayWorkers(Managed):
    """A cluster that the service creates at a gateway.

    The name of the cluster is stored in the data folder before the cluster runs. If the service is
    killed, the next one ends the cluster by that name.

    Parameters
    ----------
    options
        The gateway, and how to sign in there.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        dask-gateway is not installed.
    """

    Options = GatewayOptions

    @classmethod
    def from_settings(cls, options: GatewayOptions, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings."""
        del memory  # which the gateway decides
        return cls(options, folder=folder)

    def __init__(self, options: GatewayOptions, *, folder: Path) -> None:
        super().__init__()
        self._options = options
        self._library = extra("dask_gateway", "gateway")
        self._note = folder / "gateway-cluster"
        self._gateway: Any = None

    async def open(self) -> Client:
        """Create a cluster at the gateway, and wait until its scheduler runs."""
        options = self._options
        self._gateway = self._library.Gateway(
            options.address,
            proxy_address=options.proxy_address,
            auth=self._sign_in(),
            asynchronous=True,
        )
        try:
            async with asyncio.timeout(options.start_seconds):
                await self._end_former()
                # ask for the known options first, so that a wrong name or value is an error here
                known = await self._gateway.cluster_options(use_local_defaults=False)
                known.update(options.cluster_options)
                name = await self._gateway.submit(known)
                self._note.write_text(name, encoding="utf-8")
                self._cluster = await self._gateway.connect(name, shutdown_on_close=True)
                client: Client = await Client(
                    self._cluster, security=self._cluster.security, asynchronous=True
                )
        except TimeoutError:
            await self.close()
            raise StartupError(
                f"the gateway {options.address} did not start a cluster within "
                f"{options.start_seconds:g} s"
            ) from None
        except Exception as error:
            await self.close()
            raise StartupError(
                f"the gateway {options.address} did not create a cluster: {first_cause(error)}"
            ) from error
        return client

    def _sign_in(self) -> Any:
        options, auth = self._options, self._library.auth
        if options.auth == "kerberos":
            return auth.KerberosAuth()
        if options.auth == "jupyterhub":
            token = options.token.get_secret_value() if options.token else None
            return auth.JupyterHubAuth(api_token=token)
        password = options.password.get_secret_value() if options.password else None
        return auth.BasicAuth(username=options.username, password=password)

    async def _end_former(self) -> None:
        """End the cluster that a killed service left."""
        if self._note.exists():
            # the gateway may have ended the cluster, or may never have known it
            with suppress(ValueError):
                await self._gateway.stop_cluster(self._note.read_text(encoding="utf-8"))
            self._note.unlink()

    async def _end(self) -> None:
        if self._cluster is not None:
            await self._cluster.close(shutdown=False)
        if self._gateway is not None:
            if not self.disowned:
                await self._end_former()
            await self._gateway.close()
