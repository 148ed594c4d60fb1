"""The accounts, for those who see all; and what administrators do to them."""

import logging
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts import administration
from servicex_server.app import App
from servicex_server.database import users as rows
from servicex_server.errors import ForbiddenError, NotFoundError, RequestError
from servicex_server.model import Principal, Role, User, UserState
from servicex_server.web.askers import TheApp, number_in
from servicex_server.web.bodies import form_of
from servicex_server.web.pages import rendering
from servicex_server.web.pages.visitors import SeesAll, SignIn, Visitor

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, dependencies=[SignIn, SeesAll])


@router.get("/users")
async def users(app: TheApp, principal: Visitor, request: Request) -> Response:
    """Show all accounts, those first that wait for approval."""
    found = await app.database.read(rows.listed)
    waiting = [one for one in found if one.state is UserState.PENDING]
    others = [one for one in found if one.state is not UserState.PENDING]
    return rendering.page(
        "users", request, principal, waiting=waiting, others=others, roles=list(Role)
    )


async def _other(app: App, principal: Principal, number: str) -> User:
    """Return an account that somebody may change: an administrator, and none their own."""
    if not principal.changes_all:
        raise ForbiddenError("accounts are changed by administrators")
    if (named := number_in(number)) is None:
        raise NotFoundError(f"there is no account {number[:100]}")
    found = await app.database.read(rows.by_number, named)
    if found.email == principal.user:
        raise RequestError("this is your own account", hint="ask another administrator")
    return found


@router.post("/users/{number}/role")
async def role(app: TheApp, principal: Visitor, request: Request, number: str) -> Response:
    """Give somebody another role."""
    user = await _other(app, principal, number)
    given = (await form_of(request)).get("role", "")
    if given not in list(Role):
        raise RequestError(f"role: {given[:100]!r} is none of {', '.join(Role)}")
    await administration.promote(user.email, Role(given))(app.database, app.objects)
    log.info("%s makes %s %s", principal.user, user.email, given)
    return RedirectResponse("/users", 303)


@router.post("/users/{number}/{deed}")
async def change(
    app: TheApp,
    principal: Visitor,
    request: Request,
    number: str,
    deed: Literal["approve", "suspend", "delete"],
) -> Response:
    """Let somebody in, keep them out, or remove them once it is clear that this is meant."""
    user = await _other(app, principal, number)
    if deed == "approve":
        await administration.approve(user.email, app.telling)(app.database, app.objects)
        log.info("%s approves %s", principal.user, user.email)
        return RedirectResponse("/users", 303)
    if deed == "delete" and (await form_of(request)).get("sure") != "yes":
        return rendering.page("delete-user", request, principal, user=user)
    log.info("%s %ss %s", principal.user, deed, user.email)
    for request_id in await administration.suspend(user.email)(app.database, app.objects):
        await app.stopped(request_id)
    if deed == "delete":
        await administration.delete(user.email)(app.database, app.objects)
    return RedirectResponse("/users", 303)
