"""Pages of long lists."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request

Start = Annotated[int, Query(ge=0, le=1 << 40)]
"""Number of the first entry that a page shows."""


def paging(request: Request, start: int, most: int, total: int) -> dict[str, Any]:
    """Return the links to the previous and the next page."""
    others = [(name, value) for name, value in request.query_params.items() if name != "start"]

    def at(place: int) -> str:
        return f"{request.url.path}?{urlencode([*others, ('start', place)])}"

    return {
        "start": start,
        "earlier": at(max(0, start - most)) if start else None,
        "later": at(start + most) if start + most < total else None,
    }
