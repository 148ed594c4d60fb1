"""A real browser for tests and pictures of the pages: what it complains of, how a page looks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.leaks import SECRETS
from tests.support import from_npm, needed

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"wide": (1280, 900), "phone": (390, 800)}
SHOTS = os.environ.get("SERVICEX_TEST_SCREENSHOTS")
"""A folder for pictures of every page, if somebody wants to look at them."""


@contextmanager
def running() -> Iterator[Browser]:
    """Give a browser."""
    program = needed("chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield made
        made.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open a page; whatever it complains about, like a breach of its policy, fails the test."""
    context = browser.new_context(base_url=url, **options)
    complaints: list[str] = []
    page = context.new_page()

    def heard(said: ConsoleMessage) -> None:
        # what others' pages complain of is theirs; and 404 is the page of that error
        if page.url.startswith(url) and "404 (Not Found)" not in said.text:
            complaints.append(said.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page
        assert complaints == [], complaints
    finally:
        SECRETS.walk([{"token": one.get("value")} for one in context.cookies()])
        context.close()


def look(page: Page, name: str) -> None:
    """Hold a page, as it is, against axe-core and the width of phones, light and dark."""
    page.wait_for_load_state("load")  # with its style sheet
    axe = (from_npm("axe-core", 4) / "axe.min.js").read_text(encoding="utf-8")
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            # colours do not depend on the size, nor the other way round
            if (size, scheme) in (("wide", "light"), ("phone", "dark")):
                assert faults(page, axe) == [], name
            if SHOTS:
                page.screenshot(path=f"{SHOTS}/{name}-{size}-{scheme}.png", full_page=True)


def faults(page: Page, axe: str) -> list[tuple[str, list[str]]]:
    """Return the serious faults that axe-core finds, each with some of its places."""
    page.evaluate(axe)
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in page.evaluate("axe.run().then(r => r.violations)")
        if one["impact"] in ("serious", "critical")
    ]


def at_provider(page: Page, login: str) -> None:
    """Go through the forms of a `tests.identity_provider.IdentityProvider`, and come back."""
    page.locator("input[name=login]").fill(login)
    page.locator("input[name=password]").fill("any")
    page.locator("button[type=submit]").click()
    page.locator("button[type=submit]", has_text="Continue").click()
