"""Running the web server: the socket, the signals, and what is printed when it is ready."""

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from rich.console import Console

from servicex_server import telemetry
from servicex_server.app import App, Duty
from servicex_server.errors import StartupError
from servicex_server.plugins import available
from servicex_server.processes import settle, stop_signal
from servicex_server.settings import Settings
from servicex_server.web.server import web_app

GRACE = 2
"""Seconds that open connections have when the service is told to stop."""


def run(settings: Settings, *, dispatch: bool = True) -> None:
    """Serve until a signal comes.

    Parameters
    ----------
    settings
        What the operator chose.
    dispatch
        Whether this process also looks datasets up and has files done.

    Raises
    ------
    StartupError
        The port is taken, the address is not allowed, or the data folder is not fit.
    """
    telemetry.configure(settings.log_level)
    _refuse_exposure(settings)
    listener = _listen(settings.host, settings.port)
    with listener:
        asyncio.run(_serve(settings, listener, Duty.ALL if dispatch else Duty.API))


def _refuse_exposure(settings: Settings) -> None:
    """Refuse an address that other machines reach, while everybody is the same user."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not (loopback or settings.sign_in or settings.allow_anonymous):
        raise StartupError(
            f"sign-in is off, so anybody who reaches {settings.host} could use this service, "
            "read every result and run code through it",
            hint="set sign_in, listen on 127.0.0.1, or give --allow-anonymous if you want that",
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
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
    """uvicorn, but for the signals: ours close the workers and the database too."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


async def _serve(settings: Settings, listener: socket.socket, duty: Duty) -> None:
    stopping = stop_signal()
    async with App(settings, duty=duty) as app:
        server = _Server(
            uvicorn.Config(
                web_app(app),
                log_config=telemetry.uvicorn_log_config(),
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                # what a client says of itself decides nothing, unless a proxy is known to say it
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=_trusted(settings),
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
        if server.started:
            _announce(app, listener)
            settle()
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        stopped.cancel()


def _trusted(settings: Settings) -> list[str]:
    """Return the proxies as uvicorn compares them with where a connection comes from."""
    proxies = settings.trusted_proxies
    # a socket that listens for both kinds of addresses has IPv4 written as IPv6
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
    out.print(f"the API is described at {url}/docs")
    work = f"{settings.workers} workers" if app.leader else "no workers here"
    out.print(f"data in {settings.data_dir}, {work}, sign-in {'on' if settings.sign_in else 'off'}")
    if settings.sign_in:
        ways = ", ".join(one.title for one in settings.issuers)
        way = ways or "`servicex-server user add` and `user token`"
        out.print(f"users come in by {way}", markup=False)
    if app.database.shared:
        out.print(str(app.database), markup=False)
    out.print(f"query languages: {', '.join(sorted(available('languages')))}")
    if settings.sign_in:
        out.print(f"\nEverybody has a servicex.yaml to download at {url}/profile")
        return
    out.print("\nPut this into servicex.yaml where you work:\n", style="dim")
    # plain: this is to be copied, with every blank as it is
    sys.stdout.write(f"api_endpoints:\n  - name: local\n    endpoint: {url}\n")
    sys.stdout.flush()
