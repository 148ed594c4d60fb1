"""Answers of very many rows are JSON as of all at once, and are encoded a few at a time."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servicex_server.web.api import json_rows as rows_of_answers
from servicex_server.web.api.json_rows import AT_ONCE, with_rows


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 7])
def test_no_row_is_lost_or_changed(count: int) -> None:
    """Whatever the number is, and whatever is in them."""
    body = {"message": "],} µ", "none": None}
    rows = [{"n": n, "path": f'root://"é"/{n},]}}', "entries": (0, n)} for n in range(count)]
    answer = with_rows(body, "files", iter(rows))
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert json.loads(bytes(answer.body)) == json.loads(json.dumps({**body, "files": rows}))


def test_no_encoding_takes_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them others have their turn."""
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
