"""Tables of what a running service answers."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from servicex_server.model import User, now
from servicex_server.text.escaping import escaped
from servicex_server.web.pages.formatting import size

_WIDTH = 4000
"""Characters of a line if the output is not a terminal: a program reads one line for each row."""


def show(found: Mapping[str, Any], *, as_json: bool, table: str) -> None:
    """Print an answer as JSON, or as the table of that name."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=_WIDTH)
    if as_json:
        out.out(json.dumps(found, indent=2))
    elif table == "workers":
        _print_workers(out, found)
    elif table == "sites":
        _print_sites(out, found)
    elif table == "storage":
        _print_storage(out, found)
    elif table == "probes":
        _print_probes(out, found["probes"])
    else:
        _print_queue(out, found["requests"])


def _print_workers(out: Console, found: Mapping[str, Any]) -> None:
    if found["age"] is not None:
        out.print(f"The service has no leader. This is its state {_span(found['age'])} ago.")
    workers = found["workers"]
    if workers:
        columns = "worker", "state", "for", "request", "file", "memory", "done", "last error"
        out.print(_table(columns, map(_worker, workers)))
    else:
        out.print("There are no workers.")
    out.print(escaped(f"{found['workers-wanted']} wanted: {found['reason']}"))
    if found["scheduler"]:
        out.print(escaped(f"scheduler: {found['scheduler']}"))


def _print_sites(out: Console, found: Mapping[str, Any]) -> None:
    if found["age"] is not None:
        out.print(f"The service has no leader. This is its state {_span(found['age'])} ago.")
    if not found["sites"]:
        out.print("No remote file has been read yet.")
        return
    columns = (
        "endpoint",
        "site",
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


def _print_storage(out: Console, found: Mapping[str, Any]) -> None:
    capacity, total = found["capacity"], found["bytes"]
    of = f" of {size(capacity)} ({total / capacity:.0%})" if capacity else ""
    out.print(f"Results take {size(total)}{of}.")
    if found["problem"]:
        out.print(escaped(f"{found['problem'][0].upper()}{found['problem'][1:]}."))
    if found["unused-days"] is not None:
        out.print(f"Results that were not used for {found['unused-days']:g} days are evicted.")
    if not total:
        return
    for kind in ("user", "experiment"):
        if named := found[f"{kind}s"]:
            rows = ([one[kind], size(one["bytes"])] for one in named)
            out.print(_table((kind, "stored"), rows))
    ages = [(_age(o["used-within-days"]), o["results"], o["bytes"]) for o in found["ages"]]
    rows = ([age, str(count), size(total)] for age, count, total in ages)
    out.print(_table(("last used", "results", "stored"), rows))
    if found["next"]:
        out.print("What is evicted next, if room is needed:")
        rows = ([o["key"], o["user"], size(o["bytes"]), o["used"]] for o in found["next"][:10])
        out.print(_table(("result", "user", "stored", "last used"), rows))


def storage_plan(found: Mapping[str, Any], until: datetime, at: datetime) -> str:
    """Return a forecast of what the results take on a day, and when the budget is reached."""
    growth = found["growth"]
    if growth is None:
        return f"Results take {size(found['bytes'])}. The growth is known after two days."
    lately = f"have grown by {size(growth)} a day" if growth > 0 else "have not grown"
    told = [f"Results take {size(found['bytes'])}, and {lately} lately."]
    ahead = max(0.0, (until - at) / timedelta(days=1))
    expected = max(0.0, found["bytes"] + growth * ahead)
    told.append(f"On {until:%Y-%m-%d} they would take {size(expected)}.")
    if (limit := found["evicts-above"]) is not None and growth > 0:
        begins = at + timedelta(days=max(0.0, limit - found["bytes"]) / growth)
        told.append(f"Eviction to make room begins at {size(limit)}, about {begins:%Y-%m-%d}.")
    return "\n".join(told)


def _age(days: int | None) -> str:
    return "earlier" if days is None else f"within {days} d"


def _site(site: Mapping[str, Any]) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in site["failed"].items())
    speed = site["bytes-per-second"]
    return [
        site["endpoint"],
        site["site"] or "",
        site["state"],
        _span((now() - datetime.fromisoformat(site["since"])).total_seconds()),
        str(site["attempts"]),
        str(site["worked"]),
        failed,
        f"{speed / 1e6:.1f}" if speed else "",
        f"{site['bad-replicas']}, {site['reported']} reported" if site["bad-replicas"] else "",
        site["last-error"] or "",
    ]


def _print_probes(out: Console, probes: Iterable[Mapping[str, Any]]) -> None:
    rows = [
        [one["replica"], one["error"] or "ok", f"{one['seconds']:.2f} s", one["message"] or ""]
        for one in probes
    ]
    if not rows:
        out.print("No remote file has been read yet.")
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
    out.print(_table((*columns, "events", "files/min", "left"), rows))


def _request(one: Mapping[str, Any]) -> list[str]:
    left = one["seconds-left"]
    numbers = [str(one[name]) for name in ("waiting", "running", "done", "failed")]
    return [
        one["user"],
        one["request_id"],
        one["title"] or "",
        one["status"],
        *numbers,
        _events(one.get("events"), one.get("events-kept")),
        f"{one['files-per-minute']:g}",
        "unknown" if left is None else _span(left),
    ]


def _events(read: int | None, kept: int | None) -> str:
    """Return how many events were read and, if known, how many of them are in the results.

    Examples
    --------
    >>> _events(2304, 17), _events(2304, None)
    ('2304 → 17', '2304')
    """
    if read is None:  # the answer of an older service
        return ""
    return str(read) if kept is None else f"{read} → {kept}"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    return table


def _span(seconds: float) -> str:
    """Return a duration in a readable form.

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
