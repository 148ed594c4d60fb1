"""The pages in a browser, and the HTML without a browser."""

import base64
import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import look, opened, running
from tests.support import HALTS, Server, copies, let_go, routes, sample

HTML = {"Accept": "text/html,application/xhtml+xml"}

PAGES = {
    "/": "Name a dataset and a query",
    "/requests": "My requests",
    "/requests/{request_id}": "What was asked",
    "/datasets": "Datasets",
    "/datasets/{dataset_id}": "Where they are",
    "/sites": "Bad replicas",
    "/workers": "Queue by user",
    "/docs": "POST /servicex/transformation",
}
"""Every page, and what it says."""

NO_PAGES = {
    "/open",
    "/static/{name}",
    "/requests/{request_id}/results/{name}",
    "/sites/bad-replicas.csv",
}
"""What pages load, or lead to."""

WHERE_USERS_SIGN_IN = ("/sign-", "/pending", "/profile", "/device", "/users")
"""Pages that are there only where they do; see test_sign_in_browser.py."""


@pytest.fixture(scope="module")
def ended(server: Server) -> str:
    """Give a request of which two files work, and two fail alike."""
    good, bad = str(sample("uproot-Zmumu.root")), str(sample("uproot-issue21.root"))
    files = [good, "/no/such/1.root", "/no/such/2.root", bad]
    return str(server.run(title="Z <b>peak</b> & µ", file_list=files)["request_id"])


def filled(server: Server, path: str, request_id: str) -> str:
    """Return the address of a page of something that there is."""
    dataset = server.get(f"/servicex/transformation/{request_id}").json()["did_id"]
    return path.replace("{request_id}", request_id).replace("{dataset_id}", str(dataset))


def test_every_page_is_in_the_table() -> None:
    """A new page without an entry fails this test."""
    shown = {
        route.split()[1] for route, in_api in routes().items() if not in_api and "GET" in route
    }
    others = {path for path in shown if path.startswith(WHERE_USERS_SIGN_IN)}
    assert shown - others - NO_PAGES == set(PAGES)
    assert others


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_readable_without_a_script_and_safe(
    server: Server, ended: str, path: str
) -> None:
    """Each page has its text, escapes text of users, and forbids foreign code."""
    address = filled(server, path, ended)
    answer = server.get(address, headers=HTML)
    assert answer.status_code == 200, answer.text
    assert PAGES[path] in answer.text
    assert "<b>" not in answer.text
    assert "style=" not in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"


def test_a_request_shows_its_query_its_errors_and_its_results(server: Server, ended: str) -> None:
    """The page formats the query, groups files with the same error, and links the results."""
    text = server.get(f"/requests/{ended}", headers=HTML).text
    assert "&#34;treename&#34;: &#34;events&#34;" in text
    assert "<strong>2 files</strong>: (the file) does not exist" in text
    assert "<strong>1 file</strong>: there is no tree events" in text
    for error in server.errors(ended):
        assert error["file"] in text
    assert "Z &lt;b&gt;peak&lt;/b&gt; &amp; µ" in text
    (name,) = [one["s3-object-name"] for one in server.results(ended) if one["s3-object-name"]]
    answer = server.get(f"/requests/{ended}/results/{name}", follow_redirects=True)
    assert answer.content[:4] == b"PAR1"
    assert server.get(f"/requests/{ended}/results/no").status_code == 404
    assert server.get(f"/requests/{ended}?state=failed", headers=HTML).status_code == 200


def shown(server: Server, path: str, name: str) -> str:
    """Return a text that a page has to be copied."""
    text = server.get(path, headers=HTML).text
    (found,) = re.findall(rf'<pre[^>]*id="{name}"[^>]*>(.*?)</pre>', text, re.DOTALL)
    return html.unescape(found)


def ran(folder: Path, program: str) -> None:
    """Run what somebody has copied, in a folder of theirs."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_code_on_the_pages_runs(server: Server, ended: str, tmp_path: Path) -> None:
    """The start page has an example, and the page of a request has code that downloads results."""
    (tmp_path / "servicex.yaml").write_text(shown(server, "/", "configuration"))
    program = shown(server, "/", "example")
    program = program.replace("root://host//store/run1.root", str(sample("uproot-Zmumu.root")))
    ran(tmp_path, program.replace("Muon_*", "E1") + "\nassert len(list(files)) == 1")
    folder = tmp_path / "fetched"
    folder.mkdir()
    ran(folder, shown(server, f"/requests/{ended}", "fetch"))
    results = server.results(ended)
    names = {one["s3-object-name"] for one in results if one["s3-object-name"]}
    assert names
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {
        one["s3-object-name"]: one["total-bytes"] for one in results if one["s3-object-name"]
    }


def test_the_address_that_the_client_prints_leads_to_the_page(server: Server, ended: str) -> None:
    """The server redirects people to the page of the request. Programs get the text as before."""
    for path in (f"/transformation-request/{ended}", f"/transformation-request//{ended}/results"):
        answer = server.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/requests/{ended}")
        assert server.get(path).text.startswith("Request ")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/no/such/page", 404), ("/requests/unknown", 404), ("/requests?start=-1", 400)],
)
def test_errors_are_pages_for_people_and_json_for_programs(
    server: Server, path: str, status: int
) -> None:
    """A browser gets a page with the headers of all pages. Every other client gets one sentence."""
    answer = server.get(path, headers=HTML)
    assert answer.status_code == status
    assert answer.text.startswith("<!doctype html>")
    assert "Content-Security-Policy" in answer.headers
    answer = server.get(path)
    assert answer.status_code == status
    assert list(answer.json()) == ["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_form_of_another_site_is_rejected(
    server: Server, ended: str, headers: dict[str, str]
) -> None:
    """The server rejects it on pages and on the API, for any purpose."""
    for path in (f"/requests/{ended}/delete", "/servicex/transformation"):
        answer = server.client.post(path, headers=headers, data={"sure": "yes"})
        assert answer.status_code == 403
        assert "another site" in answer.json()["message"]
    assert server.get(f"/requests/{ended}").status_code == 200


def test_requests_are_resubmitted_found_and_deleted(server: Server, ended: str) -> None:
    """The user resubmits a request, finds it by its title, and deletes it after a confirmation."""
    own = {"Origin": server.url}
    first = str(server.run(title="once more")["request_id"])
    answer = server.client.post(f"/requests/{first}/resubmit", headers=own)
    assert answer.status_code == 303, answer.text
    again = answer.headers["Location"].rsplit("/", 1)[-1]
    assert server.wait(again)["status"] == "Complete"
    text = server.get("/requests?q=ONCE&state=complete", headers=HTML).text
    assert again in text
    assert ended not in text
    assert again not in server.get("/requests?state=canceled", headers=HTML).text
    assert "no such request" in server.get("/requests?q=100%25", headers=HTML).text
    asked = server.client.post(f"/requests/{again}/delete", headers=own)
    assert "deleted permanently" in asked.text
    gone = server.client.post(f"/requests/{again}/delete", headers=own, data={"sure": "yes"})
    assert gone.headers["Location"] == "/requests"
    assert server.get(f"/requests/{again}", headers=HTML).status_code == 404


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give a real browser."""
    with running() as made:
        yield made


def halting(server: Server, folder: Path, title: str) -> str:
    """Submit a request that stands until `let_go` is called."""
    selection = base64.b64encode(HALTS.encode()).decode()
    files = copies(folder, 3)
    answer = server.submit(codegen="python", selection=selection, file_list=files, title=title)
    return str(answer.json()["request_id"])


def test_request_page_updates_itself_until_the_request_ends(
    server: Server, browser: Browser, tmp_path: Path
) -> None:
    """The page shows the end of the request without a reload, and then stops polling."""
    request_id = halting(server, tmp_path / "files", "live")
    with opened(browser, server.url) as page:
        page.goto(f"/requests/{request_id}")
        page.evaluate("window.sameDocument = true")
        page.get_by_text("2 of 3 files done").wait_for(timeout=120_000)  # others are served first
        assert "def run_query" in page.locator("#query").inner_text()
        let_go(tmp_path / "files")
        page.get_by_text("3 of 3 files done").wait_for(timeout=60_000)
        page.locator("#progress:not([data-every])").wait_for()
        assert page.get_by_role("link", name="Download").count() == 3
        assert page.evaluate("window.sameDocument") is True


def test_a_request_is_cancelled_and_found_in_the_browser(
    server: Server, browser: Browser, tmp_path: Path
) -> None:
    """The button ends a request. The filter and the search find it."""
    request_id = halting(server, tmp_path / "files", "to be stopped")
    with opened(browser, server.url) as page:
        page.goto(f"/requests/{request_id}")
        page.get_by_role("button", name="Cancel").click()
        page.locator(".state", has_text="Canceled").first.wait_for()
        page.goto("/requests")
        page.get_by_label("State").select_option("canceled")
        page.get_by_role("searchbox").fill("stopped")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("link", name="to be stopped").wait_for()
        assert page.locator("tbody tr").count() == 1


def hidden_at_the_side(page: Page) -> list[str]:
    """Return the tables of a page of which a phone does not show all columns at once."""
    page.set_viewport_size({"width": 390, "height": 800})
    found: list[str] = page.locator(".box:not(.plots)").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
    )
    return found


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_accessible_and_fits_the_screen(
    server: Server, ended: str, browser: Browser, path: str
) -> None:
    """axe-core finds no serious fault, and nothing is wider than the screen, in light and dark."""
    with opened(browser, server.url) as page:
        page.goto(filled(server, path, ended))
        look(page, path.strip("/").replace("/{", "-").replace("}", "") or "home")
        assert hidden_at_the_side(page) == []


LONG = "x" * 10_240
RIGHT_TO_LEFT = "كتلة الميونين (Z → µµ) של כל הריצות"
DATASET = "mc23." + "PhPy8EG_AZNLO_Zmumu_" * 6 + ".deriv"


@pytest.fixture(scope="module")
def strange(server: Server) -> Iterator[dict[str, str]]:
    """Give requests by what is strange about them."""
    wanted: dict[str, dict[str, object]] = {
        "long": {"title": LONG},
        "right to left": {"title": RIGHT_TO_LEFT},
        "dataset": {"file_list": None, "did": f"xrootd://root://127.0.0.1:1//{DATASET}/*.root"},
    }
    ids = {name: server.submit(**one).json()["request_id"] for name, one in wanted.items()}
    yield ids
    for one in ids.values():
        server.client.delete(f"/servicex/transformation/{one}")


def test_lists_show_odd_texts_of_users(
    server: Server, browser: Browser, strange: dict[str, str]
) -> None:
    """One page of requests and one page of datasets show all odd texts."""
    with opened(browser, server.url) as page:
        page.goto("/requests")
        links = page.locator("tbody a").evaluate_all("all => all.map(e => e.pathname)")
        assert {f"/requests/{one}" for one in strange.values()} <= set(links)
        for path in ("/requests", "/datasets"):
            page.goto(path)
            look(page, f"strange-{path.strip('/')}")
            assert hidden_at_the_side(page) == []


@pytest.mark.parametrize("name", ["long", "right to left", "dataset"])
def test_page_shows_odd_texts_of_users(
    server: Server, browser: Browser, strange: dict[str, str], name: str
) -> None:
    """The page cuts long titles and wraps long names. No text changes the direction of others."""
    with opened(browser, server.url) as page:
        for path in ("/requests/{request_id}", "/datasets/{dataset_id}"):
            page.goto(filled(server, path, strange[name]))
            look(page, f"{name}-{path.strip('/')[:8]}".replace(" ", "-"))
            assert hidden_at_the_side(page) == []
        page.goto(f"/requests/{strange[name]}")
        title = page.locator("h1 bdi").inner_text()
        expected = {"long": LONG[:499] + "…", "right to left": RIGHT_TO_LEFT, "dataset": "a test"}
        assert title == expected[name]
        page.get_by_role("button", name="Delete").click()
        page.wait_for_url("**/delete")
        look(page, f"{name}-delete".replace(" ", "-"))


def test_page_can_be_used_without_a_mouse(server: Server, ended: str, browser: Browser) -> None:
    """The first Tab key leads past the menu to the content. The focus is visible."""
    with opened(browser, server.url) as page:
        page.goto(f"/requests/{ended}")
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="To the content")
        assert skip.evaluate("e => e === document.activeElement && e.offsetTop >= 0")
        assert skip.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
