"""Identities at OIDC providers, and the accounts that they belong to."""

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from servicex_server.database import users as rows
from servicex_server.database.tables import identities, users
from servicex_server.errors import ForbiddenError
from servicex_server.model import User, now

log = logging.getLogger(__name__)


def by_identity(connection: Connection, issuer: str, subject: str) -> User | None:
    """Return the account to which an identity is linked; None if there is none."""
    theirs = (identities.c.issuer == issuer, identities.c.subject == subject)
    return rows.first(connection, users.c.id == identities.c.user_id, *theirs)


def account_of(connection: Connection, issuer: str, subject: str, email: str) -> User | None:
    """Return the account of an identity; None if there is none.

    An identity that is not linked yet gets the account of its verified e-mail address, unless that
    account is linked to another subject of the same issuer: a provider may give the address of a
    former user to another person.

    Parameters
    ----------
    issuer, subject
        The identity.
    email
        The verified e-mail address, in lower case; empty if there is none.

    Raises
    ------
    ForbiddenError
        The account of this address belongs to another subject.
    """
    found = by_identity(connection, issuer, subject)
    if found is not None or not email:
        return found
    found = rows.first(connection, users.c.email == email)
    if found is None:
        return None
    other = select(identities.c.id).where(
        identities.c.user_id == found.id, identities.c.issuer == issuer
    )
    if connection.scalar(other.limit(1)) is not None:
        log.warning("refused a sign-in: %s has a new subject for %s", issuer, email)
        contacts = rows.administrators(connection)[:3]
        who = ", ".join(contacts) if contacts else "an administrator of this service"
        raise ForbiddenError(
            f"the account of {email} belongs to another identity of {issuer}: the e-mail address "
            "may have been given to you after somebody else had it",
            hint=f"write to {who}, who can delete the old account",
        )
    return found


def sign_in(connection: Connection, issuer: str, subject: str, email: str) -> User | None:
    """Return the account of an identity, as `account_of`, and link the identity to it.

    Raises
    ------
    ForbiddenError
        As for `account_of`.
    """
    # of two concurrent sign-ins, the second waits and then sees the identity of the first
    connection.execute(select(users.c.id).where(users.c.email == email).with_for_update())
    found = account_of(connection, issuer, subject, email)
    if found is not None:
        join(connection, found, issuer, subject)
    return found


def join(connection: Connection, user: User, issuer: str, subject: str) -> None:
    """Link an identity to an account, unless it is linked already."""
    values = {
        "user_id": user.id,
        "issuer": issuer,
        "subject": subject,
        "created_at": now(),
    }
    if by_identity(connection, issuer, subject) is None:
        connection.execute(insert(identities).values(values))


def sign_up(
    connection: Connection, email: str, about: Mapping[str, Any], issuer: str, subject: str
) -> tuple[User, bool]:
    """Create the account of an identity; return it, and whether it is new.

    Of two concurrent sign-ups, one creates the account and the other finds it.

    Raises
    ------
    ForbiddenError
        As for `account_of`.
    """
    found = account_of(connection, issuer, subject, email)
    user = found or rows.add(connection, email, about)
    join(connection, user, issuer, subject)
    return user, found is None
