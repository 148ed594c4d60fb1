"""Posting JSON to the webhook URL of the operator, which may contain a secret."""

from typing import Any

from servicex_server.errors import UploadError

SECONDS = 30.0
"""Seconds in which the webhook has to connect, and to send each part of its answer."""


async def post(url: str, body: dict[str, Any]) -> None:
    """Post a JSON body to a webhook.

    Raises
    ------
    UploadError
        The webhook did not accept it. The message says why, without the URL.
    """
    import httpx

    try:
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            answer = await client.post(url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UploadError(f"the webhook does not answer: {type(error).__name__}") from error
    if not answer.is_success:
        raise UploadError(f"the webhook answers with status {answer.status_code}")
