"""Answers of very many rows, made on the thread that reads them and not on the event loop.

JSON of all rows at once would keep everybody waiting there too, for the encoder does not let go of
the interpreter until it is done.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from fastapi.responses import Response

AT_ONCE = 500
"""Rows that are encoded in one go: a few thousandths of a second."""


def with_rows(body: Mapping[str, Any], name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    """Return an object of JSON, and below one more name of it the rows.

    Examples
    --------
    >>> with_rows({"state": "done"}, "rows", [{"n": 1}, {"n": 2}]).body
    b'{"state":"done","rows":[{"n":1},{"n":2}]}'
    >>> with_rows({}, "rows", []).body
    b'{"rows":[]}'
    """
    head = _encoded({**body, name: []})
    return Response(
        f"{head[:-2]}{','.join(_pieces(iter(rows)))}{head[-2:]}", media_type="application/json"
    )


def _pieces(rows: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    while some := list(islice(rows, AT_ONCE)):
        yield _encoded(some)[1:-1]


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
