"""The server does not read bodies of strangers, and bounds its memory for bodies of users."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Self

import httpx
import psutil
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts

from servicex_server.app import App
from servicex_server.settings.service import Settings
from servicex_server.web.application import web_app
from servicex_server.web.request_bodies import (
    LARGE_AT_ONCE,
    MAX_BODY,
    JsonBody,
    JsonRoute,
    max_submit,
)
from tests.e2e.test_accounts import People
from tests.support import Server, routes

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}
SUBMIT = "/servicex/transformation"
OPEN_FORMS = {"POST /sign-in", "POST /sign-up", "POST /device/code", "POST /device/token"}
"""Routes for those who are not known yet. Their forms are read up to `MAX_BODY`."""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server with sign-in that knows one user."""
    folder = tmp_path_factory.mktemp("strangers") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
    }
    server = Server(folder, ["--workers", "1"], environment).start()
    made = People(server)
    made.add("owner")
    yield made
    server.stop()


def status_of(server: Server, head: str, body: bytes = b"") -> tuple[int, float]:
    """Send a head and the beginning of a body; return the status, and how long it took."""
    host, port = server.url.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), 10) as opened:
        opened.sendall(f"{head}Host: {host}\r\n\r\n".encode() + body)
        with opened.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
    return status, time.monotonic() - began


@pytest.mark.parametrize("route", sorted(routes()))
def test_stranger_gets_an_answer_before_the_body_arrives(people: People, route: str) -> None:
    """Every route answers early, whatever the declared length."""
    method, path = route.split()
    address = re.sub(r"\{[^}]*\}", "1", path)
    length = MAX_BODY + 1 if route in OPEN_FORMS else 20 * MIB
    head = f"{method} {address} HTTP/1.1\r\nContent-Type: application/json\r\n"
    status, seconds = status_of(people.server, f"{head}Content-Length: {length}\r\n", b"{")
    assert seconds < 5
    chunked = b"5\r\n[1,2,\r\n"
    if route in OPEN_FORMS:
        assert status in (401, 413)
        return
    again, seconds = status_of(people.server, f"{head}Transfer-Encoding: chunked\r\n", chunked)
    assert seconds < 5
    assert again == status
    if method == "POST":
        assert status in (303, 401, 404)


def test_a_route_with_a_body_authenticates_by_construction() -> None:
    """Every route with a body is a `JsonRoute`, which rejects a route without authentication."""
    found = [one.route for one in iter_route_contexts(web_app(App(Settings())).routes)]
    taking = [one for one in found if isinstance(one, APIRoute) and one.body_field is not None]
    assert len(taking) == 2
    assert all(isinstance(one, JsonRoute) for one in taking)
    router = APIRouter(route_class=JsonRoute)

    async def unguarded(body: JsonBody) -> None:
        del body

    async def unbounded(body: dict[str, str]) -> None:
        del body

    with pytest.raises(TypeError, match="has to depend on CurrentPrincipal"):
        router.add_api_route("/x", unguarded, methods=["POST"])
    with pytest.raises(TypeError, match="has to be a JsonBody"):
        router.add_api_route("/x", unbounded, methods=["POST"])


LIMIT = max_submit(Settings())
HOSTILE = {
    "nested": b"[" * (LIMIT - 1),
    "empty objects": b'{"file-list":[' + b"{}," * (LIMIT // 3 - 10) + b"1]}",
    "numbers": b'{"file-list":[' + b"1.5," * (LIMIT // 4 - 10) + b"1]}",
    "numbers that fit": b'{"file-list":[' + b"1.5," * 1_000_000 + b"1]}",
    "other numbers": b'{"x":[' + b"1.5," * 1_000_000 + b"1]}",
    "texts": b'{"file-list":[' + b'"",' * (LIMIT // 3 - 10) + b'""]}',
    "one number": b'{"title":' + b"1" * (LIMIT - 20) + b"}",
    "one text": b'{"title":"' + b"x" * (LIMIT - 20) + b'"}',
    "wide characters": '{"title":"😀'.encode() + b"x" * (LIMIT - 30) + b'"}',
    "no JSON type": b'{"title":"' + b"x" * (LIMIT - 20) + b'"}',
}


class Memory(threading.Thread):
    """A thread that records the peak memory of a process until it is stopped."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        assert server.process is not None
        self._process = psutil.Process(server.process.pid)
        self._done = threading.Event()
        self.before = self.most = self._process.memory_info().rss

    def run(self) -> None:
        """Look every few milliseconds."""
        while not self._done.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


@pytest.mark.parametrize(
    ("kind", "signing_in"), [*((kind, True) for kind in HOSTILE), ("empty objects", False)]
)
def test_memory_for_hostile_json_is_bounded(
    people: People, server: Server, kind: str, *, signing_in: bool
) -> None:
    """The server rejects it with a sentence, and answers others meanwhile."""
    chosen = people.server if signing_in else server
    headers = JSON | {"Content-Length": str(len(HOSTILE[kind]))}
    if signing_in:
        headers["Authorization"] = f"Bearer {people.access['owner']}"
    if kind == "no JSON type":
        headers["Content-Type"] = "text/plain"
    with Memory(chosen) as memory:
        answers: list[httpx.Response] = []

        def send() -> None:
            # as an iterator it is not read again, value by value, by who looks for secrets in it
            body = iter([HOSTILE[kind]])
            answers.append(chosen.client.post(SUBMIT, content=body, headers=headers))

        sending = threading.Thread(target=send)
        sending.start()
        while sending.is_alive():
            assert chosen.get("/healthz").status_code == 200
            sending.join(0.05)
    assert answers[0].status_code in (400, 413), answers[0].text
    assert len(answers[0].json()["message"]) < 1000
    assert memory.most - memory.before < 8 * LIMIT


def test_unfinished_large_bodies_of_a_user_do_not_add_up(people: People) -> None:
    """A user has one place for large bodies, so the memory does not hold a second one."""
    host, port = people.server.url.removeprefix("http://").split(":")
    head = (
        f"POST {SUBMIT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {people.access['owner']}\r\nContent-Length: {LIMIT}\r\n\r\n"
    ).encode()
    with Memory(people.server) as memory:
        opened = []
        for _ in range(2 * LARGE_AT_ONCE):
            one = socket.create_connection((host, int(port)), 10)
            one.sendall(head)
            one.setblocking(False)
            opened.append(one)
        piece = b"[" * MIB
        for _ in range(40):
            for one in opened:
                try:
                    one.send(piece)
                except (BlockingIOError, ConnectionError):
                    continue
            assert people.server.get("/healthz").status_code == 200
        for one in opened:
            one.close()
    assert memory.most - memory.before < 4 * LIMIT
    headers = {"Authorization": f"Bearer {people.access['owner']}"}
    small = people.server.client.post(SUBMIT, json={}, headers=headers)
    assert small.status_code == 400
    files = [f"root://host.example.org:1094//eos/experiment/data/{n:090}.root" for n in range(9000)]
    body = {"file-list": files, "title": 5}
    large = people.server.client.post(SUBMIT, json=body, headers=headers)
    assert (large.status_code, "title" in large.text) == (400, True)
    assert json.loads(large.text)
    assert "Traceback" not in people.server.output
