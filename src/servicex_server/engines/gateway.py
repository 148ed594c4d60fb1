"""A cluster of a Dask Gateway: the gateway starts scheduler and workers as its owners set it up."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client

from servicex_server.engines.clusters import Managed, extra, first_cause
from servicex_server.engines.options import GatewayOptions
from servicex_server.errors import StartupError


class GatewayWorkers(Managed):
    """A cluster of our own at a gateway.

    Its name is kept in the data folder from before it runs, so that one that a killed service has
    left is ended by the next.

    Parameters
    ----------
    options
        Which gateway, and as whom.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        dask-gateway is not there.
    """

    def __init__(self, options: GatewayOptions, *, folder: Path) -> None:
        super().__init__()
        self._options = options
        self._library = extra("dask_gateway", "gateway")
        self._note = folder / "gateway-cluster"
        self._gateway: Any = None

    async def open(self) -> Client:
        """Ask the gateway for a cluster, and wait until its scheduler runs."""
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
                # what it offers is asked first: a wrong name or value is then an error of ours
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
                f"the gateway {options.address} started no cluster in {options.start_seconds:g} s"
            ) from None
        except Exception as error:
            await self.close()
            raise StartupError(
                f"the gateway {options.address} gives no cluster: {first_cause(error)}"
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
        """End the cluster of a service that was killed."""
        if self._note.exists():
            # the gateway may have ended it, or never have known it
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
