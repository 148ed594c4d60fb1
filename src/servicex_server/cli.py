"""The command ``servicex-server``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from servicex_server import __version__
from servicex_server.errors import ServiceXError
from servicex_server.model import Role

if TYPE_CHECKING:
    from servicex_server.settings import Settings

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
        typer.echo(f"servicex-server: {error}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if wanted:
        typer.echo(f"servicex-server {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    del version


@cli.command()
def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 if not given.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one; 5000 if not given.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for all data; ~/.local/share/servicex-server if not given."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; one per core if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option("--allow-anonymous", help="Serve other machines although nobody signs in."),
    ] = None,
    no_dispatch: Annotated[
        bool,
        typer.Option("--no-dispatch", help="API and results only; `dispatch` does the work."),
    ] = False,
) -> None:
    """Start the service: API, results and workers, in one."""
    from servicex_server.settings import load

    settings = load(
        config,
        host=host,
        port=port,
        data_dir=data_dir,
        workers=workers,
        allow_anonymous=allow_anonymous,
    )
    from servicex_server.web.run import run

    run(settings, dispatch=not no_dispatch)


@cli.command()
def dispatch(
    *,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data folder that all processes share.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; one per core if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Do the work for `serve --no-dispatch`: of several, one leads and the others stand by."""
    from servicex_server.processes import dispatch as run
    from servicex_server.settings import load

    run(load(config, data_dir=data_dir, workers=workers))


@cli.command()
def doctor(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder to look at.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Check the installation, and say what is missing and how to get it."""
    from servicex_server.doctor import examine
    from servicex_server.settings import load

    if not examine(load(config, data_dir=data_dir)):
        raise typer.Exit(1)


@cli.command("rotate-keys")
def rotate_keys(
    *,
    keep: Annotated[
        int, typer.Option(min=1, help="How many keys there are to be, with the new one.")
    ] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder of the service.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with its settings.")] = None,
) -> None:
    """Have a new key sign from the next start on; what older ones have signed is good meanwhile."""
    from servicex_server.keys import rotate

    kept, dropped = rotate(_settings(config, data_dir), keep)
    typer.echo(f"a new key, and {kept - 1} older; now start every process of the service anew")
    if dropped:
        typer.echo(
            f"dropped: {dropped}. From then on what was signed with that is void: access tokens, "
            "links, and what opens results; API tokens stay good"
        )


_Url = Annotated[
    str | None, typer.Option("--url", help="Where the service is; as its settings say if not.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the answer as it came.")]
_Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]


@cli.command()
def workers(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the workers of a running service, and what they are on."""
    _show("workers", url, config, as_json=as_json)


@cli.command()
def queue(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the requests of a running service that have not ended."""
    _show("queue", url, config, as_json=as_json)


@cli.command()
def sites(*, url: _Url = None, config: _Config = None, as_json: _Json = False) -> None:
    """Show the doors of sites that a running service has tried, and how each has done."""
    _show("sites", url, config, as_json=as_json)


@cli.command()
def probe(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            help="URLs of files, or datasets as users name them, which are looked at from here."
        ),
    ] = None,
    *,
    url: _Url = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Open replicas, and read their first block: of every known door if none is given.

    The exit code is the number of those that failed, or 100 if there are more.
    """
    from servicex_server.asking import PROBE_SECONDS, address, ask, show
    from servicex_server.settings import load

    settings = load(config)
    if places:
        import asyncio

        from servicex_server.probes import probes
        from servicex_server.web.wire import probes_json

        found = probes_json(asyncio.run(probes(places, settings)))
    else:
        service = url or address(settings)
        found = ask(service, "/servicex/sites/probe", method="POST", seconds=PROBE_SECONDS)
    show(found, as_json=as_json, table="probes")
    raise typer.Exit(min(100, sum(one["error"] is not None for one in found["probes"])))


@cli.command("sign-in")
def sign_in(
    url: Annotated[
        str | None, typer.Argument(help="Where the service is; as its settings say if not.")
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="Where the token is kept; ~/servicex.yaml if not given."),
    ] = None,
    config: _Config = None,
) -> None:
    """Sign in at a service with a browser, and keep a token where the servicex client finds it."""
    from servicex_server import client_file
    from servicex_server.asking import address
    from servicex_server.asking import sign_in as ask
    from servicex_server.settings import load

    service = (url or address(load(config))).rstrip("/")
    user, token = ask(service, typer.echo)
    place = client_file.remember(service, token, file or Path.home() / "servicex.yaml")
    typer.echo(f"signed in as {user}; the token is in {place}")


_accounts = typer.Typer(help="Manage accounts, of which users have one where they sign in.")
cli.add_typer(_accounts, name="user", no_args_is_help=True)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The data folder.")]
_Email = Annotated[str, typer.Argument(help="Who: the e-mail of the account.")]


@_accounts.command("add")
def add_user(
    email: _Email,
    *,
    name: Annotated[str, typer.Option(help="The name of the person.")] = "",
    institution: Annotated[str, typer.Option(help="Where they work.")] = "",
    experiment: Annotated[str, typer.Option(help="Such as ATLAS or CMS.")] = "",
    role: Annotated[Role, typer.Option(help="What they may do.")] = Role.USER,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Add an account that may be used at once."""
    from servicex_server.accounts import administration

    about = {"name": name, "institution": institution, "experiment": experiment, "role": role}
    user = administration.run(_settings(config, data_dir), administration.add(email, **about))
    typer.echo(f"{user.email} may come in: make a token with `servicex-server user token`")


@_accounts.command("list")
def list_users(*, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Show all accounts, those first that wait for approval."""
    from servicex_server.accounts import administration
    from servicex_server.asking import show_users

    show_users(administration.run(_settings(config, data_dir), administration.listed()))


@_accounts.command("approve")
def approve_user(email: _Email, *, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Let somebody in who has signed up, and is told so, or who was suspended."""
    from servicex_server.accounts import administration

    settings = _settings(config, data_dir)
    administration.run(settings, administration.approve_and_wait(email, settings))
    typer.echo(f"{email} may come in")


@_accounts.command("suspend")
def suspend_user(email: _Email, *, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Keep somebody out from now on: their tokens work no more, and their requests end."""
    from servicex_server.accounts import administration

    ended = administration.run(_settings(config, data_dir), administration.suspend(email))
    typer.echo(f"{email} is kept out; {len(ended)} of their requests were cancelled")


@_accounts.command("promote")
def promote_user(
    email: _Email,
    role: Annotated[Role, typer.Argument(help="What they may do from now on.")],
    *,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Give somebody another role: user, operator (sees all) or administrator."""
    from servicex_server.accounts import administration

    administration.run(_settings(config, data_dir), administration.promote(email, role))
    typer.echo(f"{email} is {role.value} now")


@_accounts.command("delete")
def delete_user(
    email: _Email,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Remove an account with its tokens, its requests and their results."""
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
    days: Annotated[float, typer.Option(help="For how long it works.")] = 365,
    revoke: Annotated[bool, typer.Option("--revoke", help="End the one of this name.")] = False,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Make a token for somebody's programs, and print it: it is shown this once."""
    from servicex_server.accounts import administration

    settings = _settings(config, data_dir)
    if revoke:
        administration.run(settings, administration.revoke(email, name))
        typer.echo(f"the token {name!r} of {email} works no more")
        return
    typer.echo(administration.run(settings, administration.token(email, name, days)))


def _settings(config: Path | None, data_dir: Path | None) -> "Settings":
    from servicex_server.settings import load

    return load(config, data_dir=data_dir)


def _show(what: str, url: str | None, config: Path | None, *, as_json: bool) -> None:
    from servicex_server.asking import address, ask, show
    from servicex_server.settings import load

    found = ask(url or address(load(config)), f"/servicex/{what}")
    show(found, as_json=as_json, table=what)
