"""Throttling of the log: repeated warnings are counted and not written."""

import logging
import time

EACH = 100
"""Records of one message that are written within `SECONDS`."""

SECONDS = 60.0

KINDS = 1000
"""Different messages that are counted at a time."""


class Throttle(logging.Filter):
    """Lets at most `EACH` records of a message pass within `SECONDS`.

    Records belong to the same message if they have the same logger and the same first line of the
    format string. Records below a warning always pass, so that a flood of warnings cannot hide
    sign-ins and changes of accounts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun = 0.0
        self._counts: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written."""
        if record.levelno < logging.WARNING:
            return True
        moment = time.monotonic()
        if moment - self._begun >= SECONDS or len(self._counts) >= KINDS:
            self._begun, self._counts = moment, {}
        kind = record.name, str(record.msg).partition("\n")[0]
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == EACH:
            note = f" (further messages of this kind are suppressed for up to {SECONDS:g} s)"
            record.msg = f"{record.msg}{note}"
        return count <= EACH
