"""After many wrong tokens from one address, the server rate-limits this address only."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.test_accounts import People, command
from tests.support import Server

PATH = "/servicex/transformation"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server that knows one user, and proxies at 127.0.0.3 and 127.0.0.4.

    Addresses are counted: each test has its own.
    """
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
        "SERVICEX_SERVER_TRUSTED_PROXIES": '["127.0.0.3", "127.0.0.4", "10.1.0.0/16"]',
    }
    folder = tmp_path_factory.mktemp("limits") / "data"
    made = People(Server(folder, ["--workers", "1"], environment).start())
    try:
        made.add("owner")
        yield made
    finally:
        made.server.stop()


def client(people: People, address: str) -> httpx.Client:
    """Return a client that connects from an address of this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(transport=transport, base_url=people.server.url)


def exchange(client: httpx.Client, token: str, via: str = "") -> httpx.Response:
    """Ask for an access token, by proxies if there is one."""
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Forwarded-For": via} if via else {})
    return client.post("/token/refresh", headers=headers)


def look(client: httpx.Client, token: str, path: str = PATH) -> int:
    """Ask for something with an access token; return how that went."""
    return client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


def told(answer: httpx.Response, kind: str, address: str) -> None:
    """Look at an answer that refuses an attempt."""
    assert answer.status_code == 429
    seconds = int(answer.headers["Retry-After"])
    assert 1 <= seconds <= 60
    assert answer.json()["message"] == (
        f"at most 30 {kind} in a minute are allowed from one address, here {address} "
        f"(try again in {seconds} s)"
    )


def test_address_that_sends_wrong_tokens_is_rate_limited(people: People) -> None:
    """After thirty, the server answers 429 to a wrong token, and still accepts correct ones."""
    good = people.tokens["owner"]
    with client(people, "127.0.1.1") as guessing, client(people, "127.0.1.2") as other:
        for number in range(30):
            assert exchange(guessing, f"sxt_{number}").status_code == 401
        for wrong in ("sxt_30", f"sxt_{'x' * 43}", good[:-1], f"{good}x"):
            told(exchange(guessing, wrong), "wrong API tokens", "127.0.1.1")
        assert exchange(guessing, good).status_code == 200
        told(exchange(guessing, "sxt_31"), "wrong API tokens", "127.0.1.1")
        assert exchange(guessing, good).status_code == 200
        assert exchange(other, "sxt_0").status_code == 401
        assert exchange(other, good).status_code == 200
        for path in (PATH, "/"):
            assert look(guessing, people.access["owner"], path) == 200


def test_sign_in_form_counts_towards_the_rate_limit(people: People) -> None:
    """The server counts wrong tokens of the form and of programs together."""
    with client(people, "127.0.2.1") as guessing:
        for number in range(15):
            assert exchange(guessing, f"sxt_{number}").status_code == 401
            assert guessing.post("/sign-in", data={"token": "sxt_"}).status_code == 401
        form = {"token": "sxt_wrong"}
        told(guessing.post("/sign-in", data=form), "wrong API tokens", "127.0.2.1")
        shown = guessing.post("/sign-in", data=form, headers={"Accept": "text/html"})
        assert (shown.status_code, "try again in" in shown.text) == (429, True)
        good = {"token": people.tokens["owner"]}
        assert guessing.post("/sign-in", data=good).status_code == 303


def test_valid_tokens_are_never_rate_limited(people: People) -> None:
    """Forty jobs of a facility work beside a job with wrong tokens."""
    with client(people, "127.0.3.1") as jobs:
        for number in range(40):
            assert exchange(jobs, f"sxt_{number}").status_code == (401 if number < 30 else 429)
        for _ in range(40):
            answer = exchange(jobs, people.tokens["owner"])
            assert answer.status_code == 200
            assert look(jobs, answer.json()["access_token"]) == 200


def test_wrong_access_tokens_have_their_own_rate_limit(people: People) -> None:
    """Jobs whose access tokens have become invalid can all get new ones at once."""
    good = people.access["owner"]
    wrong = good[:-8] + "AAAAAAAA"
    with client(people, "127.0.4.1") as jobs:
        for _ in range(30):
            assert look(jobs, wrong) == 401
        answer = jobs.get(PATH, headers={"Authorization": f"Bearer {wrong}"})
        told(answer, "wrong access tokens", "127.0.4.1")
        assert look(jobs, good) == 200
        assert look(jobs, wrong, "/") == 200
        assert exchange(jobs, people.tokens["owner"]).status_code == 200


def test_token_of_a_suspended_account_is_not_counted_as_wrong(people: People) -> None:
    """The server knows this token. It does not count a call without a token either."""
    people.add("suspended")
    command(people.server, "suspend", people.email("suspended"))
    with client(people, "127.0.5.1") as jobs:
        for _ in range(35):
            assert exchange(jobs, people.tokens["suspended"]).status_code == 401
            assert look(jobs, people.access["suspended"]) == 401
            form = {"token": people.tokens["suspended"]}
            assert jobs.post("/sign-in", data=form).status_code == 401
            assert jobs.get(PATH).status_code == 401
            assert jobs.post("/token/refresh").status_code == 401
        assert exchange(jobs, people.tokens["owner"]).status_code == 200


def test_clients_behind_a_trusted_proxy_are_limited_separately(people: People) -> None:
    """The last address that is not a proxy counts. Addresses before it do not matter."""
    good = people.tokens["owner"]
    with client(people, "127.0.0.3") as proxy, client(people, "127.0.6.2") as other:
        for number in range(30):
            via = f"198.51.100.{number}, 203.0.113.9, 10.1.2.3"
            assert exchange(proxy, f"sxt_{number}", via).status_code == 401
        told(exchange(proxy, "sxt_", "203.0.113.9"), "wrong API tokens", "203.0.113.9")
        for spoofed in ("198.51.100.99, 203.0.113.9", "10.1.0.1, 203.0.113.9, 10.1.2.3"):
            assert exchange(proxy, "sxt_", spoofed).status_code == 429
            assert exchange(proxy, good, spoofed).status_code == 200
        for fine in ("203.0.113.10", "203.0.113.9, 198.51.100.1", ""):
            assert exchange(proxy, good, fine).status_code == 200
        # who is no proxy is where it is, whatever it says
        assert exchange(other, good, "203.0.113.9").status_code == 200
        for number in range(30):
            assert exchange(other, "sxt_", f"198.51.100.{number}").status_code == 401
        told(exchange(other, "sxt_", "198.51.100.99"), "wrong API tokens", "127.0.6.2")


def test_ipv6_network_has_one_rate_limit(people: People) -> None:
    """Each client in it has more addresses than the server could count."""
    with client(people, "127.0.0.4") as proxy:
        for number in range(30):
            via = f"2001:db8:1:2::{number:x}"
            assert exchange(proxy, "sxt_", via).status_code == 401
        answer = exchange(proxy, "sxt_", "2001:db8:1:2:ffff::1")
        told(answer, "wrong API tokens", "2001:db8:1:2::/64")
        assert exchange(proxy, "sxt_", "2001:db8:1:3::1").status_code == 401
