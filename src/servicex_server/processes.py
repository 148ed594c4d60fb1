"""Processes: how one settles down and is told to stop, and the one without a web server."""

import asyncio
import gc
import signal

from rich.console import Console

from servicex_server import telemetry
from servicex_server.app import App, Duty
from servicex_server.settings import Settings


def stop_signal() -> asyncio.Event:
    """Return what is set by Ctrl-C and SIGTERM from now on."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def settle() -> None:
    """Leave what is there, now that all has started, out of the rounds of the garbage collector.

    A round over half a million objects of libraries takes a tenth of a second, in which nobody is
    answered, and finds nothing.
    """
    gc.collect()
    gc.freeze()


def dispatch(settings: Settings) -> None:
    """Stand for the lead, and dispatch while this process has it, until a signal comes.

    Raises
    ------
    StartupError
        The database is not fit for several processes, or does not answer.
    """
    telemetry.configure(settings.log_level)
    asyncio.run(_dispatch(settings))


async def _dispatch(settings: Settings) -> None:
    stopping = stop_signal()
    async with App(settings, duty=Duty.DISPATCH) as app:
        out = Console(highlight=False, soft_wrap=True)
        role = "leads" if app.leader else "waits for the lead"
        out.print(f"servicex-server dispatch is ready and {role}: {app.database}", markup=False)
        settle()
        await stopping.wait()
