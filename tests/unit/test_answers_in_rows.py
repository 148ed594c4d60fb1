"""The server encodes long answers in batches of rows, which give the same JSON as one encoding."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servicex_server.web.api import json_rows as rows_of_answers
from servicex_server.web.api.json_rows import AT_ONCE, with_rows


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 7])
def test_no_row_is_lost_or_changed(count: int) -> None:
    """The JSON is complete for any number of rows and any text in them."""
    body = {"message": "],} µ", "none": None}
    rows = [{"n": n, "path": f'root://"é"/{n},]}}', "entries": (0, n)} for n in range(count)]
    answer = with_rows(body, "files", iter(rows))
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert json.loads(bytes(answer.body)) == json.loads(json.dumps({**body, "files": rows}))


def test_rows_are_encoded_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests have their turn between two batches."""
    sizes = []
    encoded = rows_of_answers._encoded

    def noted(value: Any) -> str:
        sizes.append(len(value))
        return encoded(value)

    def rows() -> Iterator[dict[str, int]]:
        yield from ({"n": n} for n in range(2 * AT_ONCE + 1))

    monkeypatch.setattr(rows_of_answers, "_encoded", noted)
    with_rows({}, "rows", rows())
    assert sizes == [1, AT_ONCE, AT_ONCE, 1]
