"""The service sends e-mail to administrators after a sign-up, and to the user after approval."""

import json
from collections.abc import Callable
from typing import Any

import httpx

from tests.e2e.test_accounts import command
from tests.identity_provider import IdentityProvider
from tests.mail_server import post
from tests.support import Server, until

FORM = {"name": "Zoë", "institution": "CERN", "experiment": "ATLAS", "reason": "Z peak\nand more"}


def sign_up(server: Server, provider: IdentityProvider, login: str) -> None:
    """Have somebody sign up in a browser of their own."""
    with visit(server) as browser:
        begun = browser.get("/sign-in/lab")
        with httpx.Client() as other:
            away = provider.sign_in(other, begun.headers["Location"], login)
        assert browser.get(away.headers["Location"]).headers["Location"] == "/sign-up"
        assert browser.post("/sign-up", data=FORM).headers["Location"] == "/pending"


def visit(server: Server) -> httpx.Client:
    """Return a browser without cookies."""
    return httpx.Client(base_url=server.url, headers={"Accept": "text/html"}, timeout=60)


def test_sign_up_and_approval_send_one_e_mail_each(
    new_server: Callable[..., Server],
) -> None:
    """All administrators get the first. An approval by page or by command sends the second."""
    users: dict[str, dict[str, Any]] = {
        name: {"email": f"{name}@example.org", "email_verified": True} for name in ("zoe", "max")
    }
    provider = IdentityProvider(users).start()
    issuer = {"name": "lab", "title": "Lab", "metadata_url": provider.metadata}
    issuer |= {"client_id": provider.client_id, "client_secret": provider.client_secret}
    try:
        with post() as mail:
            server = new_server(
                "--workers",
                "1",
                SERVICEX_SERVER_SIGN_IN="true",
                SERVICEX_SERVER_SCALING__LEAST_WORKERS="0",
                SERVICEX_SERVER_ACCOUNTS__ISSUERS=json.dumps([issuer]),
                SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS=json.dumps(["Boss@example.org"]),
                SERVICEX_SERVER_MAIL__URL=f"smtp://127.0.0.1:{mail.port}",
                SERVICEX_SERVER_MAIL__SENDER="servicex@example.org",
            )
            provider.redirect_to(f"{server.url}/sign-in/lab/callback")
            command(server, "add", "chief@example.org", "--role", "administrator")
            token = command(server, "token", "chief@example.org")
            for login in users:
                sign_up(server, provider, login)
            until(lambda: len(mail.to) == 2, "administrators are told")
            assert mail.to == [["boss@example.org", "chief@example.org"]] * 2
            assert "Zoë has signed up" in mail.said()
            with visit(server) as chief:
                chief.post("/sign-in", data={"token": token})
                query = "select id from users where email = 'zoe@example.org'"
                ((number,),) = server.rows(query)
                assert chief.post(f"/users/{number}/approve").headers["Location"] == "/users"
                assert chief.post(f"/users/{number}/approve").headers["Location"] == "/users"
            until(lambda: len(mail.to) == 3, "who has waited is told")
            command(server, "approve", "max@example.org")
            assert mail.to[2:] == [["zoe@example.org"], ["max@example.org"]]
    finally:
        provider.stop()
