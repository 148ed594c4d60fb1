"""Users sign in through a real OIDC provider, and new users sign up."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.settings.groups import AccountSettings
from servicex_server.settings.issuers import Issuer
from servicex_server.settings.service import Settings
from tests.command_line import invoke
from tests.e2e.test_accounts import bearer, command
from tests.identity_provider import IdentityProvider
from tests.in_process import client_of
from tests.support import Server

HTML = {"Accept": "text/html"}
FORM = {
    "name": "Zoë Müller-Łukasiewicz 物理",
    "institution": "Université de Genève",
    "experiment": "ATLAS",
    "reason": "Z peak\nand more",
}


def person(email: str, **claims: Any) -> dict[str, Any]:
    """Return what a provider says of somebody."""
    return {"email": email, "email_verified": True, "name": email.partition("@")[0], **claims}


@dataclass
class Service:
    """A server with sign-in, and its OIDC providers."""

    server: Server
    one: IdentityProvider
    two: IdentityProvider
    addresses: Iterator[int] = field(default_factory=lambda: iter(range(1, 255)))

    @contextmanager
    def browser(self) -> Iterator["Browser"]:
        """Give a browser without cookies, at an address of its own, as sign-ins are counted so."""
        transport = httpx.HTTPTransport(local_address=f"127.1.0.{next(self.addresses)}")
        with httpx.Client(
            base_url=self.server.url, headers=HTML, timeout=60, transport=transport
        ) as client:
            yield Browser(client, self)

    def state(self, email: str) -> tuple[str, str]:
        """Return state and role of an account."""
        ((state, role),) = self.server.rows("select state, role from users where email = ?", email)
        return state, role


@dataclass
class Browser:
    """A browser that keeps its cookies, and does not follow redirects by itself."""

    client: httpx.Client
    service: Service
    last: httpx.Response = field(default_factory=lambda: httpx.Response(200))

    def get(self, path: str) -> httpx.Response:
        """Open a page."""
        self.last = self.client.get(path)
        return self.last

    def post(self, path: str, **form: str) -> httpx.Response:
        """Send a form."""
        self.last = self.client.post(path, data=form)
        return self.last

    def vouched(self, login: str, issuer: str = "one", back: str = "/requests") -> httpx.Response:
        """Sign in at a provider, and come back; return what the service then says."""
        begun = self.client.get(f"/sign-in/{issuer}", params={"back": back})
        assert begun.status_code == 303, begun.text
        provider: IdentityProvider = getattr(self.service, issuer)
        with httpx.Client() as other:  # its cookies are of its own
            away = provider.sign_in(other, begun.headers["Location"], login)
        return self.get(away.headers["Location"])

    @property
    def led_to(self) -> str:
        """Where the last answer leads."""
        assert self.last.status_code == 303, self.last.text
        return str(self.last.headers["Location"])

    @property
    def says(self) -> str:
        """The text of the last page."""
        return unescape(self.last.text)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a server with two providers, of which the second says nothing of e-mails' being true."""
    one = IdentityProvider().start()
    two = IdentityProvider(algorithm="ES256", claims_in_id_token=True, client_secret="").start()
    issuers = [
        {
            "name": name,
            "title": f"Lab {name}",
            "metadata_url": provider.metadata,
            "client_id": provider.client_id,
            **({"client_secret": provider.client_secret} if provider.client_secret else {}),
            **more,
        }
        for name, provider, more in (
            ("one", one, {"approve": {"groups": ["/atlas"]}, "audience": [one.audience]}),
            ("two", two, {"trust_email": True}),
        )
    ]
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
        "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps(issuers),
        "SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS": json.dumps(["Boss@Lab.org"]),
        "SERVICEX_SERVER_ACCOUNTS__APPROVE_DOMAINS": json.dumps(["known.org"]),
        "SERVICEX_SERVER_LOG_LEVEL": "DEBUG",  # whose log holds no secret either
    }
    folder = tmp_path_factory.mktemp("sign-in") / "data"
    server = Server(folder, ["--workers", "1"], environment).start()
    try:
        for name, provider in (("one", one), ("two", two)):
            provider.redirect_to(f"{server.url}/sign-in/{name}/callback")
        yield Service(server, one, two)
    finally:
        server.stop()
        one.stop()
        two.stop()


def test_new_user_signs_up_and_waits_for_approval(service: Service) -> None:
    """The user fills in the form once. As soon as the account is approved, all pages are open."""
    service.one.change("zoe", **person("Zoe@Example.org"))
    with service.browser() as browser:
        assert browser.get("/requests?state=open").headers["Location"] == (
            "/sign-in?back=/requests%3Fstate%3Dopen"
        )
        assert "Sign in with Lab one" in browser.get("/sign-in").text
        browser.vouched("zoe", back="/datasets")
        assert browser.led_to == "/sign-up"
        assert "Zoe@Example.org" in browser.get("/sign-up").text
        browser.post("/sign-up", **FORM)
        assert browser.led_to == "/pending"
        assert service.state("zoe@example.org") == ("pending", "user")
        assert FORM["name"] in browser.get("/pending").text
        for path in ("/requests", "/profile", "/datasets"):
            assert browser.get(path).headers["Location"] == "/pending"
        refused = browser.client.get("/requests", headers={"Accept": "*/*"})
        assert (refused.status_code, "still pending" in refused.text) == (401, True)
        command(service.server, "approve", "ZOE@example.org")
        assert browser.get("/pending").headers["Location"] == "/requests"
        assert "My requests" in browser.get("/requests").text
        profile = browser.get("/profile")
        assert FORM["name"] in profile.text
        browser.vouched("zoe", back="/datasets")
        assert browser.led_to == "/datasets"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "name: this field is needed"),
        ("name", "x" * 201, "name: 201 characters are too many; 200 fit"),
        ("name", "a\u202eb", "name: some of its characters cannot be printed"),
        ("institution", "   ", "institution: this field is needed"),
        ("experiment", "UA1", "experiment: 'UA1' is not one of ATLAS, CMS"),
        ("reason", "", "reason: this field is needed"),
        ("reason", "x" * 2001, "reason: 2001 characters are too many"),
    ],
)
def test_rejected_sign_up_names_the_field_and_keeps_the_form(
    service: Service, field: str, value: str, words: str
) -> None:
    """The form still has the correct values."""
    service.one.change("wrong", **person("wrong@example.org"))
    with service.browser() as browser:
        browser.vouched("wrong")
        answer = browser.post("/sign-up", **FORM | {field: value})
        assert answer.status_code == 400
        assert words in browser.says
        for name in {"name", "institution"} - {field}:
            assert FORM[name] in browser.says
    assert service.server.rows("select 1 from users where email = 'wrong@example.org'") == []


def test_two_sign_ups_at_once_make_one_account(service: Service) -> None:
    """Both browsers continue. E-mail addresses that differ in case are the same."""
    service.one.change("twin", **person("Twin@example.org"))
    service.two.change("twin", **person("tWIN@EXAMPLE.org"))
    with service.browser() as first, service.browser() as second:
        first.vouched("twin")
        second.vouched("twin", "two")
        assert (first.led_to, second.led_to) == ("/sign-up", "/sign-up")
        with ThreadPoolExecutor(2) as pool:
            posts = [pool.submit(one.post, "/sign-up", **FORM) for one in (first, second)]
            found = [post.result().headers.get("Location") for post in posts]
        assert found == ["/pending", "/pending"]
    query = "select count(*) from users where email = 'twin@example.org'"
    assert service.server.rows(query) == [(1,)]
    query = "select count(*) from identities join users on users.id = user_id where email = ?"
    assert service.server.rows(query, "twin@example.org") == [(2,)]


def test_verified_e_mail_links_a_sign_in_to_an_account(service: Service) -> None:
    """A user whom the administrator added can sign in by each provider.

    The account stays the same after the e-mail address changes.
    """
    command(service.server, "add", "Jane@Example.org", "--role", "operator")
    service.one.change("jane", **person("JANE@example.ORG"))
    service.two.change("jane", email="jane@Example.org", name="Jane")
    with service.browser() as browser:
        for issuer in ("one", "two"):
            browser.vouched("jane", issuer, back="/users")
            assert browser.led_to == "/users"
            assert "jane@example.org" in browser.get("/users").text
        # the identity, and not the e-mail, is who it is from now on
        service.one.change("jane", email="jane.new@example.org", email_verified=False)
        browser.post("/sign-out")
        assert browser.get("/users").headers["Location"].startswith("/sign-in")
        browser.vouched("jane", "one", back="/users")
        assert browser.led_to == "/users"
        assert "jane@example.org" in browser.get("/users").text


def test_reassigned_e_mail_opens_no_account(service: Service) -> None:
    """The server rejects a new subject of the same issuer, names a contact, and changes nothing."""
    service.one.change("first", **person("recycled@known.org"))
    service.one.change("second", **person("Recycled@known.org"))
    command(service.server, "add", "admin@known.org", "--role", "administrator")
    with service.browser() as first, service.browser() as second:
        first.vouched("first")
        assert first.led_to == "/sign-up"
        first.post("/sign-up", **FORM)
        assert first.led_to == "/requests"
        answer = second.vouched("second")
        assert answer.status_code == 403
        assert "belongs to another identity" in second.says
        # other tests have made administrators too, and three are named
        known = service.server.rows("select email from users where role = 'administrator'")
        assert any(email in second.says for (email,) in known)
        assert second.get("/requests").headers["Location"].startswith("/sign-in")
        assert second.get("/sign-up").headers["Location"] == "/sign-in"
        # nor by a token of the issuer that a program brings
        given = bearer(service.one.access_token("second"))
        program = service.server.get("/servicex/transformation", headers=given)
        assert program.status_code in (401, 403)
        # the first one, and another issuer that has verified the address, come in as before
        assert first.vouched("first").status_code == 303
        service.two.change("first", **person("recycled@known.org"))
        second.vouched("first", "two")
        assert second.led_to == "/requests"
    query = "select count(*) from identities join users on users.id = user_id where email = ?"
    assert service.server.rows(query, "recycled@known.org") == [(2,)]


def test_e_mail_with_a_confusable_character_is_rejected(service: Service) -> None:
    """The Kelvin sign is a k in lower case, and would open the account of another user."""
    command(service.server, "add", "kate@known.org", "--role", "administrator")
    service.one.change("kelvin", **person("\u212aate@known.org"))
    with service.browser() as browser:
        assert browser.vouched("kelvin").status_code == 401
        assert browser.get("/requests").headers["Location"].startswith("/sign-in")


@pytest.mark.parametrize(
    ("issuer", "claims"),
    [
        ("one", {"email": "liar@lab.org"}),
        ("one", {"email": "liar@lab.org", "email_verified": False}),
        ("two", {"email": "liar@lab.org", "email_verified": False}),
        ("two", {"name": "No Mail"}),
        ("two", {"email": "boss@lab", "email_verified": True}),
    ],
)
def test_unverified_e_mail_does_not_sign_in(
    service: Service, issuer: str, claims: dict[str, Any]
) -> None:
    """Otherwise, anybody could become the administrator."""
    getattr(service, issuer).change("liar", email=None, email_verified=None)
    getattr(service, issuer).change("liar", **claims)
    with service.browser() as browser:
        assert browser.vouched("liar", issuer).status_code == 401
        assert "does not report a verified e-mail address for you" in browser.says
        assert browser.get("/sign-up").headers["Location"] == "/sign-in"


@pytest.mark.parametrize(
    ("login", "claims", "expected"),
    [
        ("boss", person("boss@LAB.org"), ("active", "administrator")),
        ("domain", person("x@known.org"), ("active", "user")),
        ("subdomain", person("x@un.known.org"), ("pending", "user")),
        ("lookalike", person("x@unknown.org"), ("pending", "user")),
        ("group", person("g@example.org", groups=["/cms", "/atlas"]), ("active", "user")),
        ("other-group", person("o@example.org", groups=["/atlas/x"]), ("pending", "user")),
    ],
)
def test_approval_rules_activate_accounts_at_once(
    service: Service, login: str, claims: dict[str, Any], expected: tuple[str, str]
) -> None:
    """They match the e-mail of the first administrator, a domain, or a claim of one issuer."""
    service.one.change(login, **claims)
    with service.browser() as browser:
        browser.vouched(login)
        browser.post("/sign-up", **FORM)
        assert browser.led_to == ("/requests" if expected[0] == "active" else "/pending")
        assert service.state(claims["email"].lower()) == expected
        if login == "other-group":  # who joins the group later need not wait for anybody
            service.one.change(login, groups=["/atlas"])
            browser.vouched(login)
            assert browser.led_to == "/requests"


@pytest.mark.parametrize("back", ["https://evil.example", "//evil.example", "/\\evil", "/\t/evil"])
def test_sign_in_redirects_to_this_service_only(service: Service, back: str) -> None:
    """The server ignores any other target in a link, in both ways to sign in."""
    command(service.server, "add", f"back-{hash(back)}@example.org")
    token = command(service.server, "token", f"back-{hash(back)}@example.org")
    service.one.change("back", **person(f"back-{hash(back)}@example.org"))
    with service.browser() as browser:
        browser.vouched("back", back=back)
        assert browser.led_to == "/requests"
        browser.post("/sign-in", token=token, back=back)
        assert browser.led_to == "/requests"


def test_invalid_callback_signs_nobody_in(service: Service) -> None:
    """The code is of another browser or used, the state is invented, or the issuer refuses."""
    service.one.change("eve", **person("eve@known.org"))
    with service.browser() as browser, service.browser() as other:
        begun = browser.get("/sign-in/one")
        with httpx.Client() as client:
            away = service.one.sign_in(client, begun.headers["Location"], "eve")
        back = away.headers["Location"]
        for place in (back, "/sign-in/one/callback", "/sign-in/one/callback?state=x&code=y"):
            assert other.get(place).status_code == 401
            assert "this browser has not started this sign-in" in other.says
        assert browser.get(back.replace("/one/", "/two/")).status_code == 401
        assert browser.get(re.sub("code=[^&]*", "code=made-up", back)).status_code == 401
        assert "the answer of Lab one could not be verified" in browser.says
        assert browser.get(back).headers["Location"] == "/sign-up"
        assert browser.get(back).status_code == 401
        state = re.search("state=([^&]*)", browser.get("/sign-in/one").headers["Location"])
        assert state
        query = f"state={state[1]}&error=access_denied&error_description=not+%3Cb%3Eyou"
        assert browser.get(f"/sign-in/one/callback?{query}").status_code == 401
        assert "Lab one did not let you in: not <b>you" in browser.says
        assert "<b>" not in browser.last.text


def test_session_ends_with_sign_out_its_token_or_the_account(
    service: Service,
) -> None:
    """It ends at once, in every browser."""
    email = "sess@known.org"
    service.one.change("sess", **person(email))

    def is_in(browser: Browser) -> bool:
        return browser.get("/requests").status_code == 200

    with service.browser() as first, service.browser() as second, service.browser() as third:
        first.vouched("sess")
        first.post("/sign-up", **FORM)
        second.vouched("sess")
        token = command(service.server, "token", email)
        assert third.post("/sign-in", token=token).status_code == 303
        assert is_in(first)
        assert is_in(second)
        assert is_in(third)
        kept = dict(second.client.cookies)
        second.post("/sign-out")
        assert not second.client.cookies
        second.client.cookies.update(kept)
        assert not is_in(second)
        second.client.cookies.clear()
        command(service.server, "token", email, "--revoke")
        assert not is_in(third)
        second.vouched("sess")
        assert is_in(second)
        first.post("/profile/sign-out")
        assert not is_in(first)
        assert not is_in(second)
        first.vouched("sess")
        command(service.server, "suspend", email)
        assert not is_in(first)
        assert "suspended" in first.says
        assert "Your account is suspended" in first.get("/pending").text
        first.vouched("sess")
        assert first.led_to == "/pending"
        command(service.server, "delete", email, "--yes")
        assert first.get("/requests").headers["Location"].startswith("/sign-in")


def test_tokens_are_made_shown_once_and_revoked_on_the_profile(service: Service) -> None:
    """Each has a name and a lifetime. The published client reads the downloaded file."""
    service.one.change("prof", **person("prof@known.org"))
    with service.browser() as browser:
        browser.vouched("prof")
        browser.post("/sign-up", **FORM)
        assert "You have none yet" in browser.get("/profile").text
        shown = browser.post("/profile/tokens", name="laptop", days="30", **{"as": "text"})
        (token,) = re.findall(r'id="token"[^>]*>(sxt_[\w-]+)<', shown.text)
        given = browser.post("/profile/tokens", name="batch", days="365", **{"as": "file"})
        assert 'filename="servicex.yaml"' in given.headers["Content-Disposition"]
        assert f"endpoint: {service.server.url}" in given.text
        (other,) = re.findall(r"token: (sxt_[\w-]+)", given.text)
        for one in (token, other):
            assert service.server.client.post("/token/refresh", headers=bearer(one)).is_success
            assert one not in browser.get("/profile").text
        assert browser.last.text.count("never") == 0  # both were used
        again = browser.post("/profile/tokens", name="laptop", days="30")
        assert (again.status_code, "has a token 'laptop' already" in browser.says) == (400, True)
        assert browser.post("/profile/tokens", name="", days="30").status_code == 400
        assert browser.post("/profile/tokens", name="x", days="9999").status_code == 400
        browser.post("/profile/tokens/revoke", name="laptop")
        assert browser.led_to == "/profile"
        refused = service.server.client.post("/token/refresh", headers=bearer(token))
        assert refused.status_code == 401
        changed = FORM | {"name": "Prof. P", "experiment": "DUNE"}
        assert browser.post("/profile", **changed).status_code == 303
        assert "Prof. P" in browser.get("/profile").text
        assert browser.post("/profile", **changed | {"name": ""}).status_code == 400


def test_stolen_token_cannot_create_another_token(service: Service) -> None:
    """With a provider, only a sign-in there creates tokens, so a revocation ends a theft."""
    email = "robbed@known.org"
    command(service.server, "add", email)
    token = command(service.server, "token", email)
    code = service.server.client.post("/device/code", data={"client_id": "x"}).json()["user_code"]
    service.one.change("robbed", **person(email))
    with service.browser() as thief, service.browser() as owner:
        thief.post("/sign-in", token=token)
        assert thief.get("/profile").status_code == 200
        assert thief.post("/profile/tokens", name="more", days="30").status_code == 403
        assert "sign in with Lab one or Lab two" in thief.says
        assert thief.post("/device", code=code, answer="yes").status_code == 403
        got = service.server.client.post("/token/refresh", headers=bearer(token)).json()
        service.one.change("thief", **person("thief@known.org"))
        thief.vouched("thief")
        thief.post("/sign-up", **FORM)
        form = {"name": "theirs", "days": "30"}
        both = thief.client.post("/profile/tokens", data=form, headers=bearer(got["access_token"]))
        assert both.status_code == 403
        assert "robbed" in both.text
        owner.vouched("robbed")
        assert owner.post("/device", code=code, answer="yes").status_code == 200
        assert owner.post("/profile/tokens", name="more", days="30").status_code == 200


def test_administrators_manage_accounts_and_operators_only_view(service: Service) -> None:
    """They approve, suspend, promote, and delete after a confirmation, but not themselves."""
    for email, role in (("adm@example.org", "administrator"), ("op@example.org", "operator")):
        command(service.server, "add", email, "--role", role)
        service.one.change(email, **person(email))
    service.one.change("new", **person("new@example.org"))
    with service.browser() as admin, service.browser() as operator, service.browser() as new:
        admin.vouched("adm@example.org")
        operator.vouched("op@example.org")
        new.vouched("new")
        new.post("/sign-up", **FORM)
        for one in (admin, operator):
            page = one.get("/users").text
            assert "new@example.org" in page
            assert FORM["institution"] in page
        assert "Approve" not in operator.last.text

        def number(email: str) -> int:
            rows = service.server.rows("select id from users where email = ?", email)
            return int(rows[0][0])

        target = f"/users/{number('new@example.org')}"
        assert operator.post(f"{target}/approve").status_code == 403
        assert new.post(f"{target}/approve").headers["Location"] == "/pending"
        assert admin.post(f"{target}/approve").status_code == 303
        assert new.get("/requests").status_code == 200
        assert new.get("/users").status_code == 404
        assert admin.post(f"{target}/role", role="operator").status_code == 303
        assert new.get("/users").status_code == 200
        assert admin.post(f"{target}/role", role="king").status_code == 400
        assert admin.post(f"{target}/suspend").status_code == 303
        assert new.get("/requests").status_code == 401
        assert admin.post(f"/users/{number('adm@example.org')}/suspend").status_code == 400
        assert "this is your own account" in admin.says
        assert admin.post("/users/99999/approve").status_code == 404
        assert admin.post(f"{target}/crown").status_code == 400
        assert "deleted permanently" in admin.post(f"{target}/delete").text
        assert admin.post(f"{target}/delete", sure="yes").status_code == 303
        assert "new@example.org" not in admin.get("/users").text


@pytest.mark.anyio
async def test_provider_that_is_down_is_reported_and_blocks_nobody_else(
    service: Service, tmp_path: Path
) -> None:
    """The service starts without it, and users can sign in by the other ways."""
    there = Issuer(name="other", metadata_url=service.one.metadata, client_id="x")
    url = "http://127.0.0.1:9/.well-known/openid-configuration"
    gone = Issuer(name="gone", metadata_url=url, client_id="x")
    settings = Settings(
        data_dir=tmp_path / "data", sign_in=True, accounts=AccountSettings(issuers=(gone, there))
    )
    async with client_of(settings) as client:
        answer = await client.get("/sign-in/gone", headers=HTML)
        assert answer.status_code == 503
        assert "gone does not answer as it should" in answer.text
        assert (await client.get("/sign-in/other", headers=HTML)).status_code == 303
        form = {"token": new_token(settings, "a@example.org")}
        assert (await client.post("/sign-in", data=form)).status_code == 303


def new_token(settings: Settings, email: str) -> str:
    """Return an API token of somebody new."""
    user = (email, "--data-dir", str(settings.data_dir))
    assert invoke("user", "add", *user)[0] == 0
    code, token = invoke("user", "token", *user)
    assert code == 0
    return token.strip()


@pytest.mark.anyio
async def test_cookies_are_bound_to_the_host_and_to_tls(
    tmp_path: Path,
) -> None:
    """No script reads them, and forms of other sites do not send them."""
    url = "https://servicex.example.org"
    settings = Settings(data_dir=tmp_path / "data", sign_in=True, public_url=url)
    async with client_of(settings) as client:
        form = {"token": new_token(settings, "tls@example.org")}
        answer = await client.post("/sign-in", data=form)
        assert re.fullmatch(
            r"__Host-servicex=[\w-]{43}; HttpOnly; Max-Age=604800; Path=/; SameSite=lax; Secure",
            answer.headers["Set-Cookie"],
        )
        client.cookies.clear()
        secret = answer.headers["Set-Cookie"].partition(";")[0]
        page = await client.get("/requests", headers={**HTML, "Cookie": secret})
        assert page.status_code == 200
        client.cookies.clear()
        plain = {**HTML, "Cookie": secret.removeprefix("__Host-")}
        assert (await client.get("/requests", headers=plain)).status_code == 303


def test_access_tokens_of_an_issuer_are_accepted_directly(service: Service) -> None:
    """The operator sets the audience. The server answers 401 with a hint to wrong tokens."""
    path = "/servicex/transformation"
    get = service.server.client.get
    service.one.change("wlcg", **person("wlcg@known.org"))
    service.two.change("wlcg", **person("wlcg@known.org"))
    good = service.one.access_token("wlcg")
    refused = get(path, headers=bearer(good))
    assert refused.status_code == 401
    assert "its user has no account on this service" in refused.json()["message"]
    with service.browser() as browser:
        browser.vouched("wlcg")
        browser.post("/sign-up", **FORM)
    assert get(path, headers=bearer(good)).status_code == 200
    wrong = {
        service.one.access_token("wlcg", audience="https://other.test"): "for another service",
        # the second provider has no audience, so its access tokens are not accepted
        service.two.access_token("wlcg"): "this service did not issue the access token",
        good[:-8] + "AAAAAAAA": "Lab one did not sign the token",
    }
    for token, words in wrong.items():
        answer = get(path, headers=bearer(token))
        assert (answer.status_code, words in answer.json()["message"]) == (401, True), answer.text
    command(service.server, "suspend", "wlcg@known.org")
    assert "suspended" in get(path, headers=bearer(good)).json()["message"]


def test_log_and_data_folder_contain_no_secrets(service: Service) -> None:
    """Neither contains the secrets of the operator, or those of a sign-in."""
    service.one.change("log", **person("log@known.org"))
    with service.browser() as browser:
        browser.vouched("log")
        browser.post("/sign-up", **FORM)
        secrets = [service.one.client_secret, *browser.client.cookies.values()]
    files = b"".join(
        path.read_bytes() for path in Path(service.server.data_dir).rglob("*") if path.is_file()
    )
    for secret in secrets:
        assert secret not in service.server.output
        assert secret.encode() not in files
