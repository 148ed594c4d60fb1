"""How much one user may have: said with what is used of it, and when to try again."""

from dataclasses import dataclass

from sqlalchemy import Connection

from servicex_server.database import use
from servicex_server.errors import TooLargeError, TooManyError
from servicex_server.model import now


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a user may have; None is any number.

    Parameters
    ----------
    a_minute
        Requests that are submitted in a minute.
    at_once
        Requests that have not ended.
    stored
        Bytes of results.
    """

    a_minute: int | None = None
    at_once: int | None = None
    stored: int | None = None

    def check(self, connection: Connection, owner: str) -> None:
        """Refuse a further request of somebody who has as much as they may.

        Raises
        ------
        TooManyError, TooLargeError
            Says what the limit is, what is used of it, and what to do.
        """
        if (self.a_minute, self.at_once, self.stored) == (None, None, None):
            return
        used = use.of(connection, owner)
        if self.a_minute is not None and len(used.recent) >= self.a_minute:
            free = used.recent[-self.a_minute] + use.MINUTE - now()
            error = TooManyError(
                f"{len(used.recent)} requests in the last minute are as many as one user may "
                f"submit ({self.a_minute})",
                hint=f"try again in {max(1, round(free.total_seconds()))} s",
            )
            error.seconds = max(1.0, free.total_seconds())
            raise error
        if self.at_once is not None and used.open >= self.at_once:
            raise TooManyError(
                f"{used.open} requests that have not ended are as many as one user may have "
                f"({self.at_once})",
                hint="wait until one has ended, or cancel one",
            )
        if self.stored is not None and used.bytes >= self.stored:
            raise TooLargeError(
                f"results of {used.bytes / 1e9:.2f} GB are stored, and one user may have "
                f"{self.stored / 1e9:.2f} GB",
                hint="delete requests whose results you have fetched",
            )
