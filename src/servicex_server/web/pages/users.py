"""The page with all accounts, for operators and administrators; administrators change them."""

import logging
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from servicex_server.accounts import administration
from servicex_server.app import App
from servicex_server.database import users as rows
from servicex_server.errors import ForbiddenError, NotFoundError, RequestError
from servicex_server.model import Principal, Role, User, UserState
from servicex_server.web.dependencies import TheApp, number_in
from servicex_server.web.pages import templating
from servicex_server.web.pages.dependencies import PagePrincipal, PageSeesAllRequired, SignInEnabled
from servicex_server.web.request_bodies import form_of

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, dependencies=[SignInEnabled, PageSeesAllRequired])


@router.get("/users")
async def users(app: TheApp, principal: PagePrincipal, request: Request) -> Response:
    """Show all accounts, first those that wait for approval."""
    found = await app.database.read(rows.listed)
    waiting = [one for one in found if one.state is UserState.PENDING]
    others = [one for one in found if one.state is not UserState.PENDING]
    return templating.page(
        "users", request, principal, waiting=waiting, others=others, roles=list(Role)
    )


async def _other(app: App, principal: Principal, number: str) -> User:
    """Return an account of another user, which an administrator may change."""
    if not principal.changes_all:
        raise ForbiddenError("only administrators can change accounts")
    if (named := number_in(number)) is None:
        raise NotFoundError(f"there is no account {number[:100]}")
    found = await app.database.read(rows.by_number, named)
    if found.email == principal.user:
        raise RequestError("this is your own account", hint="ask another administrator")
    return found


@router.post("/users/{number}/role")
async def role(app: TheApp, principal: PagePrincipal, request: Request, number: str) -> Response:
    """Change the role of an account."""
    user = await _other(app, principal, number)
    given = (await form_of(request)).get("role", "")
    if given not in list(Role):
        raise RequestError(f"role: {given[:100]!r} is not one of {', '.join(Role)}")
    await administration.promote(user.email, Role(given))(app.database, app.objects)
    log.info("%s set the role of %s to %s", principal.user, user.email, given)
    return RedirectResponse("/users", 303)


@router.post("/users/{number}/{deed}")
async def change(
    app: TheApp,
    principal: PagePrincipal,
    request: Request,
    number: str,
    deed: Literal["approve", "suspend", "delete"],
) -> Response:
    """Approve, suspend or delete an account; deletion asks for confirmation first."""
    user = await _other(app, principal, number)
    if deed == "approve":
        await administration.approve(user.email, app.account_notifier)(app.database, app.objects)
        log.info("%s approved %s", principal.user, user.email)
        return RedirectResponse("/users", 303)
    if deed == "delete" and (await form_of(request)).get("sure") != "yes":
        return templating.page("delete-user", request, principal, user=user)
    log.info("%s %ss %s", principal.user, deed, user.email)
    for request_id in await administration.suspend(user.email)(app.database, app.objects):
        await app.stopped(request_id)
    if deed == "delete":
        await administration.delete(user.email)(app.database, app.objects)
    return RedirectResponse("/users", 303)
