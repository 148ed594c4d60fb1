"""Notifications about accounts, by e-mail and by webhook.

Administrators are notified of users who wait for approval; users are notified when their account is
approved. Notifications are sent in the background, so no user waits for them. One that fails is
tried again twice; after that the log has a warning.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from servicex_server.concurrency import run_in_daemon_thread
from servicex_server.errors import ServiceXError
from servicex_server.model import User
from servicex_server.notifications.mail import mail, one_line, send
from servicex_server.notifications.webhook import post
from servicex_server.settings.mail import mail_server
from servicex_server.settings.service import Settings

log = logging.getLogger(__name__)

WAITS = (5.0, 60.0)
"""Seconds before the second and the third attempt."""

CLOSE_SECONDS = 8.0
"""Seconds that unsent notifications have left when the service ends."""


class AccountNotifier:
    """Sends notifications, if the operator has configured a mail server or a webhook."""

    def __init__(self, settings: Settings) -> None:
        self._webhook = settings.accounts.webhook
        url = settings.mail.url
        self._server = mail_server(url.get_secret_value()) if url is not None else None
        self._from = settings.mail.sender or ""
        self._url = (settings.public_url or "").rstrip("/")
        self._under_way: set[asyncio.Task[None]] = set()

    async def signed_up(self, user: User, administrators: Sequence[str]) -> None:
        """Notify administrators of a user who waits for approval."""
        place = f"{self._url}/users"
        name = one_line(user.name) or user.email
        body = (
            f"{name} has signed up and waits for approval.\n\n"
            f"E-mail:      {user.email}\n"
            f"Institution: {one_line(user.institution)}\n"
            f"Experiment:  {one_line(user.experiment)}\n"
            f"Reason:      {one_line(user.reason)}\n\n"
            f"Approve or delete the account: {place}\n"
        )
        text = (
            f"{_code(name)} ({_code(user.email)}), institution {_code(user.institution)}, "
            f"experiment {_code(user.experiment)}, has signed up: {_code(user.reason)}. "
            f"Approve or delete the account: {place}"
        )
        what = f"{user.email} has signed up"
        self._mail(what, administrators, f"{name} has signed up", body)
        self._post(what, "signed_up", user, text)

    async def approved(self, user: User) -> None:
        """Notify a user that their account is approved."""
        place = self._url or "the service"
        body = (
            f"Your account is approved: {user.email}\n\n"
            f"Sign in and create a token for your programs: {place}\n"
        )
        what = f"the account of {user.email} is approved"
        self._mail(what, [user.email], "Your account is approved", body)
        text = f"The account of {_code(user.email)} is approved: {place}"
        self._post(what, "approved", user, text)

    async def close(self) -> None:
        """Wait for unsent notifications for at most `CLOSE_SECONDS`; cancel the rest."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
            for one in late:
                log.warning("could not notify %s: the service ends", one.get_name())
                one.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _mail(self, what: str, to: Sequence[str], subject: str, body: str) -> None:
        server = self._server
        if server is None:
            return
        if not to:
            log.warning("could not notify by mail that %s: there is no administrator", what)
            return

        async def hand_in() -> None:
            await run_in_daemon_thread(send, server, mail(self._from, to, subject, body), to)

        self._begin(f"by mail that {what}", hand_in)

    def _post(self, what: str, event: str, user: User, text: str) -> None:
        webhook = self._webhook
        if webhook is None:
            return
        body = {"event": event, "text": text, "user": _as_json(user)}
        self._begin(f"by webhook that {what}", lambda: post(webhook.get_secret_value(), body))

    def _begin(self, what: str, attempt: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(_persist(what, attempt), name=what)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _persist(what: str, attempt: Callable[[], Awaitable[None]]) -> None:
    """Send a notification, with up to three attempts."""
    waits = iter(WAITS)
    while True:
        try:
            await attempt()
        except ServiceXError as error:
            wait = next(waits, None)
            if wait is None:
                log.warning("could not notify %s: %s", what, error)
                return
            log.info("the notification %s is tried again in %g s: %s", what, wait, error)
            await asyncio.sleep(wait)
        except Exception:
            log.exception("could not notify %s", what)
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
    """Return a user's text as inline code, so that a chat shows no links and no mentions in it."""
    plain = one_line(text).replace("`", "'") or "-"
    for character, name in {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.items():
        plain = plain.replace(character, name)
    return f"`{plain}`"
