"""Telling people by mail and webhook: administrators who wants to come in, and users that they may.

It goes on beside what a user waits for. What cannot be told is tried again, and then is a line in
the log.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from servicex_server.accounts.mail import mail, mail_server, one_line
from servicex_server.blocking import apart
from servicex_server.errors import ServiceXError
from servicex_server.model import User
from servicex_server.settings import Settings
from servicex_server.webhook import post

log = logging.getLogger(__name__)

WAITS = (5.0, 60.0)
"""Seconds before the second and the third try."""

CLOSE_SECONDS = 8.0
"""Seconds that what is under way has when the service ends."""


class Telling:
    """Tells people, as far as the operator has named a mail server or a webhook."""

    def __init__(self, settings: Settings) -> None:
        self._webhook = settings.account_webhook
        url = settings.mail_url
        self._server = mail_server(url.get_secret_value()) if url is not None else None
        self._from = settings.mail_from or ""
        self._url = (settings.public_url or "").rstrip("/")
        self._under_way: set[asyncio.Task[None]] = set()

    async def signed_up(self, user: User, administrators: Sequence[str]) -> None:
        """Tell administrators of somebody who waits for approval."""
        place = f"{self._url}/users"
        name = one_line(user.name) or user.email
        body = (
            f"{name} has signed up, and waits for approval.\n\n"
            f"E-mail:      {user.email}\n"
            f"Institution: {one_line(user.institution)}\n"
            f"Experiment:  {one_line(user.experiment)}\n"
            f"Reason:      {one_line(user.reason)}\n\n"
            f"Approve it, or do not: {place}\n"
        )
        text = (
            f"{_code(name)} ({_code(user.email)}), institution {_code(user.institution)}, "
            f"experiment {_code(user.experiment)}, has signed up: {_code(user.reason)}. "
            f"Approve it, or do not: {place}"
        )
        what = f"{user.email} has signed up"
        self._mail(what, administrators, f"{name} has signed up", body)
        self._post(what, "signed_up", user, text)

    async def approved(self, user: User) -> None:
        """Tell somebody that they may come in."""
        place = self._url or "the service"
        body = (
            f"Your account is approved: {user.email}\n\n"
            f"Come in, and make a token for your programs: {place}\n"
        )
        what = f"{user.email} may come in"
        self._mail(what, [user.email], "Your account is approved", body)
        self._post(what, "approved", user, f"{_code(user.email)} may come in: {place}")

    async def close(self) -> None:
        """Wait for what is under way, and not for long."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
            for one in late:
                log.warning("nobody is told %s: the service ends", one.get_name())
                one.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _mail(self, what: str, to: Sequence[str], subject: str, body: str) -> None:
        server = self._server
        if server is None:
            return
        if not to:
            log.warning("nobody is told by mail that %s: there is no administrator", what)
            return

        async def send() -> None:
            await apart(server.send, mail(self._from, to, subject, body), to)

        self._begin(f"by mail that {what}", send)

    def _post(self, what: str, event: str, user: User, text: str) -> None:
        webhook = self._webhook
        if webhook is None:
            return
        body = {"event": event, "text": text, "user": _as_json(user)}
        self._begin(f"by webhook that {what}", lambda: post(webhook.get_secret_value(), body))

    def _begin(self, what: str, tell: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(_persist(what, tell), name=what)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _persist(what: str, tell: Callable[[], Awaitable[None]]) -> None:
    """Tell somebody, if need be with the third try."""
    waits = iter(WAITS)
    while True:
        try:
            await tell()
        except ServiceXError as error:
            wait = next(waits, None)
            if wait is None:
                log.warning("nobody is told %s: %s", what, error)
                return
            log.info("%s is tried again in %g s: %s", what, wait, error)
            await asyncio.sleep(wait)
        except Exception:
            log.exception("nobody can be told %s", what)
            return
        else:
            return


def _as_json(user: User) -> dict[str, Any]:
    return {
        "email": user.email,
        "name": user.name,
        "institution": user.institution,
        "experiment": user.experiment,
        "reason": user.reason,
    }


def _code(text: str) -> str:
    """Return what a user has written as a chat shows it: letters only, no links and no mentions."""
    plain = one_line(text).replace("`", "'") or "-"
    for character, name in {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.items():
        plain = plain.replace(character, name)
    return f"`{plain}`"
