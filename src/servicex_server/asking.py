"""Asking a running service how it does, and printing what it says as tables for people."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from servicex_server import client_file
from servicex_server.accounts.tokens import DEVICE_GRANT
from servicex_server.errors import StartupError
from servicex_server.model import User, now
from servicex_server.settings import Settings

ANSWER_SECONDS = 10.0
"""How long the service may take to answer."""

PROBE_SECONDS = 600.0
"""How long it may take to look at all doors of sites, of which some may not answer."""

_WIDTH = 4000
"""Characters of a line where the output is no terminal: a program reads one line for each row."""

_HERE = ("127.0.0.1", "::1", "localhost")
"""This machine, which is asked without the proxy that the environment may name."""

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what is listened on, and called by


def address(settings: Settings) -> str:
    """Return the URL by which a service with these settings is reached on its own machine.

    Examples
    --------
    >>> address(Settings(host="::", port=5001))
    'http://[::1]:5001'
    """
    host = _ANY.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ask(
    url: str, path: str, *, method: str = "GET", seconds: float = ANSWER_SECONDS
) -> dict[str, Any]:
    """Return what a service answers.

    Raises
    ------
    StartupError
        Nobody answers, or not as this service does.
    """
    what = f"{url.rstrip('/')}{path}"
    headers = {}
    if (token := client_file.token_for(url)) is not None:
        way = {"headers": {"Authorization": f"Bearer {token}"}}
        access = _answer(url, "POST", f"{url.rstrip('/')}/token/refresh", seconds, **way)
        headers["Authorization"] = f"Bearer {_said(what, access)['access_token']}"
    answer = _answer(url, method, what, seconds, headers=headers)
    hint = f"servicex-server sign-in {url}" if answer.status_code == 401 else ""  # noqa: PLR2004
    return _said(what, answer, hint)


def _answer(url: str, method: str, what: str, seconds: float, **given: Any) -> httpx.Response:
    try:
        direct = httpx.URL(what).host in _HERE
        return httpx.request(method, what, timeout=seconds, trust_env=not direct, **given)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise StartupError(
            f"no service answers at {url}: {why}",
            hint="is it running? another address is given with --url",
        ) from error


def _said(what: str, answer: httpx.Response, hint: str = "") -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.is_success and isinstance(found, dict):
        return found
    said = found.get("message") if isinstance(found, dict) else None
    raise StartupError(
        f"{what} answers {answer.status_code}: {said or 'it is no servicex-server'}", hint=hint
    )


def sign_in(url: str, tell: Callable[[str], None]) -> tuple[str, str]:
    """Sign this machine in, once its user has said so in a browser; return who it is, and a token.

    Parameters
    ----------
    tell
        Is given what the user has to do.

    Raises
    ------
    StartupError
        It was refused, nobody has answered in time, or the service does not answer.
    """
    base = url.rstrip("/")
    named = {"data": {"client_id": f"command line on {platform.node()}"[:100]}}
    what = f"{base}/device/code"
    begun = _said(what, _answer(url, "POST", what, ANSWER_SECONDS, **named))
    tell(f"Open {begun['verification_uri_complete']} in a browser, here or elsewhere,")
    tell(f"and say yes there if it shows the code {begun['user_code']}")
    form = {"data": {"grant_type": DEVICE_GRANT, "device_code": begun["device_code"]}}
    while True:
        time.sleep(begun["interval"])
        answer = _answer(url, "POST", f"{base}/device/token", ANSWER_SECONDS, **form)
        if answer.status_code != 400:  # noqa: PLR2004
            found = _said(f"{base}/device/token", answer)
            return found["user"], found["access_token"]
        if answer.json()["error"] != "authorization_pending":
            raise StartupError(answer.json()["message"], hint="start it again")


def show(found: dict[str, Any], *, as_json: bool, table: str) -> None:
    """Print an answer: as it came, or as the table of that name."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=_WIDTH)
    if as_json:
        out.out(json.dumps(found, indent=2))
    elif table == "workers":
        _print_workers(out, found)
    elif table == "sites":
        _print_sites(out, found)
    elif table == "probes":
        _print_probes(out, found["probes"])
    else:
        _print_queue(out, found["requests"])


def _print_workers(out: Console, found: Mapping[str, Any]) -> None:
    if found["age"] is not None:
        out.print(f"No process leads; this is how it was {_span(found['age'])} ago.")
    workers = found["workers"]
    if workers:
        columns = "worker", "state", "for", "request", "file", "memory", "done", "last error"
        out.print(_table(columns, map(_worker, workers)))
    else:
        out.print("There are no workers.")
    out.print(f"{found['workers-wanted']} wanted: {found['reason']}")
    if found["scheduler"]:
        out.print(f"scheduler: {found['scheduler']}")


def _print_sites(out: Console, found: Mapping[str, Any]) -> None:
    if found["age"] is not None:
        out.print(f"No process leads; this is how it was {_span(found['age'])} ago.")
    if not found["sites"]:
        out.print("No file of a site was read yet.")
        return
    columns = (
        "door",
        "state",
        "for",
        "attempts",
        "worked",
        "failed",
        "MB/s",
        "bad files",
        "last error",
    )
    out.print(_table(columns, map(_site, found["sites"])))


def _site(site: Mapping[str, Any]) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in site["failed"].items())
    speed = site["bytes-per-second"]
    return [
        site["door"],
        site["site"] or "",
        site["state"],
        _span((now() - datetime.fromisoformat(site["since"])).total_seconds()),
        str(site["attempts"]),
        str(site["worked"]),
        failed,
        f"{speed / 1e6:.1f}" if speed else "",
        f"{site['bad-replicas']}, {site['reported']} told" if site["bad-replicas"] else "",
        site["last-error"] or "",
    ]


def _print_probes(out: Console, probes: Iterable[Mapping[str, Any]]) -> None:
    rows = [
        [one["replica"], one["error"] or "ok", f"{one['seconds']:.2f} s", one["message"] or ""]
        for one in probes
    ]
    if not rows:
        out.print("No file of a site was read yet.")
        return
    out.print(_table(("replica", "", "in", "why"), rows))
    bad = sum(error != "ok" for _, error, *_ in rows)
    out.print(f"{bad} of {len(rows)} failed")


def show_users(users: Iterable[User]) -> None:
    """Print accounts as a table."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=_WIDTH)
    rows = [
        [
            one.email,
            one.state.value,
            one.role.value,
            one.name,
            one.institution,
            one.experiment,
            _span((now() - one.last_seen).total_seconds()) if one.last_seen else "never",
        ]
        for one in users
    ]
    if not rows:
        out.print("There are no accounts: add one with `servicex-server user add`.")
        return
    columns = "e-mail", "state", "role", "name", "institution", "experiment", "seen"
    out.print(_table(columns, rows))


def _worker(worker: Mapping[str, Any]) -> list[str]:
    memory = f"{worker['memory'] / 1e9:.2f}"
    if worker["memory-limit"]:
        memory += f" of {worker['memory-limit'] / 1e9:.2f}"
    problem = f": {worker['problem']}" if worker["problem"] else ""
    return [
        worker["name"] if worker["name"].strip("/") else worker["address"],
        worker["state"] + problem,
        _span((now() - datetime.fromisoformat(worker["since"])).total_seconds())
        if worker["since"]
        else "",
        worker["request_id"] or "",
        worker["file"] or "",
        f"{memory} GB",
        str(worker["files-done"]),
        worker["last-error"] or "",
    ]


def _print_queue(out: Console, requests: Iterable[Mapping[str, Any]]) -> None:
    rows = [_request(one) for one in requests]
    if not rows:
        out.print("The queue is empty: no request waits or runs.")
        return
    columns = "user", "request", "title", "state", "waiting", "running", "done", "failed"
    out.print(_table((*columns, "files/min", "left"), rows))


def _request(one: Mapping[str, Any]) -> list[str]:
    left = one["seconds-left"]
    numbers = [str(one[name]) for name in ("waiting", "running", "done", "failed")]
    return [
        one["user"],
        one["request_id"],
        one["title"] or "",
        one["status"],
        *numbers,
        f"{one['files-per-minute']:g}",
        "unknown" if left is None else _span(left),
    ]


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    return table


def _plain(text: str) -> str:
    """Return a text without what would move the cursor or change colours: it is from others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _span(seconds: float) -> str:
    """Return a time as people say it.

    Examples
    --------
    >>> _span(7.2), _span(200), _span(9000)
    ('7 s', '3 min 20 s', '2 h 30 min')
    """
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:  # noqa: PLR2004  # minutes of an hour
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
