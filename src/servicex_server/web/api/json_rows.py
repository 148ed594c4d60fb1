"""JSON responses with very many rows, encoded on the thread that reads the rows.

Encoding them on the event loop would block all other requests. So would encoding all rows at once
on another thread, because the encoder holds the GIL until it is done.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from fastapi.responses import Response, StreamingResponse

AT_ONCE = 500
"""Rows that are encoded at once, which takes a few milliseconds."""


def with_rows(body: Mapping[str, Any], name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    """Return a JSON object with one more key, whose value is the list of rows.

    Examples
    --------
    >>> with_rows({"state": "done"}, "rows", [{"n": 1}, {"n": 2}]).body
    b'{"state":"done","rows":[{"n":1},{"n":2}]}'
    >>> with_rows({}, "rows", []).body
    b'{"rows":[]}'
    """
    head = _encoded({**body, name: []})
    return Response(f"{head[:-2]}{encoded_rows(rows)}{head[-2:]}", media_type="application/json")


def encoded_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as JSON without the brackets around them.

    Examples
    --------
    >>> encoded_rows([{"n": 1}, {"n": 2}])
    '{"n":1},{"n":2}'
    """
    return ",".join(_pieces(iter(rows)))


def streamed_rows(name: str, slices: AsyncIterable[str]) -> StreamingResponse:
    """Return a JSON object with one key, whose value is a list of rows that arrive in slices."""

    async def pieces() -> AsyncIterator[str]:
        yield f"{{{_encoded(name)}:["
        comma = ""
        async for rows in slices:
            if rows:
                yield comma + rows
                comma = ","
        yield "]}"

    return StreamingResponse(pieces(), media_type="application/json")


def _pieces(rows: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    while some := list(islice(rows, AT_ONCE)):
        yield _encoded(some)[1:-1]


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
