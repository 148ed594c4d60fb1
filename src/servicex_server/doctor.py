"""``servicex-server doctor``: what is installed, what is missing, and how to get it."""

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from servicex_server import __version__, plugins
from servicex_server.errors import ExpiredError, ServiceXError
from servicex_server.settings import Settings

Verdict = Literal["ok", "missing", "wrong"]
Finding = tuple[Verdict, str, str]

_MARKS = {
    "ok": "[green]ok     [/green]",
    "missing": "[yellow]missing[/yellow]",
    "wrong": "[red]wrong  [/red]",
}


def examine(settings: Settings) -> bool:
    """Print what was found; return whether the service can work.

    What is optional may be missing; what is wrong keeps the service from working.
    """
    out = Console(highlight=False)
    out.print(
        f"servicex-server {__version__}, Python {sys.version.split()[0]}, {platform.platform()}"
    )
    fit = True
    for title, check in _CHECKS.items():
        out.print(f"\n[bold]{title}[/bold]")
        for verdict, what, advice in check(settings):
            out.print(f"  {_MARKS[verdict]} {escape(what)}", soft_wrap=True)
            if advice:
                out.print(f"          {escape(advice)}", soft_wrap=True)
            fit = fit and verdict != "wrong"
    out.print("\nThe service can work." if fit else "\nThe service cannot work as it is.")
    return fit


def _libraries(settings: Settings) -> Iterator[Finding]:
    del settings
    for name in ("uproot", "awkward", "pyarrow", "distributed", "fastapi", "sqlalchemy", "obstore"):
        try:
            yield "ok", f"{name} {importlib.metadata.version(name)}", ""
        except importlib.metadata.PackageNotFoundError:
            yield "wrong", name, "pip install servicex-server"


def _optional(settings: Settings) -> Iterator[Finding]:
    del settings
    try:
        yield "ok", f"xrootd {importlib.metadata.version('xrootd')}: root:// URLs can be read", ""
    except importlib.metadata.PackageNotFoundError:
        yield (
            "missing",
            "xrootd: root:// URLs cannot be read",
            "pip install 'servicex-server[xrootd]'",
        )
    for group in ("languages", "finders"):
        for name, point in sorted(plugins.available(group).items()):
            try:
                point.load()
            except ImportError as error:
                yield "wrong", f"{group[:-1]} {name}: {error}", f"reinstall {point.value}"
            else:
                yield "ok", f"{group[:-1]} {name}", ""


_RENEW = "voms-proxy-init"


def _credentials(settings: Settings) -> Iterator[Finding]:
    from servicex_server.credentials import (
        check_proxy,
        end_of,
        end_of_token,
        proxy_file,
        read_token,
    )

    proxies = [one.proxy for one in settings.credentials if one.proxy]
    tokens = [one.token for one in settings.credentials if one.token]
    if not settings.credentials:
        if not proxy_file().is_file():
            yield "missing", "no grid proxy: sites that ask for one cannot be read", _RENEW
            return
        proxies = [proxy_file()]
    for proxy in dict.fromkeys(proxies):
        try:
            check_proxy(proxy)
        except ExpiredError as error:
            yield "wrong", error.message, _RENEW
        else:
            yield "ok", f"the proxy {proxy} is valid until {end_of(proxy):%Y-%m-%d %H:%M} UTC", ""
    for token in dict.fromkeys(tokens):
        try:
            end = end_of_token(read_token(token))
        except ExpiredError as error:
            yield "wrong", error.message, "have it renewed"
        else:
            valid = f"valid until {end:%Y-%m-%d %H:%M} UTC" if end else "valid, as far as it tells"
            yield "ok", f"the token {token} is {valid}", ""


def _folder(settings: Settings) -> Iterator[Finding]:
    from servicex_server.app import lock_folder

    try:
        lock = lock_folder(settings.data_dir, shared=settings.database_url is not None)
    except ServiceXError as error:
        verdict: Verdict = "ok" if "is used by another" in error.message else "wrong"
        yield verdict, error.message, error.hint
        return
    with lock:
        free = shutil.disk_usage(settings.data_dir).free / 1e9
        yield "ok", f"{settings.data_dir} can be written, {free:.0f} GB free", ""


def _database(settings: Settings) -> Iterator[Finding]:
    from servicex_server.database.connection import Database

    try:
        with closing(Database(settings.database)) as database:
            yield "ok", database.standing(), ""
    except ServiceXError as error:
        yield "wrong", error.message, error.hint


def _sign_in(settings: Settings) -> Iterator[Finding]:
    if not settings.sign_in:
        yield "ok", "nobody signs in: whoever reaches the service is its administrator", ""
        if settings.issuers:
            yield "missing", "the issuers are for nobody", "set sign_in"
        return
    # who is named comes in by an issuer, or not at all
    named = {one.strip().lower() for one in settings.administrators if settings.issuers}
    if found := sorted(named.union(_administrators(settings))):
        yield "ok", f"administrators: {', '.join(found)}", ""
    else:
        yield (
            "missing",
            "nobody is an administrator: nobody can approve who signs up",
            "servicex-server user add you@example.org --role administrator"
            + ("; or name yourself in administrators" if settings.issuers else ""),
        )
    if settings.issuers and settings.approve_domains:
        yield "ok", f"no approval is needed by e-mails of {', '.join(settings.approve_domains)}", ""
    if not settings.issuers:
        yield "ok", "users come in by `servicex-server user add` and `user token`", ""
    yield from _issuers(settings)


def _administrators(settings: Settings) -> list[str]:
    """Return who is an administrator by an account; nobody before there are any tables."""
    import asyncio

    from sqlalchemy.exc import DBAPIError

    from servicex_server.database import users
    from servicex_server.database.connection import Database

    try:
        with closing(Database(settings.database)) as database:
            return asyncio.run(database.read(users.administrators))
    except (DBAPIError, ServiceXError):
        return []


def _issuers(settings: Settings) -> Iterator[Finding]:
    import asyncio

    from servicex_server.accounts.issuers import Issuers

    base = (settings.public_url or "").rstrip("/")
    if settings.issuers and not base:
        what = "public_url: users are led back to whatever address they came by"
        yield "missing", what, "set it, and register the addresses below at the issuers"
    for option in settings.issuers:
        try:
            warning = asyncio.run(Issuers([option]).examine(option.name))
        except ServiceXError as error:
            yield "wrong", f"{error.message}: {error.__cause__ or error.hint}", option.metadata_url
        else:
            yield "ok", f"{option.title} answers at {option.metadata_url}{warning}", ""
        callback = f"{base or 'https://<this service>'}/sign-in/{option.name}/callback"
        yield "ok", f"to be registered there as redirect URI: {callback}", ""


def _engine(settings: Settings) -> Iterator[Finding]:
    """Start one worker and let it extract a column of a file made here; or look for others'."""
    import asyncio

    with tempfile.TemporaryDirectory(prefix="servicex-doctor-") as folder:
        if settings.engine.kind != "local":
            yield asyncio.run(_scheduler(settings, Path(folder)))
            return
        try:
            seconds = asyncio.run(_one_column(Path(folder)))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is wrong
            yield "wrong", f"a worker cannot work: {type(error).__name__}: {error}", ""
        else:
            yield "ok", f"a worker started and delivered a column in {seconds:.1f} s", ""


async def _scheduler(settings: Settings, folder: Path) -> Finding:
    """Open the cluster that was chosen, without asking for workers, and close it."""
    from servicex_server.engines.clusters import cluster_of
    from servicex_server.engines.options import JobQueueOptions, KubernetesOptions

    options = settings.engine
    # under other names, so that a service that runs is not disturbed
    if isinstance(options, KubernetesOptions):
        options = options.model_copy(update={"name": f"{options.name}-doctor"})
    elif isinstance(options, JobQueueOptions):
        jobs = options.job_folder and options.job_folder / "doctor"
        options = options.model_copy(update={"scheduler_port": 0, "job_folder": jobs})
    try:
        cluster = cluster_of(options, memory=settings.worker_memory, folder=folder)
        client: Any = await cluster.open()
        try:
            count = (await client.scheduler.identity())["n_workers"]
            return "ok", f"scheduler {cluster.address} answers, {count} workers", ""
        finally:
            await client.close()
            await cluster.close()
    except ServiceXError as error:
        return "wrong", error.message, error.hint


async def _one_column(folder: Path) -> float:
    import asyncio
    import time

    import numpy as np
    import uproot

    from servicex_server.engines.clusters import LocalProcesses
    from servicex_server.engines.dask import DaskEngine
    from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec

    source = folder / "input.root"
    with uproot.recreate(source) as file:
        file.mktree("t", {"x": "f8"}).extend({"x": np.arange(3.0)})
    began = time.monotonic()
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=1)
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    await engine.start(ended.set_result)
    try:
        engine.submit(
            TaskSpec(
                request_id="doctor",
                file_id=1,
                attempt=1,
                replicas=(Replica(str(source)),),
                language="uproot-raw",
                selection='[{"treename": "t"}]',
                format=ResultFormat.PARQUET,
                object_name="x.parquet",
                upload_url=(folder / "x.parquet").as_uri(),
                limits=Limits(),
            )
        )
        outcome = await asyncio.wait_for(ended, 60)
    finally:
        await engine.close()
    if outcome.error is not None:
        raise RuntimeError(outcome.error.message)
    return time.monotonic() - began


_CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "Libraries": _libraries,
    "Optional parts": _optional,
    "Credentials": _credentials,
    "Data folder": _folder,
    "Database": _database,
    "Sign-in": _sign_in,
    "Workers": _engine,
}
