"""Access by operating-system account, for a service without sign-in.

A loopback address keeps other machines out, but not other accounts of a login node. Without sign-in
every client acts as the owner of the service. So only processes of the owner's account and of root
are served. If the kernel does not report the account of a connection, clients have to send a token
(`servicex_server.accounts.owner_token`).
"""

import os
import pwd
from collections.abc import Callable
from contextlib import suppress

from starlette.types import Scope

from servicex_server.settings.service import Settings
from servicex_server.web.middleware.peer_uid import PeerUids, peer_uids

ROOT = 0


def owner_check(settings: Settings) -> PeerUids | None:
    """Return a finder of client accounts; None if the settings or the system do not allow one."""
    if settings.sign_in or settings.allow_anonymous or settings.require_token:
        return None
    return peer_uids()


def needs_token(settings: Settings, peers: PeerUids | None) -> bool:
    """Whether clients have to send the owner's token."""
    if settings.sign_in:
        return False
    return settings.require_token or (peers is None and not settings.allow_anonymous)


def refusal_of(peers: PeerUids | None) -> Callable[[Scope], str]:
    """Return a function that maps an ASGI scope to a refusal message, or to an empty string.

    Parameters
    ----------
    peers
        Finder of client accounts; None if every client is served.
    """
    if peers is None:
        return lambda _: ""
    owner = os.getuid()
    served = {owner, ROOT}

    def refusal(scope: Scope) -> str:
        client, server = scope.get("client"), scope.get("server")
        uid = peers.find(tuple(client[:2]), tuple(server[:2])) if client and server else None
        return "" if uid in served else _refusal(owner, uid)

    return refusal


def _refusal(owner: int, uid: int | None) -> str:
    client = "an unknown account" if uid is None else _name(uid)
    return (
        f"this service belongs to {_name(owner)} and does not serve {client}, because sign-in is "
        "disabled: start one of your own with `servicex-server serve` (its owner can serve every "
        "account with --allow-anonymous, or whoever has its token with --require-token)"
    )


def _name(uid: int) -> str:
    with suppress(KeyError):
        return f"user {pwd.getpwuid(uid).pw_name}"
    return f"user id {uid}"
