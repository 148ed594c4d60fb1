"""``servicex-server doctor``: checks of the installation, the settings and the workers."""

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
from servicex_server.model import SandboxChoice
from servicex_server.settings.service import Settings
from servicex_server.text.escaping import escaped
from servicex_server.text.hints import install

Verdict = Literal["ok", "missing", "wrong"]
Finding = tuple[Verdict, str, str]

_MARKS = {
    "ok": "[green]ok     [/green]",
    "missing": "[yellow]missing[/yellow]",
    "wrong": "[red]wrong  [/red]",
}


def examine(settings: Settings) -> bool:
    """Run all checks and print their findings; return whether the service can work.

    A finding ``missing`` is about an optional part. With a finding ``wrong``, the service cannot
    work.
    """
    out = Console(highlight=False)
    out.print(
        f"servicex-server {__version__}, Python {sys.version.split()[0]}, {platform.platform()}"
    )
    fit = True
    for title, check in _CHECKS.items():
        out.print(f"\n[bold]{title}[/bold]")
        for verdict, what, advice in check(settings):
            out.print(f"  {_MARKS[verdict]} {escape(escaped(what))}", soft_wrap=True)
            if advice:
                out.print(f"          {escape(escaped(advice))}", soft_wrap=True)
            fit = fit and verdict != "wrong"
    out.print("\nThe service can work." if fit else "\nThe service cannot work as it is.")
    return fit


def _libraries(settings: Settings) -> Iterator[Finding]:
    del settings
    for name in ("uproot", "awkward", "pyarrow", "distributed", "fastapi", "sqlalchemy", "obstore"):
        try:
            yield "ok", f"{name} {importlib.metadata.version(name)}", ""
        except importlib.metadata.PackageNotFoundError:
            yield "wrong", name, f"pip install {name}"


def _optional(settings: Settings) -> Iterator[Finding]:
    del settings
    try:
        yield "ok", f"xrootd {importlib.metadata.version('xrootd')}: root:// URLs can be read", ""
    except importlib.metadata.PackageNotFoundError:
        yield (
            "missing",
            "xrootd: root:// URLs cannot be read",
            install("xrootd"),
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
        WIDE,
        check_proxy,
        end_of,
        end_of_token,
        proxy_file,
        read_token,
        wide_patterns,
    )

    for pattern in wide_patterns(settings.reading.credentials):
        yield "missing", WIDE % pattern, ""
    proxies = [one.proxy for one in settings.reading.credentials if one.proxy]
    tokens = [one.token for one in settings.reading.credentials if one.token]
    if not settings.reading.credentials:
        what = "no credentials: servers that require a proxy or a token cannot be read"
        yield "missing", what, "name the servers and the files in the setting reading.credentials"
        return
    if any(not one.proxy and not one.token for one in settings.reading.credentials):
        proxies += [proxy_file()] if proxy_file().is_file() else []
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
            yield "wrong", error.message, "renew it"
        else:
            valid = (
                f"valid until {end:%Y-%m-%d %H:%M} UTC"
                if end
                else "readable; its expiry is unknown"
            )
            yield "ok", f"the token {token} is {valid}", ""


def _folder(settings: Settings) -> Iterator[Finding]:
    from servicex_server.app import FolderInUseError, lock_folder

    try:
        lock = lock_folder(settings.data_dir, shared=settings.storage.database_url is not None)
    except ServiceXError as error:
        verdict: Verdict = "ok" if isinstance(error, FolderInUseError) else "wrong"
        yield verdict, error.message, error.hint
        return
    with lock:
        free = shutil.disk_usage(settings.data_dir).free / 1e9
        yield "ok", f"{settings.data_dir} can be written, {free:.0f} GB free", ""


def _database(settings: Settings) -> Iterator[Finding]:
    from servicex_server.database.connection import Database
    from servicex_server.database.disk_reserve import DISK_FULL, MAKE_ROOM

    try:
        with closing(Database(settings.database)) as database:
            if database.disk_full:
                yield "wrong", DISK_FULL, MAKE_ROOM
            yield "ok", database.standing(), ""
    except ServiceXError as error:
        yield "wrong", error.message, error.hint


def _sandbox(settings: Settings) -> Iterator[Finding]:
    from servicex_server.app import sandbox_problem

    problem = sandbox_problem(settings)
    if not problem:
        yield "ok", "user code runs in a sandbox (bubblewrap)", ""
        return
    verdict: Verdict = (
        "wrong" if settings.queries.sandbox is SandboxChoice.BUBBLEWRAP else "missing"
    )
    then = "are not offered" if settings.sign_in else "can read what the service can read"
    yield verdict, f"no sandbox: {problem}; languages that run code {then}", ""


def _sign_in(settings: Settings) -> Iterator[Finding]:
    if not settings.sign_in:
        yield "ok", "sign-in is off: every client of the service is its administrator", ""
        if settings.accounts.issuers:
            yield "missing", "the issuers are not used, as sign-in is off", "set sign_in"
        return
    # the setting `accounts.administrators` applies only to users who sign in with an issuer
    named = {
        one.strip().lower() for one in settings.accounts.administrators if settings.accounts.issuers
    }
    if found := sorted(named.union(_administrators(settings))):
        yield "ok", f"administrators: {', '.join(found)}", ""
    else:
        yield (
            "missing",
            "there is no administrator who could approve accounts",
            "servicex-server user add you@example.org --role administrator"
            + ("; or add your e-mail to administrators" if settings.accounts.issuers else ""),
        )
    if settings.accounts.issuers and settings.accounts.approve_domains:
        domains = ", ".join(settings.accounts.approve_domains)
        yield "ok", f"accounts with e-mails of {domains} do not need approval", ""
    if not settings.accounts.issuers:
        yield "ok", "add users with `servicex-server user add` and `user token`", ""
    yield from _issuers(settings)


def _administrators(settings: Settings) -> list[str]:
    """Return the administrators in the database; empty before the tables exist."""
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

    from servicex_server.accounts.oidc import OidcProviders

    base = (settings.public_url or "").rstrip("/")
    if settings.accounts.issuers and not base:
        what = "public_url is not set: users return to the address by which they came"
        yield "missing", what, "set it, and register the addresses below at the issuers"
    for option in settings.accounts.issuers:
        try:
            warning = asyncio.run(OidcProviders([option]).examine(option.name))
        except ServiceXError as error:
            yield "wrong", f"{error.message}: {error.__cause__ or error.hint}", option.metadata_url
        else:
            yield "ok", f"{option.title} answers at {option.metadata_url}{warning}", ""
        callback = f"{base or 'https://<this service>'}/sign-in/{option.name}/callback"
        yield "ok", f"register this redirect URI: {callback}", ""


def _engine(settings: Settings) -> Iterator[Finding]:
    """Run a task on one new local worker; for another engine, connect to its scheduler."""
    import asyncio

    with tempfile.TemporaryDirectory(prefix="servicex-doctor-") as folder:
        if settings.engine.kind != "local":
            yield asyncio.run(_scheduler(settings, Path(folder)))
            return
        try:
            seconds = asyncio.run(_one_column(Path(folder)))
        except Exception as error:  # noqa: BLE001  # every error is a finding
            yield "wrong", f"a worker failed: {type(error).__name__}: {error}", ""
        else:
            yield "ok", f"a worker started and delivered a column in {seconds:.1f} s", ""


def _object_store(settings: Settings) -> Iterator[Finding]:
    import asyncio

    from servicex_server.scheduling.store_health import PROBE_SECONDS
    from servicex_server.storage.choose import open_store

    hint = "see the settings storage.objects_url, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    try:
        probe = open_store(settings.objects).probe()
        asyncio.run(asyncio.wait_for(probe, PROBE_SECONDS))
    except TimeoutError:
        yield "wrong", f"the object store has not answered in {PROBE_SECONDS:g} s", hint
    except ServiceXError as error:
        yield "wrong", error.message, error.hint or hint
    else:
        yield "ok", "the object store takes, returns and deletes an object", ""


async def _scheduler(settings: Settings, folder: Path) -> Finding:
    """Open the cluster of the settings, without starting workers, and close it."""
    from servicex_server.clusters.choose import cluster_of
    from servicex_server.settings.clusters import JobQueueOptions, KubernetesOptions

    options = settings.engine
    # under other names, so that a running service is not disturbed
    if isinstance(options, KubernetesOptions):
        options = options.model_copy(update={"name": f"{options.name}-doctor"})
    elif isinstance(options, JobQueueOptions):
        jobs = options.job_folder and options.job_folder / "doctor"
        options = options.model_copy(update={"scheduler_port": 0, "job_folder": jobs})
    try:
        cluster = cluster_of(options, memory=settings.limits.worker_memory, folder=folder)
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

    from servicex_server.clusters.local import LocalProcesses
    from servicex_server.engine.dask_engine import DaskEngine
    from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec

    source = folder / "input.root"
    with uproot.recreate(source) as file:
        file.mktree("t", {"x": "f8"}).extend({"x": np.arange(3.0)})
    began = time.monotonic()
    engine = DaskEngine(LocalProcesses(memory=1 << 30, scratch=folder), workers=1)
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
    "Object store": _object_store,
    "Sign-in": _sign_in,
    "Sandbox": _sandbox,
    "Workers": _engine,
}
