"""Sign-up: the policy that decides who needs approval, and the accounts of new users."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servicex_server.accounts.authentication import email_of
from servicex_server.accounts.oidc import Identity
from servicex_server.database import sign_ins
from servicex_server.database import users as rows
from servicex_server.database.connection import Database
from servicex_server.errors import RequestError, SignInError
from servicex_server.model import Role, User, UserState

MOST = {"name": 200, "institution": 200, "reason": 2000}
"""Most characters of each field of the sign-up form."""

_LONGEST = 10_000
"""Most characters that are normalised: normalisation takes quadratic time in a run of accents."""


@dataclass(frozen=True, slots=True)
class SignUpPolicy:
    """Who needs approval, who becomes an administrator, and which answers the form accepts.

    Parameters
    ----------
    administrators
        E-mail addresses of users who become administrators when they sign in.
    domains
        Domains of e-mail addresses that need no approval.
    experiments
        Experiments that a user can choose.
    """

    administrators: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()

    def about(self, form: Mapping[str, str], *, fields: tuple[str, ...]) -> dict[str, str]:
        """Return the fields of a form as they are stored.

        Raises
        ------
        RequestError
            A field is missing, too long, or not one of the choices. The message names the field.
        """
        return {field: self._field(field, form.get(field, "")) for field in fields}

    def _field(self, field: str, given: str) -> str:
        if len(given) > _LONGEST:
            most = MOST.get(field, 200)
            raise RequestError(f"{field}: {len(given)} characters are too many; {most} fit")
        text = unicodedata.normalize("NFC", given.replace("\r\n", "\n").strip())
        if not text:
            raise RequestError(f"{field}: this field is needed")
        if field == "experiment":
            if text not in self.experiments:
                known = ", ".join(self.experiments)
                raise RequestError(f"experiment: {text[:100]!r} is not one of {known}")
            return text
        if len(text) > MOST[field]:
            raise RequestError(f"{field}: {len(text)} characters are too many; {MOST[field]} fit")
        lines = text.split("\n") if field == "reason" else [text]
        if not all(line.isprintable() for line in lines):
            raise RequestError(f"{field}: some of its characters cannot be printed")
        return text

    def standing(self, email: str, *, approved: bool) -> dict[str, Any]:
        """Return the role and the state that the policy gives to an account.

        Parameters
        ----------
        email
            The verified e-mail address, in lower case.
        approved
            Whether the OIDC provider's claims make approval unnecessary.
        """
        if email in {one.strip().lower() for one in self.administrators}:
            return {"role": Role.ADMINISTRATOR, "state": UserState.ACTIVE}
        known = email.rpartition("@")[2] in {one.strip().lower() for one in self.domains}
        state = UserState.ACTIVE if known or approved else UserState.PENDING
        return {"role": Role.USER, "state": state}


class Registration:
    """Finds and creates the accounts of users who sign in with an OIDC provider."""

    def __init__(self, database: Database, policy: SignUpPolicy) -> None:
        self._database = database
        self.policy = policy

    async def known(self, identity: Identity) -> User | None:
        """Return the account of an identity, and link the two; None if the user has to sign up.

        An account that the policy now approves, or makes an administrator, is changed.

        Raises
        ------
        SignInError
            The identity is new and has no verified e-mail address.
        ForbiddenError
            The account of that address belongs to another identity of the same provider.
        """
        by = identity.issuer, identity.subject
        if await self._database.read(sign_ins.by_identity, *by) is None:
            email = _verified(identity)
        else:
            email = ""
        found = await self._database.write(sign_ins.sign_in, *by, email)
        if found is None:
            return None
        standing = self.policy.standing(found.email, approved=identity.approved)
        waits = found.state is UserState.PENDING and standing["state"] is UserState.ACTIVE
        rises = standing["role"] is Role.ADMINISTRATOR and found.role is not Role.ADMINISTRATOR
        if waits or (rises and found.state is UserState.ACTIVE):
            changes = standing if rises else {"state": UserState.ACTIVE}
            return await self._database.write(rows.change, found.email, changes)
        return found

    async def sign_up(self, identity: Identity, form: Mapping[str, str]) -> tuple[User, bool]:
        """Create the account of a new user from a form; return it, and whether it is new.

        Raises
        ------
        SignInError
            The identity has no verified e-mail address.
        RequestError
            A field of the form is not valid. The message names the field.
        ForbiddenError
            The account of that address belongs to another identity of the same provider.
        """
        email = _verified(identity)
        about = self.policy.about(form, fields=("name", "institution", "experiment", "reason"))
        return await self._database.write(
            sign_ins.sign_up,
            email,
            {**about, **self.policy.standing(email, approved=identity.approved)},
            identity.issuer,
            identity.subject,
        )

    async def administrators(self) -> list[str]:
        """Return the addresses of all administrators, including those who never signed in."""
        named = {one.strip().lower() for one in self.policy.administrators}
        return sorted(named.union(await self._database.read(rows.administrators)))


def _verified(identity: Identity) -> str:
    try:
        return email_of(identity.email)
    except RequestError:
        raise SignInError(
            f"{identity.issuer} does not report a verified e-mail address for you",
            hint="verify your address there, or use another way to sign in",
        ) from None
