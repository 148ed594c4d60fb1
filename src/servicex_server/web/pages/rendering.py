"""Making a page of a template, and the headers that every page has."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from servicex_server import __version__
from servicex_server.model import Principal
from servicex_server.submission import FILE_LIST_DID
from servicex_server.web.pages import numbers

FOLDER = Path(__file__).parent

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}
"""Of every page: nothing of another site is loaded, nothing in the text of a page is run."""


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": numbers.size,
        "count": numbers.count,
        "duration": numbers.duration,
        "moment": numbers.moment,
        "plural": numbers.plural,
    }
    made.globals |= {"version": __version__, "file_list": FILE_LIST_DID}
    return made


def page(
    name: str,
    request: Request,
    principal: Principal | None,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """Return a page made of a template.

    Parameters
    ----------
    principal
        Who looks, which decides what the menu has; None where it is not known.
    headers
        In addition to those that every page has.
    """
    template = _environment().get_template(f"{name}.html")
    about = {"path": request.url.path, "principal": principal, "signs_in": _signs_in(request)}
    text = template.render(status=status, **about, **values)
    return HTMLResponse(text, status, headers=HEADERS | (headers or {}))


def _signs_in(request: Request) -> bool:
    """Whether users sign in on this service."""
    app = request.scope.get("app")
    service = getattr(app.state, "servicex", None) if app is not None else None
    return service is not None and bool(service.settings.sign_in)


def wants_page(request: Request) -> bool:
    """Whether a person asks, with a browser; programs name other types, or any."""
    return "text/html" in request.headers.get("accept", "")
