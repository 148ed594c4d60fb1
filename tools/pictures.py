"""Write the pictures of all pages in docs/images/pages: of a real service, in a browser.

Each picture has a page on a desktop, and on a phone beside it; there is one of a light and one of a
dark system.
"""

import io
import re
import socket
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, Route

from tests.browser import at_provider, opened, running
from tests.support import Server
from tools.pictured import USERS, at_work, service

IMAGES = Path(__file__).parents[1] / "docs" / "images" / "pages"

DESKTOP, PHONE = 1280, 390
"""Widths."""

HEIGHT = 1300
"""Of which no picture shows more."""

GAP = 24
COLOURS = 64
"""A picture with all of them is larger, and looks the same."""

BETWEEN = (128, 128, 128)


def take(page: Page, name: str) -> None:
    """Write the two pictures of a page as it is."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        height = min(HEIGHT, max(needs(page, DESKTOP), needs(page, PHONE)))
        both = Image.new("RGB", (DESKTOP + GAP + PHONE, height), BETWEEN)
        both.paste(shot(page, DESKTOP, height), (0, 0))
        both.paste(shot(page, PHONE, height), (DESKTOP + GAP, 0))
        few = both.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(IMAGES / f"{name}-{scheme}.png", optimize=True)


def needs(page: Page, width: int) -> int:
    """Return the height that a page has on a screen of a width."""
    page.set_viewport_size({"width": width, "height": 400})
    height: int = page.evaluate("document.documentElement.scrollHeight")
    return height


def shot(page: Page, width: int, height: int) -> Image.Image:
    """Return a picture of the top of a page."""
    page.set_viewport_size({"width": width, "height": height})
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def without_the_host(route: Route) -> None:
    """Answer as the service does, but without the name of the machine that this runs on."""
    answer = route.fetch()
    text = answer.text().replace(f">{socket.gethostname()}/", ">node/")
    route.fulfill(response=answer, body=text)


def arrives(page: Page) -> None:
    """Look in, and sign up."""
    page.goto("/")
    take(page, "home")
    page.goto("/sign-in")
    take(page, "sign-in")
    signs_up(page, "jo@lab.org", pictured=True)


def signs_up(page: Page, email: str, *, pictured: bool = False) -> None:
    """Come back from the issuer, and say who one is."""
    page.goto("/sign-in")
    page.get_by_role("link", name="Sign in with The Lab").click()
    at_provider(page, email)
    page.wait_for_url("**/sign-up")
    institution = "Home University" if email.endswith(".edu") else "The Lab"
    page.get_by_label("Institution").fill(institution)
    page.get_by_label("Experiment").select_option("ATLAS")
    page.get_by_label("What you need it for").fill("The Z peak in all of Run 3, for my thesis")
    if pictured:
        take(page, "sign-up")
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_url(re.compile("/(pending|requests)$"))
    if pictured:
        take(page, "pending")


def is_let_in(page: Page, email: str) -> None:
    """Approve somebody, as an administrator."""
    page.goto("/users")
    page.get_by_role("button", name=f"Approve {email}").click()
    page.wait_for_url("**/users")


def requests(page: Page, ids: dict[str, str]) -> None:
    """Look at requests and at their datasets."""
    until_there(page, f"/requests/{ids['running']}", "26 of 40 files done")
    take(page, "request-running")
    page.goto("/requests")
    take(page, "requests")
    page.goto(f"/requests/{ids['complete']}")
    take(page, "request")
    page.goto(f"/requests/{ids['failed']}")
    page.locator("summary").first.click()
    take(page, "request-failed")
    page.get_by_role("button", name="Delete").click()
    take(page, "delete")
    page.goto("/datasets")
    take(page, "datasets")
    page.goto(f"/datasets/{ids['dataset']}")
    take(page, "dataset")


def until_there(page: Page, path: str, text: str) -> None:
    """Go to a page, and wait for a text on it."""
    page.goto(path)
    page.get_by_text(text).first.wait_for()


def oneself(page: Page, server: Server) -> None:
    """Look at one's profile, make a token, and sign a program in."""
    page.goto("/profile")
    take(page, "profile")
    page.get_by_label("New token").fill("laptop")
    page.get_by_role("button", name="Show the token").click()
    page.locator("#token").wait_for()
    take(page, "token")
    begun = server.client.post("/device/code", data={"client_id": "laptop of Jo"}).json()
    page.goto("/device")
    page.get_by_label("The code that it shows").fill(begun["user_code"])
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("wants to work as").wait_for()
    take(page, "device")


def oversees(page: Page) -> None:
    """Look at what there is for operators and administrators."""
    page.route("**/workers", without_the_host)
    for name in ("workers", "sites", "users"):
        page.goto(f"/{name}")
        take(page, name)
    page.get_by_role("button", name=re.compile("^Delete kim")).click()
    take(page, "delete-user")


def anybody(page: Page) -> None:
    """Look at the API, and at what is not there."""
    page.goto("/docs")
    take(page, "api")
    page.goto("/requests/no-such-request")
    take(page, "error")


def main() -> None:
    """Have users sign up, ask and look, and take a picture of each page that they come to."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for old in IMAGES.glob("*.png"):
        old.unlink()
    with ExitStack() as stack:
        server, _ = stack.enter_context(service())
        browser = stack.enter_context(running())
        ada, jo, *others = (stack.enter_context(opened(browser, server.url)) for _ in USERS)
        arrives(jo)
        signs_up(ada, "ada@lab.org")
        for page, email in zip(others, list(USERS)[2:], strict=True):
            signs_up(page, email)
        is_let_in(ada, "jo@lab.org")
        is_let_in(ada, "kim.seo-yeon@university.edu")
        jo.goto("/requests")
        take(jo, "requests-none")
        ids = stack.enter_context(at_work(server))
        requests(jo, ids)
        oneself(jo, server)
        oversees(ada)
        anybody(jo)


if __name__ == "__main__":
    main()
