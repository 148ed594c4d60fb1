"""A walk in browsers: a user signs up, gets approval, makes a token, asks for data, signs out.

The test checks each page on the way with axe-core, on the width of phones, in light and dark.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import at_provider, look, opened, running
from tests.e2e.test_accounts import command
from tests.identity_provider import IdentityProvider
from tests.support import HALTS, Server, copies, let_go, sample

HALTING = "query.PythonFunction().with_uproot_function(__import__('halting').run_query)"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """Give a provider that vouches for an administrator and a user."""
    users = {
        login: {"email": f"{login}@lab.org", "email_verified": True, "name": name}
        for login, name in (("ada", "Ada Administrator"), ("jo", "Jo Müller"))
    }
    made = IdentityProvider(users=users).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of files that may be read."""
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def service(provider: IdentityProvider, folder: Path) -> Iterator[Server]:
    """Give a server for which the provider vouches."""
    issuer = {
        "name": "lab",
        "title": "The Lab",
        "metadata_url": provider.metadata,
        "client_id": provider.client_id,
        "client_secret": provider.client_secret,
    }
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps([issuer]),
        "SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS": '["ada@lab.org"]',
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps(
            [str(folder), str(sample("uproot-Zmumu.root").parent)]
        ),
        "SERVICEX_SERVER_LIMITS__REQUESTS_PER_USER_AT_ONCE": "20",
    }
    server = Server(folder / "data", ["--workers", "2"], environment).start()
    provider.redirect_to(f"{server.url}/sign-in/lab/callback")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give a real browser."""
    with running() as made:
        yield made


def signs_up(page: Page, login: str) -> None:
    """Go from any page that wants one to be signed in through the provider to the form."""
    page.goto("/requests")
    page.get_by_role("link", name="Sign in with The Lab").click()
    at_provider(page, login)
    page.wait_for_url("**/sign-up")


def fills(page: Page) -> None:
    """Fill in the form, and send it."""
    page.get_by_label("Institution").fill("Université de Genève")
    page.get_by_label("Experiment").select_option("ATLAS")
    page.get_by_label("What you need it for").fill("The Z peak, for a course")
    page.get_by_role("button", name="Sign up").click()


def client(folder: Path, program: str) -> "subprocess.Popen[str]":
    """Run a program with the published client, in the folder of its user."""
    command = [sys.executable, "-c", program]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def delivery(files: list[str], query: str, title: str) -> str:
    """Return a program that delivers columns of files."""
    return f"""
from servicex import Sample, ServiceXSpec, dataset, deliver, query
sample = Sample(Name={title!r}, Dataset=dataset.FileList({files!r}), Query={query})
found = deliver(ServiceXSpec(Sample=[sample]), progress_bar="none", ignore_local_cache=True)
print("DELIVERED", len(list(found[{title!r}])))
"""


def test_walk_from_sign_up_to_sign_out(service: Server, browser: Browser, folder: Path) -> None:
    """Sign-up, approval by an administrator, a token, a request, its errors, cancel, sign-out."""
    with opened(browser, service.url) as ada, opened(browser, service.url) as jo:
        jo.goto("/")
        look(jo, "walk-home")
        jo.goto("/sign-in")
        look(jo, "walk-sign-in")
        signs_up(jo, "jo")
        look(jo, "walk-sign-up")
        assert jo.get_by_label("Name").input_value() == "Jo Müller"
        fills(jo)
        jo.get_by_role("heading", name="Your account waits for approval").wait_for()
        look(jo, "walk-pending")

        signs_up(ada, "ada")
        fills(ada)
        ada.get_by_role("heading", name="My requests").wait_for()
        ada.get_by_role("link", name="Users").click()
        ada.wait_for_url("**/users")
        look(ada, "walk-users")
        ada.get_by_role("button", name="Approve jo@lab.org").click()
        ada.get_by_text("Nobody waits").wait_for()
        jo.get_by_role("heading", name="My requests").wait_for(timeout=20_000)  # by itself
        look(jo, "walk-requests-none")

        configured(jo, folder)
        delivered(jo, folder)
        failed(jo, folder)
        cancelled(jo, folder)

        jo.goto("/requests")
        look(jo, "walk-requests")
        ada.goto("/requests?of=all")
        ada.get_by_text("jo@lab.org").first.wait_for()
        ada.goto("/workers")
        look(ada, "walk-workers")
        jo.get_by_role("button", name="Sign out").click()
        jo.get_by_role("link", name="Sign in", exact=True).wait_for()
        jo.goto("/profile")
        jo.get_by_role("heading", name="Sign in").wait_for()


def configured(page: Page, folder: Path) -> None:
    """Make tokens on the profile: one shown, one in a file for the client."""
    page.get_by_role("link", name="jo@lab.org").click()
    page.wait_for_url("**/profile")
    look(page, "walk-profile")
    page.get_by_label("New token").fill("shown")
    page.get_by_role("button", name="Show the token").click()
    assert re.fullmatch(r"sxt_[\w-]{43}", page.locator("#token").inner_text().strip())
    look(page, "walk-token")
    page.get_by_role("link", name="Back to my profile").click()
    page.get_by_label("New token").fill("the client")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download servicex.yaml").click()
    assert download.value.suggested_filename == "servicex.yaml"
    download.value.save_as(folder / "servicex.yaml")
    page.goto("/profile")
    page.get_by_role("cell", name="the client", exact=True).wait_for()


def delivered(page: Page, folder: Path) -> None:
    """Ask with the published client, and see the page of the request go on to the end."""
    files = copies(folder / "files", 3)
    (folder / "halting.py").write_text(HALTS)
    program = client(folder, delivery(files, HALTING, "walk"))
    page.goto("/requests")
    page.get_by_role("link", name="walk").click(timeout=60_000)
    page.get_by_text("2 of 3 files done").wait_for(timeout=60_000)
    look(page, "walk-request-running")
    page.evaluate("window.sameDocument = true")
    let_go(folder / "files")
    page.get_by_text("3 of 3 files done").wait_for(timeout=30_000)
    assert page.evaluate("window.sameDocument") is True
    look(page, "walk-request")
    said, _ = program.communicate(timeout=60)
    assert "DELIVERED 3" in said, said
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("^Download")).first.click()
    assert Path(download.value.path()).read_bytes()[:4] == b"root"


def failed(page: Page, folder: Path) -> None:
    """Files that failed alike are one group, with what was meant."""
    good = str(sample("uproot-Zmumu.root"))
    files = [good, *(str(folder / "missing" / f"{n}.root") for n in range(3))]
    query = 'query.UprootRaw([{"treename": "events", "filter_name": ["E1"]}])'
    said, _ = client(folder, delivery(files, query, "in part")).communicate(timeout=90)
    assert "3" in said
    page.goto("/requests")
    page.get_by_role("link", name="in part").click()
    group = page.locator("summary", has_text="3 files")
    group.wait_for()
    group.click()
    look(page, "walk-request-failed")
    assert page.get_by_text(files[-1]).first.is_visible()


def cancelled(page: Page, folder: Path) -> None:
    """End a request from its page."""
    files = copies(folder / "more", 3)
    program = client(folder, delivery(files, HALTING, "too much"))
    page.goto("/requests")
    page.get_by_role("link", name="too much").click(timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    page.locator(".state", has_text="Canceled").first.wait_for()
    program.communicate(timeout=60)


def test_other_pages_are_accessible(
    service: Server, provider: IdentityProvider, browser: Browser
) -> None:
    """These are the pages for a waiting program, for an error, and for the user's own data."""
    email = "other@lab.org"
    command(service, "add", email, "--name", "Other", "--role", "operator")
    provider.change(email, email=email, email_verified=True)
    with opened(browser, service.url) as page:
        page.goto("/sign-in")
        page.get_by_role("link", name="Sign in with The Lab").click()
        at_provider(page, email)
        page.get_by_role("heading", name="My requests").wait_for()
        begun: dict[str, Any] = service.client.post(
            "/device/code", data={"client_id": "laptop"}
        ).json()
        page.goto("/device")
        look(page, "walk-device")
        page.get_by_label("The code that it shows").fill(begun["user_code"].lower())
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("wants to work as").wait_for()
        look(page, "walk-device-asked")
        page.get_by_role("button", name="Yes, sign it in").click()
        page.get_by_text("It is signed in").wait_for()
        look(page, "walk-device-end")
        for path in ("/no/such/page", "/profile"):
            page.evaluate("path => location.assign(path)", path)
            page.wait_for_url(f"**{path}")
            page.get_by_role("heading").first.wait_for()
            look(page, f"walk{path.replace('/', '-')}-end")


def test_long_names_and_addresses_fit_on_a_phone(service: Server, browser: Browser) -> None:
    """The menu, the profile and the list of users show long names and addresses."""
    email = f"{'maria-jose.nunez-de-la-pena' * 2}@lab.org"
    name = "María-José Núñez de la Peña y Fernández-Villaverde, مريم, 田中さくら"
    command(service, "add", email, "--name", name, "--role", "operator")
    token = command(service, "token", email, "--name", "w" * 100)
    with opened(browser, service.url, viewport={"width": 390, "height": 800}) as page:
        page.goto("/sign-in")
        page.get_by_label("API token").fill(token)
        page.get_by_role("button", name="Sign in", exact=True).click()
        page.get_by_role("heading", name="My requests").wait_for()
        for path, box in (("/profile", "Tokens"), ("/users", "Users"), ("/workers", "Workers")):
            page.goto(path)
            look(page, f"walk-long{path.replace('/', '-')}")
            page.set_viewport_size({"width": 390, "height": 800})
            table = page.get_by_role("region", name=box, exact=True)
            assert table.evaluate("e => e.scrollWidth <= e.clientWidth"), path
