"""Connections of httpx to servers that a network policy allows, also after redirects.

The pool of httpcore identifies a server by its name, so it uses the name for SNI and checks the
certificate against it. Only its network backend resolves the name: the address that is checked is
the address that is connected to.
"""

import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from servicex_server.errors import UnreachableError
from servicex_server.network.policy import NetworkPolicy


class CheckedTransport(httpx.BaseTransport):
    """Sends requests to servers that a policy allows, through a proxy if the environment names one.

    The operator controls the proxy. It resolves names by its own rules; names that can be resolved
    here are checked as well.
    """

    def __init__(self, policy: NetworkPolicy, context: ssl.SSLContext) -> None:
        self._policy = policy
        self._context = context
        self._direct = _direct(policy, context)
        self._proxied: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises
        ------
        ForbiddenHostError
            The policy forbids the server.
        UnreachableError
            The name of the server cannot be resolved.
        """
        proxy = _proxy_for(request.url)
        if proxy is None:
            return self._direct.handle_request(request)
        self._policy.check_literal(request.url.host)
        with suppress(UnreachableError):
            self._policy.addresses(request.url.host)
        if proxy not in self._proxied:
            self._proxied[proxy] = httpx.HTTPTransport(verify=self._context, proxy=proxy)
        return self._proxied[proxy].handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()


def _direct(policy: NetworkPolicy, context: ssl.SSLContext) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(verify=context)
    # httpx has no argument for the backend; test_private_apis.py watches this name
    transport._pool = httpcore.ConnectionPool(  # noqa: SLF001
        ssl_context=context, network_backend=_Backend(policy)
    )
    return transport


class _Backend(httpcore.SyncBackend):
    def __init__(self, policy: NetworkPolicy) -> None:
        self._policy = policy

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers, as `socket.create_connection`."""
        failure: Exception | None = None
        for address in self._policy.addresses(host, port):
            try:
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or UnreachableError(f"{host} has no address")


def _proxy_for(url: httpx.URL) -> str | None:
    """Return the proxy for a URL from the environment, read as system tools read it."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
