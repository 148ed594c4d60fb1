"""The way in for people: who may come in at once, and what is asked of those who are new."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servicex_server.accounts.access import email_of
from servicex_server.accounts.issuers import Identity
from servicex_server.database import sign_ins
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.errors import RequestError, SignInError
from servicex_server.model import Role, User, UserState

MOST = {"name": 200, "institution": 200, "reason": 2000}
"""Characters that what people say of themselves may have."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Who comes in without an administrator.

    Parameters
    ----------
    administrators
        E-mails of those who are administrators from the start.
    domains
        Domains of e-mails that need no approval.
    experiments
        What one can say to be of.
    """

    administrators: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()

    def about(self, form: Mapping[str, str], *, fields: tuple[str, ...]) -> dict[str, str]:
        """Return what somebody says of themselves, as it is kept.

        Raises
        ------
        RequestError
            Something is not said, too long, or not one of those there are; names the field.
        """
        return {field: self._field(field, form.get(field, "")) for field in fields}

    def _field(self, field: str, given: str) -> str:
        text = unicodedata.normalize("NFC", given.replace("\r\n", "\n").strip())
        if not text:
            raise RequestError(f"{field}: this field is needed")
        if field == "experiment":
            if text not in self.experiments:
                known = ", ".join(self.experiments)
                raise RequestError(f"experiment: {text[:100]!r} is none of {known}")
            return text
        if len(text) > MOST[field]:
            raise RequestError(f"{field}: {len(text)} characters are too many; {MOST[field]} fit")
        lines = text.split("\n") if field == "reason" else [text]
        if not all(line.isprintable() for line in lines):
            raise RequestError(f"{field}: there are characters in it that cannot be shown")
        return text

    def standing(self, email: str, *, approved: bool) -> dict[str, Any]:
        """Return what an account becomes that nobody has decided on: its role and its state."""
        if email in {one.strip().lower() for one in self.administrators}:
            return {"role": Role.ADMINISTRATOR, "state": UserState.ACTIVE}
        known = email.rpartition("@")[2] in {one.strip().lower() for one in self.domains}
        state = UserState.ACTIVE if known or approved else UserState.PENDING
        return {"role": Role.USER, "state": state}


class Entrance:
    """Lets people in for whom an issuer vouches."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self.rules = rules

    async def known(self, identity: Identity) -> User | None:
        """Return the account of somebody, who is joined to it; None if they have to sign up.

        Raises
        ------
        SignInError
            It is not known who it is: there is no verified e-mail.
        """
        found = await self._database.read(sign_ins.by_identity, identity.issuer, identity.subject)
        if found is None:
            email = _verified(identity)
            found = await self._database.read(sign_ins.by_email, email)
        if found is None:
            return None
        await self._database.write(sign_ins.join, found, identity.issuer, identity.subject)
        standing = self.rules.standing(found.email, approved=identity.approved)
        waits = found.state is UserState.PENDING and standing["state"] is UserState.ACTIVE
        rises = standing["role"] is Role.ADMINISTRATOR and found.role is not Role.ADMINISTRATOR
        if waits or (rises and found.state is UserState.ACTIVE):
            changes = standing if rises else {"state": UserState.ACTIVE}
            return await self._database.write(rows.change, found.email, changes)
        return found

    async def sign_up(self, identity: Identity, form: Mapping[str, str]) -> tuple[User, bool]:
        """Make the account of somebody by what they say; return it, and whether it is new.

        Raises
        ------
        RequestError
            What they say cannot be; names the field.
        """
        email = _verified(identity)
        about = self.rules.about(form, fields=("name", "institution", "experiment", "reason"))
        return await self._database.write(
            sign_ins.sign_up,
            email,
            {**about, **self.rules.standing(email, approved=identity.approved)},
            identity.issuer,
            identity.subject,
        )

    async def administrators(self) -> list[str]:
        """Return the e-mails of all who can let somebody in, been here or not."""
        named = {one.strip().lower() for one in self.rules.administrators}
        return sorted(named.union(await self._database.read(rows.administrators)))


def _verified(identity: Identity) -> str:
    try:
        return email_of(identity.email)
    except RequestError:
        raise SignInError(
            f"{identity.issuer} does not say that it has verified an e-mail address of yours",
            hint="verify one there, or sign in by another way",
        ) from None
