"""Rendering pages from templates, and the HTTP headers of every page."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from servicex_server import __version__
from servicex_server.model import Principal
from servicex_server.requests.submission import FILE_LIST_DID
from servicex_server.text.escaping import redacted
from servicex_server.web.pages import formatting

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
"""Headers of every page. A page loads nothing from other sites and runs no inline scripts."""


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
        "size": formatting.size,
        "count": formatting.count,
        "duration": formatting.duration,
        "moment": formatting.moment,
        "plural": formatting.plural,
        "redacted": redacted,
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
    """Return a page, rendered from a template.

    Parameters
    ----------
    name
        Name of the template, without ``.html``.
    principal
        The user, which decides what the menu contains; None if nobody has signed in.
    headers
        Headers in addition to those of every page.
    values
        Variables of the template.
    """
    template = _environment().get_template(f"{name}.html")
    about = {"path": request.url.path, "principal": principal, "signs_in": _signs_in(request)}
    text = template.render(status=status, **about, **values)
    return HTMLResponse(text, status, headers=HEADERS | (headers or {}))


def _signs_in(request: Request) -> bool:
    """Whether sign-in is enabled on this service."""
    app = request.scope.get("app")
    service = getattr(app.state, "servicex", None) if app is not None else None
    return service is not None and bool(service.settings.sign_in)


def wants_page(request: Request) -> bool:
    """Whether a browser sent the request: only browsers accept ``text/html`` explicitly."""
    return "text/html" in request.headers.get("accept", "")
