"""Every answer has headers against caching, content sniffing and execution as a page."""

import re
from pathlib import Path

import httpx
import pytest

from servicex_server.app import App
from servicex_server.settings.service import Settings
from servicex_server.web.application import web_app
from tests.support import Server, routes

DEFAULTS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture(scope="module")
def ended(server: Server) -> str:
    """Give a request that has a result."""
    return str(server.run()["request_id"])


def check(answer: httpx.Response) -> None:
    """Assert that an answer has the headers; pages and style sheets have values of their own."""
    found = {name: answer.headers.get(name) for name in DEFAULTS}
    kind = answer.headers.get("content-type", "").partition(";")[0]
    where = f"{answer.request.method} {answer.request.url} {answer.status_code} {kind}"
    if kind == "text/html":
        assert found["content-security-policy"].startswith("default-src 'none'; "), where
        found["content-security-policy"] = DEFAULTS["content-security-policy"]
    if kind in ("text/css", "text/javascript"):
        assert found["cache-control"] == "no-cache", where
        found["cache-control"] = "no-store"
    assert found == DEFAULTS, where
    assert "set-cookie" not in answer.headers or kind != "application/json", where


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_answers_of_every_route_have_the_headers(server: Server, ended: str, accept: str) -> None:
    """The test calls each route with a known and an unknown id, and the DELETE routes last."""
    known = sorted(routes(), key=lambda route: route.startswith("DELETE"))
    assert len(known) > 40
    for route in known:
        method, _, path = route.partition(" ")
        for value in (ended, "none"):
            filled = re.sub(r"\{[^}]*\}", value, path)
            check(server.client.request(method, filled, headers={"Accept": accept}))
    for path in ("/no/such/page", "/static/style.css", "/openapi.json", "/metrics", "/readyz"):
        check(server.get(path, headers={"Accept": accept}))


def test_refusals_before_any_route_have_the_headers(server: Server) -> None:
    check(server.get("/servicex", headers={"Host": "evil.example.org"}))
    check(server.client.post("/requests/x/cancel", headers={"Sec-Fetch-Site": "cross-site"}))
    check(server.client.request("PROPFIND", "/servicex"))


@pytest.mark.anyio
async def test_unexpected_error_has_the_headers(tmp_path: Path) -> None:
    """The server makes this answer outside of all other middleware."""
    web = web_app(App(Settings(data_dir=tmp_path)))

    @web.get("/servicex/broken")
    def broken() -> None:
        raise ZeroDivisionError

    transport = httpx.ASGITransport(web, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/servicex/broken")
    assert answer.status_code == 500
    check(answer)


def test_results_and_refused_buckets_have_the_headers(server: Server) -> None:
    (result,) = server.results(server.run()["request_id"])
    check(httpx.get(f"{server.url}/{result['s3-object-name']}"))
    check(httpx.get(f"{server.url}/some-bucket/some-object"))
