"""Running the web server: its socket, its signals, and the text printed when it is ready."""

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from rich.console import Console

from servicex_server.app import App, Duty
from servicex_server.errors import StartupError
from servicex_server.observability import logs
from servicex_server.process import freeze_gc, stop_signal
from servicex_server.settings.data_folder import write_privately
from servicex_server.settings.service import Settings
from servicex_server.web.application import web_app
from servicex_server.web.connections import (
    Connections,
    Listener,
    protocol,
    raise_descriptor_limit,
)
from servicex_server.web.middleware.owner_only import needs_token, owner_check

GRACE = 2
"""Seconds that open connections have to finish when the service stops."""


def run(settings: Settings, *, dispatch: bool = True) -> None:
    """Serve until a signal comes.

    Parameters
    ----------
    settings
        Settings of the service.
    dispatch
        Whether this process may also lead: look up datasets and dispatch files to workers.

    Raises
    ------
    StartupError
        The port is in use, the address is not allowed, or the data folder cannot be used.
    """
    logs.configure(settings.log_level)
    write_privately()
    _refuse_exposure(settings)
    listener = _listen(settings.host, settings.port)
    with listener:
        asyncio.run(_serve(settings, listener, Duty.ALL if dispatch else Duty.API))


def _refuse_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without sign-in, unless the operator has allowed it."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if settings.sign_in or settings.allow_anonymous or settings.require_token:
        return
    if not loopback:
        raise StartupError(
            f"sign-in is off, so anybody who reaches {settings.host} could use this service, "
            "read every result and run code through it",
            hint="set sign_in, listen on 127.0.0.1, or give --require-token, or --allow-anonymous "
            "if you accept that",
        )
    if settings.trusted_proxies:
        raise StartupError(
            "sign-in is off, so anybody who reaches the proxy of trusted_proxies could use this "
            "service, read every result and run code through it",
            hint="set sign_in, or give --require-token, or --allow-anonymous if you accept that",
        )


def _listen(host: str, port: int) -> Listener:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = Listener(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"the address {host} is not known: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"port {port} on {host} is taken", hint="choose another with --port, or --port 0"
            ) from error
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling: ours also stops workers and the database."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


async def _serve(settings: Settings, listener: Listener, duty: Duty) -> None:
    stopping = stop_signal()
    peers = owner_check(settings)
    listener.connections = Connections(raise_descriptor_limit(), settings.trusted_proxies)
    async with App(settings, duty=duty) as app:
        if needs_token(settings, peers):
            app.ask_for_token()
        server = _Server(
            uvicorn.Config(
                web_app(app, peers),
                http=protocol(listener.connections),
                ws="none",
                log_config=logs.uvicorn_log_config(),
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                # forwarding headers are trusted only if they come from a configured proxy
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=_trusted(settings),
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
        if server.started:
            _announce(app, listener)
            freeze_gc()
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        stopped.cancel()


def _trusted(settings: Settings) -> list[str]:
    """Return the trusted proxies in the form that uvicorn compares with peer addresses."""
    proxies = settings.trusted_proxies
    # a dual-stack socket reports IPv4 peers as IPv4-mapped IPv6 addresses
    mapped = (f"::ffff:{n.network_address}/{96 + n.prefixlen}" for n in proxies if n.version == 4)  # noqa: PLR2004
    return [*map(str, proxies), *mapped]


def _announce(app: App, listener: socket.socket) -> None:
    settings = app.settings
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    here = f"http://{shown}:{port}"
    url = (settings.public_url or here).rstrip("/")
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"servicex-server is ready at [bold]{url}[/bold]")
    if settings.public_url:
        out.print(f"behind a proxy, it listens at {here}")
    if app.owner_token is not None:
        out.print(f"open it in a browser at {url}/open?token={app.owner_token.text}")
    out.print(f"the API is described at {url}/docs")
    work = f"{settings.workers} workers" if app.leader else "no workers here"
    out.print(f"data in {settings.data_dir}, {work}, sign-in {'on' if settings.sign_in else 'off'}")
    if settings.sign_in:
        ways = ", ".join(one.title for one in settings.accounts.issuers)
        way = ways or "API tokens, from `servicex-server user add` and `user token`"
        out.print(f"users sign in with {way}", markup=False)
    if app.database.shared:
        out.print(str(app.database), markup=False)
    out.print(f"query languages: {', '.join(app.languages.offered()) or 'none'}")
    if settings.sign_in:
        out.print(f"\nEach user can download a servicex.yaml at {url}/profile")
        return
    out.print("\nPut this into servicex.yaml where you work:\n", style="dim")
    # without markup and wrapping, because users copy this text
    sys.stdout.write(f"api_endpoints:\n  - name: local\n    endpoint: {url}\n")
    if app.owner_token is not None:
        sys.stdout.write(f"    token: {app.owner_token.text}\n")
    sys.stdout.flush()
