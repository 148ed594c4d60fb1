"""Sending JSON to a URL that the operator named, and that may hold a secret."""

from typing import Any

from servicex_server.errors import UploadError

SECONDS = 30.0
"""Seconds that whoever is there has for each part of the answer."""


async def post(url: str, body: dict[str, Any]) -> None:
    """Send it.

    Raises
    ------
    UploadError
        It did not arrive; says why, without the URL.
    """
    import httpx

    try:
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            answer = await client.post(url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UploadError(f"the webhook does not answer: {type(error).__name__}") from error
    if not answer.is_success:
        raise UploadError(f"the webhook answers with status {answer.status_code}")
