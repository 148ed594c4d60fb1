"""The command ``servicex-server``."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from servicex_server import __version__
from servicex_server.errors import ServiceXError
from servicex_server.model import Role
from servicex_server.text.escaping import escaped

if TYPE_CHECKING:
    from servicex_server.settings.service import Settings

cli = typer.Typer(
    name="servicex-server",
    help="Deliver columns from high-energy-physics datasets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; what stops it is one line, not a traceback."""
    try:
        cli()
    except ServiceXError as error:
        typer.echo(f"servicex-server: {escaped(str(error))}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if wanted:
        typer.echo(f"servicex-server {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version


@cli.command()
def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; the default is 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port; 0 selects a free port; the default is 5000.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for all data; the default is ~/.local/share/servicex-server."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Maximum number of workers; the default is one per core.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option(
            "--allow-anonymous",
            help="Serve every client, including clients of other accounts and machines.",
        ),
    ] = None,
    require_token: Annotated[
        bool | None,
        typer.Option("--require-token", help="Require the printed token from clients."),
    ] = None,
    no_dispatch: Annotated[
        bool,
        typer.Option("--no-dispatch", help="Serve API and results only; `dispatch` does the work."),
    ] = False,
) -> None:
    """Start the service: API, results and workers in one process."""
    from servicex_server.settings.loading import load

    settings = load(
        config,
        host=host,
        port=port,
        data_dir=data_dir,
        workers=workers,
        allow_anonymous=allow_anonymous,
        require_token=require_token,
    )
    from servicex_server.web.serve import run

    run(settings, dispatch=not no_dispatch)


@cli.command()
def dispatch(
    *,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder that all processes share.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Maximum number of workers; the default is one per core.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Do the work for `serve --no-dispatch`; of several processes, one leads."""
    from servicex_server.process import dispatch as run
    from servicex_server.settings.loading import load

    run(load(config, data_dir=data_dir, workers=workers))


@cli.command()
def doctor(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder to check.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Check the installation, and print what is missing and how to get it."""
    from servicex_server.cli.doctor import examine
    from servicex_server.observability.logs import configure_distributed
    from servicex_server.settings.loading import load

    configure_distributed()
    if not examine(load(config, data_dir=data_dir)):
        raise typer.Exit(1)


@cli.command("rotate-keys")
def rotate_keys(
    *,
    keep: Annotated[
        int, typer.Option(min=1, help="Number of keys to keep, including the new key.")
    ] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder of the service.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Add a new signing key, used from the next start; signatures of kept keys remain valid."""
    from servicex_server.accounts.signing_keys import rotate

    kept, dropped = rotate(_settings(config, data_dir), keep)
    typer.echo(f"a new key, and {kept - 1} older; now restart every process of the service")
    if dropped:
        typer.echo(
            f"dropped: {dropped}. After the restart, what these keys signed is void: access "
            "tokens, links, and keys of results; API tokens stay valid"
        )


_Url = Annotated[
    str | None,
    typer.Option("--url", help="URL of the service; the default is taken from its settings."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the unchanged response.")]
_Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]


@cli.command()
def workers(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the workers of a running service and their current files."""
    _show("workers", url, config, as_json=as_json)


@cli.command()
def queue(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the active requests of a running service."""
    _show("queue", url, config, as_json=as_json)


@cli.command()
def sites(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the storage endpoints that a running service has used, and their health."""
    _show("sites", url, config, as_json=as_json)


_storage = typer.Typer(help="Show what the object store of a running service holds.")
cli.add_typer(_storage, name="storage", invoke_without_command=True)


@_storage.callback()
def storage(
    context: typer.Context,
    *,
    url: _Url = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Show what the object store of a running service holds, and what is evicted next."""
    if context.invoked_subcommand is None:
        _show("storage", url, config, as_json=as_json)


@_storage.command("plan")
def plan_storage(
    until: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Day of the forecast.")],
    *,
    url: _Url = None,
    config: _Config = None,
) -> None:
    """Forecast how much the results will take on a day, if they grow as they did lately."""
    from servicex_server.cli.api_client import address, ask
    from servicex_server.cli.tables import storage_plan
    from servicex_server.settings.loading import load

    found = ask(url or address(load(config)), "/servicex/storage")
    typer.echo(storage_plan(found, until.replace(tzinfo=UTC), datetime.now(UTC)))


@cli.command()
def probe(
    places: Annotated[
        list[str] | None,
        typer.Argument(help="URLs of files, or dataset references, to probe from this machine."),
    ] = None,
    *,
    url: _Url = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Open replicas and read their first block; by default, at every known storage endpoint.

    The exit code is the number of replicas that failed, at most 100.
    """
    from servicex_server.cli.api_client import PROBE_SECONDS, address, ask
    from servicex_server.cli.tables import show
    from servicex_server.settings.loading import load

    settings = load(config)
    if places:
        import asyncio

        from servicex_server.cli.probe import probes
        from servicex_server.web.api.schemas import probes_json

        found: Mapping[str, Any] = probes_json(asyncio.run(probes(places, settings)))
    else:
        service = url or address(settings)
        found = ask(service, "/servicex/sites/probe", method="POST", seconds=PROBE_SECONDS)
    show(found, as_json=as_json, table="probes")
    raise typer.Exit(min(100, sum(one["error"] is not None for one in found["probes"])))


@cli.command("sign-in")
def sign_in(
    url: Annotated[
        str | None,
        typer.Argument(help="URL of the service; the default is taken from its settings."),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="File for the token; the default is ~/servicex.yaml."),
    ] = None,
    config: _Config = None,
) -> None:
    """Sign in at a service with a browser, and store a token where the servicex client finds it."""
    from servicex_server.cli import client_config
    from servicex_server.cli.api_client import address
    from servicex_server.cli.api_client import sign_in as ask
    from servicex_server.settings.loading import load

    service = (url or address(load(config))).rstrip("/")
    user, token = ask(service, typer.echo)
    place = client_config.remember(service, token, file or Path.home() / "servicex.yaml")
    typer.echo(f"signed in as {escaped(user)}; the token is in {place}")


_accounts = typer.Typer(help="Manage the accounts of a service with sign-in.")
cli.add_typer(_accounts, name="user", no_args_is_help=True)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data folder of the service.")]
_Email = Annotated[str, typer.Argument(help="E-mail address of the account.")]


@_accounts.command("add")
def add_user(
    email: _Email,
    *,
    name: Annotated[str, typer.Option(help="Name of the person.")] = "",
    institution: Annotated[str, typer.Option(help="Institution of the person.")] = "",
    experiment: Annotated[str, typer.Option(help="Experiment, for example ATLAS or CMS.")] = "",
    role: Annotated[Role, typer.Option(help="Role of the account.")] = Role.USER,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Add an approved account."""
    from servicex_server.accounts import administration

    about = {"name": name, "institution": institution, "experiment": experiment, "role": role}
    user = administration.run(_settings(config, data_dir), administration.add(email, **about))
    typer.echo(f"{user.email} may come in: make a token with `servicex-server user token`")


@_accounts.command("list")
def list_users(*, data_dir: _DataDir = None, config: _Config = None) -> None:
    """List all accounts; accounts that wait for approval come first."""
    from servicex_server.accounts import administration
    from servicex_server.cli.tables import show_users

    show_users(administration.run(_settings(config, data_dir), administration.listed()))


@_accounts.command("approve")
def approve_user(email: _Email, *, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Approve an account that has signed up, and notify its user; or reactivate a suspended one."""
    from servicex_server.accounts import administration

    settings = _settings(config, data_dir)
    administration.run(settings, administration.approve_and_wait(email, settings))
    typer.echo(f"{email} may come in")


@_accounts.command("suspend")
def suspend_user(email: _Email, *, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Suspend an account: its tokens stop working, and its active requests are cancelled."""
    from servicex_server.accounts import administration

    ended = administration.run(_settings(config, data_dir), administration.suspend(email))
    typer.echo(f"{email} is kept out; {len(ended)} of their requests were cancelled")


@_accounts.command("promote")
def promote_user(
    email: _Email,
    role: Annotated[Role, typer.Argument(help="New role of the account.")],
    *,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Change the role of an account: user, operator (can view everything) or administrator."""
    from servicex_server.accounts import administration

    administration.run(_settings(config, data_dir), administration.promote(email, role))
    typer.echo(f"{email} is {role.value} now")


@_accounts.command("delete")
def delete_user(
    email: _Email,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Delete an account with its tokens, its requests and their results."""
    from servicex_server.accounts import administration

    if not yes:
        typer.confirm(f"Remove {email} with all requests and results?", abort=True)
    gone = administration.run(_settings(config, data_dir), administration.delete(email))
    typer.echo(f"{email} is removed, with {len(gone)} requests")


@_accounts.command("token")
def user_token(
    email: _Email,
    *,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "command line",
    days: Annotated[float, typer.Option(help="Lifetime in days.")] = 365,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Revoke the token of this name instead.")
    ] = False,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Create an API token for a user's programs, and print it; it is shown only once."""
    from servicex_server.accounts import administration

    settings = _settings(config, data_dir)
    if revoke:
        administration.run(settings, administration.revoke(email, name))
        typer.echo(f"the token {name!r} of {email} works no more")
        return
    typer.echo(administration.run(settings, administration.token(email, name, days)))


def _settings(config: Path | None, data_dir: Path | None) -> "Settings":
    from servicex_server.settings.loading import load

    return load(config, data_dir=data_dir)


def _show(what: str, url: str | None, config: Path | None, *, as_json: bool) -> None:
    from servicex_server.cli.api_client import address, ask
    from servicex_server.cli.tables import show
    from servicex_server.settings.loading import load

    found = ask(url or address(load(config)), f"/servicex/{what}")
    show(found, as_json=as_json, table=what)
