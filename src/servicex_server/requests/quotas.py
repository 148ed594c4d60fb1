"""Quotas of one user. An error names the limit, the usage, and when to try again."""

from dataclasses import dataclass

from sqlalchemy import Connection

from servicex_server.database import usage
from servicex_server.errors import TooLargeError, TooManyError
from servicex_server.model import now


@dataclass(frozen=True, slots=True)
class Quotas:
    """The limits of one user; None is unlimited.

    Parameters
    ----------
    a_minute
        Requests submitted per minute.
    at_once
        Requests that have not ended.
    stored
        Bytes of stored results.
    """

    a_minute: int | None = None
    at_once: int | None = None
    stored: int | None = None

    def check(self, connection: Connection, owner: str) -> None:
        """Reject a further request of a user who has reached a limit.

        Raises
        ------
        TooManyError, TooLargeError
            The message names the limit and the usage; the hint says what to do.
        """
        if (self.a_minute, self.at_once, self.stored) == (None, None, None):
            return
        used = usage.of(connection, owner)
        if self.a_minute is not None and len(used.recent) >= self.a_minute:
            free = used.recent[-self.a_minute] + usage.MINUTE - now()
            error = TooManyError(
                f"{len(used.recent)} requests were submitted in the last minute; one user may "
                f"submit {self.a_minute}",
                hint=f"try again in {max(1, round(free.total_seconds()))} s",
            )
            error.seconds = max(1.0, free.total_seconds())
            raise error
        if self.at_once is not None and used.open >= self.at_once:
            raise TooManyError(
                f"{used.open} requests have not ended; one user may have {self.at_once} at a time",
                hint="wait until one has ended, or cancel one",
            )
        if self.stored is not None and used.bytes >= self.stored:
            raise TooLargeError(
                f"{used.bytes / 1e9:.2f} GB of results are stored; one user may have "
                f"{self.stored / 1e9:.2f} GB",
                hint="delete requests whose results you have downloaded",
            )
