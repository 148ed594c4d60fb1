"""The page that a browser gets after an internal error."""

import pytest
from fastapi import Request

from servicex_server.web.error_handlers import _unknown


@pytest.mark.anyio
async def test_internal_error_page_has_the_error_id_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reader of the page can find the line of the log, but does not see the error itself."""
    headers = [(b"accept", b"text/html"), (b"host", b"x.org")]
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": headers}
    answer = await _unknown(Request(scope), ValueError("a secret"))
    (line,) = caplog.records
    assert answer.status_code == 500
    assert f"error_id={line.__dict__['error_id']}" in bytes(answer.body).decode()
    assert b"a secret" not in answer.body
