"""The command line as a client of a running service."""

import platform
import time
from collections.abc import Callable
from typing import Any

import httpx

from servicex_server.accounts.access_tokens import DEVICE_GRANT
from servicex_server.cli import client_config
from servicex_server.errors import StartupError
from servicex_server.settings.service import Settings
from servicex_server.text.escaping import escaped

ANSWER_SECONDS = 10.0
"""Seconds that the service may take to answer."""


PROBE_SECONDS = 600.0
"""Seconds that the service may take to probe all storage endpoints; some may not answer."""


_HERE = ("127.0.0.1", "::1", "localhost")
"""Names of this machine, which is called without the proxy of the environment."""


_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # listen address: call address


def address(settings: Settings) -> str:
    """Return the URL of a service with these settings, for its own machine.

    Examples
    --------
    >>> address(Settings(host="::", port=5001))
    'http://[::1]:5001'
    """
    host = _ANY.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ask(
    url: str, path: str, *, method: str = "GET", seconds: float = ANSWER_SECONDS
) -> dict[str, Any]:
    """Call a service, and return its JSON answer.

    Raises
    ------
    StartupError
        The service does not answer, answers with an error, or is not a servicex-server.
    """
    what = f"{url.rstrip('/')}{path}"
    headers = {}
    if (token := client_config.token_for(url)) is not None:
        way = {"headers": {"Authorization": f"Bearer {token}"}}
        access = _answer(url, "POST", f"{url.rstrip('/')}/token/refresh", seconds, **way)
        headers["Authorization"] = f"Bearer {_said(what, access)['access_token']}"
    answer = _answer(url, method, what, seconds, headers=headers)
    hint = f"servicex-server sign-in {url}" if answer.status_code == 401 else ""  # noqa: PLR2004
    return _said(what, answer, hint)


def _answer(url: str, method: str, what: str, seconds: float, **given: Any) -> httpx.Response:
    try:
        direct = httpx.URL(what).host in _HERE
        return httpx.request(method, what, timeout=seconds, trust_env=not direct, **given)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise StartupError(
            f"no service answers at {url}: {why}",
            hint="check that it runs, or give its address with --url",
        ) from error


def _said(what: str, answer: httpx.Response, hint: str = "") -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.is_success and isinstance(found, dict):
        return found
    said = found.get("message") if isinstance(found, dict) else None
    raise StartupError(
        f"{what} answers {answer.status_code}: {said or 'it is not a servicex-server'}", hint=hint
    )


def sign_in(url: str, tell: Callable[[str], None]) -> tuple[str, str]:
    """Sign in by the device flow (RFC 8628); return the user and a token.

    Parameters
    ----------
    url
        The URL of the service.
    tell
        Called with the instructions for the user.

    Raises
    ------
    StartupError
        The user refused or did not answer in time, or the service does not answer.
    """
    base = url.rstrip("/")
    named = {"data": {"client_id": f"command line on {platform.node()}"[:100]}}
    what = f"{base}/device/code"
    begun = _said(what, _answer(url, "POST", what, ANSWER_SECONDS, **named))
    page, code = escaped(begun["verification_uri_complete"]), escaped(begun["user_code"])
    tell(f"Open {page} in a browser, here or elsewhere,")
    tell(f"and confirm there if it shows the code {code}")
    form = {"data": {"grant_type": DEVICE_GRANT, "device_code": begun["device_code"]}}
    while True:
        time.sleep(begun["interval"])
        answer = _answer(url, "POST", f"{base}/device/token", ANSWER_SECONDS, **form)
        if answer.status_code != 400:  # noqa: PLR2004
            found = _said(f"{base}/device/token", answer)
            return found["user"], found["access_token"]
        if answer.json()["error"] != "authorization_pending":
            raise StartupError(answer.json()["message"], hint="start it again")
