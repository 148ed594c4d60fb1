"""Signals and garbage collection of a process, and the ``dispatch`` process."""

import asyncio
import gc
import signal

from rich.console import Console

from servicex_server.app import App, Duty
from servicex_server.observability import logs
from servicex_server.settings.data_folder import write_privately
from servicex_server.settings.service import Settings


def stop_signal() -> asyncio.Event:
    """Return an event that Ctrl-C and SIGTERM set from now on."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def freeze_gc() -> None:
    """Exclude the objects that exist now from garbage collection. Call it after the start.

    A collection over half a million objects of libraries takes a tenth of a second, during which
    the process does not answer, and frees nothing.
    """
    gc.collect()
    gc.freeze()


def dispatch(settings: Settings) -> None:
    """Take part in the leader election, and dispatch while this process leads, until a signal.

    Raises
    ------
    StartupError
        The database does not support several processes, or does not answer.
    """
    logs.configure(settings.log_level)
    write_privately()
    asyncio.run(_dispatch(settings))


async def _dispatch(settings: Settings) -> None:
    stopping = stop_signal()
    async with App(settings, duty=Duty.DISPATCH) as app:
        out = Console(highlight=False, soft_wrap=True)
        role = "leads" if app.leader else "waits for the lead"
        out.print(f"servicex-server dispatch is ready and {role}: {app.database}", markup=False)
        freeze_gc()
        await stopping.wait()
