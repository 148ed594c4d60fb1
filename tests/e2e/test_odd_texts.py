"""Texts that no file, database or page can store give no 500 on any route."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uproot

from tests.e2e.test_accounts import People
from tests.property.hostile_texts import NOT_LINEAR, PATTERNS
from tests.support import Server, routes, sample

ZMUMU = sample("uproot-Zmumu.root")
ODD = (r"\ud800", r"a\udfff", r"\udc80\ud800", r"\u0000", r"\u0007\u001b[31m", r"\ufeff\uffff")
"""Escapes of JSON: lone surrogates, NUL, control characters, no characters."""

ODD_BYTES = (
    b"%00",
    b"%ff%fe",
    b"%ed%a0%80",
    b"%c0%80",
    b"%F4%90%80%80",
    b"%0d%0aX-Odd:%201",
    b"%",
    b"%zz",
    b"%d9%a7%d9%a7",
    b"9" * 5_000,
    b"-1",
    b"1e400",
    b"NaN",
    b"%F0%9F%A6%9E",
    b"a" * 20_000,
)
"""Of URLs and forms: bytes that are no UTF-8, and numbers that fit nowhere."""

QUERIES = (
    "submitted_by did-finder show-deleted later_than details status page search owner state "
    "title code error next name user view sort before after limit user_code"
).split()
FIELDS = (
    "name title token email experiment institute country about role sure user_code next code "
    "client_id device_code grant_type scope days expires request_id replica url confirm"
).split()
HEADERS = (
    "Accept-Language Forwarded If-Modified-Since If-None-Match Range Referer User-Agent X-Amz-Date"
).split()
"""Which nothing refuses: they are odd all at once."""

DECISIVE = (
    "Accept Authorization Content-Type Cookie Host Origin X-Forwarded-For X-Forwarded-Proto"
).split()
"""By which a request is refused, or goes another way: each is odd by itself."""

ODD_HEADERS = (b"\xff\xfe", b"\xed\xa0\x80", b"=;=,", b"9" * 5_000, b"Bearer \xff")
NUMBERS = ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 4_000, "9" * 5_000, "1e-400")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server on which users sign in, and an administrator."""
    folder = tmp_path_factory.mktemp("odd") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps([str(ZMUMU.parent)]),
    }
    made = People(Server(folder, ["--workers", "1"], environment).start())
    try:
        made.add("administrator", "administrator")
        yield made
    finally:
        made.server.stop()


def body(**raw: str) -> bytes:
    """Return the body of a submission; the values of the fields are given as JSON."""
    fields = {
        "title": '"odd"',
        "file-list": json.dumps([str(ZMUMU)]),
        "selection": json.dumps('[{"treename": "events", "filter_name": "E1"}]'),
        "codegen": '"uproot-raw"',
        "result-destination": '"object-store"',
        "result-format": '"parquet"',
    }
    fields |= {name.replace("_", "-"): value for name, value in raw.items()}
    return ("{" + ",".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


def submitted(server: Server, **raw: str) -> httpx.Response:
    """Submit; the values of the fields are given as JSON."""
    headers = {"Content-Type": "application/json"}
    return server.client.post(
        "/servicex/transformation", content=body(**raw), headers=headers, timeout=60
    )


def said(answer: httpx.Response) -> str:
    """Return the sentence of a refusal, which is a 4xx."""
    assert 400 <= answer.status_code < 500, answer.text[:500]
    return str(answer.json()["message"])


@pytest.mark.parametrize("odd", ODD[:4])
@pytest.mark.parametrize(
    "field", ["title", "did", "selection", "codegen", "result-format", "result-destination"]
)
def test_lone_surrogate_or_nul_is_rejected_by_its_field(
    server: Server, field: str, odd: str
) -> None:
    """The answer names the field, and is valid JSON."""
    before = server.counts()
    given = {field: f'"{odd}"'} | ({"file-list": "null"} if field == "did" else {})
    assert said(submitted(server, **given)).startswith(f"{field}: ")
    assert said(submitted(server, **{"file-list": f'["/a.root", "{odd}"]'})).startswith("file-list")
    assert server.counts() == before


@pytest.mark.parametrize("odd", [r"\\ud800", r"\\u0000"])
@pytest.mark.parametrize(
    "selection",
    [
        '[{"treename": "ODD"}]',
        '[{"treename": {"events": "ODD"}}]',
        '[{"treename": "events", "filter_name": "ODD"}]',
        '[{"treename": "events", "filter_typename": ["ODD*"]}]',
        '[{"treename": "events", "aliases": {"ODD": "E1"}}]',
        '[{"treename": "events", "cut": "E1 > 0", "ODD": 1}]',
        '[{"copy_histograms": "ODD"}]',
    ],
)
def test_name_with_a_lone_surrogate_or_nul_is_rejected(
    server: Server, selection: str, odd: str
) -> None:
    """An error would contain such a name, and break the answer or the database."""
    text = '"' + selection.replace('"', r"\"").replace("ODD", f"x{odd}") + '"'
    answer = submitted(server, selection=text, **{"result-format": '"root-file"'})
    assert re.match("selection: .* a NUL character or a lone surrogate", said(answer))


@pytest.mark.parametrize("odd", [r"\ud800", r"\x00"])
@pytest.mark.parametrize(
    ("language", "selection"),
    [
        ("uproot-raw", '[{"treename": "events", "expressions": ["get(\'ODD\')"]}]'),
        ("uproot-raw", '[{"treename": "events", "cut": "E1 == \'ODD\'"}]'),
        ("uproot-raw", '[{"treename": "events", "cut": "num({\'ODD\': E1})"}]'),
        ("uproot", "(Select (call EventDataset 'f' 'ODD') (lambda (list e) (attr e 'E1')))"),
        ("uproot", "(Select (call EventDataset 'f' 'events') (lambda (list e) (attr e 'ODD')))"),
        (
            "uproot",
            "(Select (call EventDataset 'f' 't') (lambda (list e) (dict (list 'ODD') (list 1))))",
        ),
    ],
)
def test_escaped_lone_surrogate_or_nul_in_an_expression_is_rejected(
    server: Server, language: str, selection: str, odd: str
) -> None:
    """Escapes of Python and qastle do not bypass the check."""
    inner = odd.replace("\\", "\\\\") if language == "uproot-raw" else odd
    answer = submitted(
        server,
        codegen=json.dumps(language),
        selection=json.dumps(selection.replace("ODD", inner)),
    )
    assert "a NUL character or a lone surrogate" in said(answer)


@pytest.mark.parametrize("number", NUMBERS)
def test_number_out_of_range_is_rejected_by_its_field(server: Server, number: str) -> None:
    """JSON has no limit for numbers, and Python also reads numbers that are not JSON."""
    for field in ("file-seconds", "title", "did", "selection", "codegen", "file-list"):
        answer = submitted(server, **{field: number})
        if number == "1e-400":
            assert answer.status_code < 500
            continue
        message = said(answer)
        assert message.startswith((f"{field}: ", "the body is not JSON")), message
        assert len(message) < 1_000
    inner = json.dumps('[{"treename": ' + number + "}]")
    assert said(submitted(server, selection=inner)).startswith("selection")


@pytest.mark.parametrize("digits", [300, 310, 4_000, 4_400])
def test_long_number_in_a_query_causes_no_server_error(server: Server, digits: int) -> None:
    """Both languages read it as infinite, or reject it: as an integer, a decimal or hexadecimal."""
    for number in ("9" * digits, "9" * digits + ".5", "0x" + "f" * digits, "9e" + "9" * digits):
        raw = json.dumps([{"treename": "events", "expressions": ["E1"], "cut": f"E1 < {number}"}])
        adl = (
            "(Select (call EventDataset 'f' 'events') "
            f"(lambda (list e) (< (attr e 'E1') {number})))"
        )
        for language, selection in (("uproot-raw", raw), ("uproot", adl)):
            answer = submitted(
                server, codegen=json.dumps(language), selection=json.dumps(selection)
            )
            assert answer.status_code < 500, answer.text[:300]


def test_deep_json_is_refused(server: Server) -> None:
    """The body or the selection is deep. For the selection, the message names the field."""
    short = "[" * 10_000 + "]" * 10_000
    assert said(submitted(server, selection=json.dumps(short))).startswith("selection")
    for deep in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        assert said(submitted(server, title=deep))
        assert said(submitted(server, selection=json.dumps(deep)))


def test_patterns_that_would_backtrack_for_hours_are_fast(server: Server, tmp_path: Path) -> None:
    """The file has names that nearly match. None matches, and the next request works."""
    path = tmp_path / "names.root"
    names = ("a" * 200 + "_", "ab" * 100 + "d", "a1" * 100 + "_")
    with uproot.recreate(path) as file:
        file.mktree("events", dict.fromkeys(names, "f4")).extend(
            {name: np.zeros(3, "f4") for name in names}
        )
    for field in ("filter_name", "filter_typename"):
        patterns = [f"/^{pattern}$/" for pattern in PATTERNS] + ["*a" * 60 + "x"]
        selection = json.dumps([{"treename": "events", field: patterns}])
        answer = server.submit(file_list=[str(path)], selection=selection)
        if answer.status_code == 200:  # where the look at the file was not done in time
            status = server.wait(answer.json()["request_id"])
            assert "no branch of tree events matches" in status["failure-info"]
        else:
            assert "no branch of tree events matches" in said(answer)
    assert server.run()["status"] == "Complete"


@pytest.mark.parametrize("pattern", NOT_LINEAR)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused(
    server: Server, pattern: str
) -> None:
    """The message quotes the pattern, and names the unsupported part."""
    for field in ("filter_name", "filter_typename"):
        selection = json.dumps([{"treename": "events", field: f"/x{pattern}/"}])
        message = said(submitted(server, selection=json.dumps(selection)))
        assert message.startswith(f"selection, subquery 1, {field}: /x{pattern}/ is not supported")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_odd_bytes_cause_no_server_error_on_any_route(server: Server) -> None:
    """They are in the path, the query, a form, JSON and the headers.

    In `make test`, the next test guards the same routes, on a server with sign-in.
    """
    no_crash(server, {}, {})


@pytest.mark.timeout(400)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_odd_bytes_of_a_user_cause_no_server_error_on_any_route(
    people: People, *, every: bool
) -> None:
    """On a server with sign-in, an administrator, who may do most, sends them everywhere.

    In `make test`, not every route gets every odd header.
    """
    cookie = {"Cookie": f"servicex={people.signed_in('administrator')}"}
    token = {"Authorization": f"Bearer {people.access['administrator']}"}
    no_crash(people.server, cookie, token, every=every)


def no_crash(
    chosen: Server, cookie: dict[str, str], token: dict[str, str], *, every: bool = True
) -> None:
    """Send odd bytes to every route of a server; assert that none answers 500.

    Without ``every``, each header is odd on each route in one way, on the next one in another.
    """
    crashed = []

    def ask(method: str, path: bytes, **given: Any) -> None:
        url = httpx.URL(chosen.url).copy_with(raw_path=path)
        try:
            answer = chosen.client.request(method, url, **given)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return  # uvicorn has refused what is no HTTP
        if answer.status_code == 500:
            crashed.append((method, path[:100], str(given)[:200], answer.text[-100:]))

    for number, route in enumerate(routes()):
        method, path = route.split(" ", 1)
        if path.endswith("/sign-out") or route == "POST /users/{number}/{deed}":
            continue  # after which the cookie opens nothing
        plain = re.sub(r"\{[^}]*\}", "1", path).encode()
        for odd in ODD_BYTES:
            if "{" in path:
                there = odd.join(re.split(rb"\{[^}]*\}", path.encode()))
                ask(method, there, headers=token or cookie)
            query = b"&".join(name.encode() + b"=" + odd[:2_000] for name in QUERIES)
            ask(method, plain + b"?" + query, headers=cookie)
            if method == "POST":
                fields = b"&".join(name.encode() + b"=" + odd for name in FIELDS)
                kind = {"Content-Type": "application/x-www-form-urlencoded"}
                ask(method, plain, headers=cookie | kind, content=fields)
        if method == "POST":
            for value in (*(f'"{one}"' for one in ODD), *NUMBERS):
                names = "request_id", "file_list", "replica", "url", "replicas"
                content = "{" + ",".join(f'"{name}": {value}' for name in names) + "}"
                kind = {"Content-Type": "application/json"}
                ask(method, plain, headers=token | kind, content=content.encode())
        for shift, together in enumerate((HEADERS, *([one] for one in DECISIVE))):
            first = (number + shift) % len(ODD_HEADERS)
            for odd_bytes in ODD_HEADERS if every else ODD_HEADERS[first : first + 1]:
                odd_ones = dict.fromkeys(together, odd_bytes)
                ask(method, plain, headers=(cookie or {}) | odd_ones)
    assert crashed == []
    assert "Traceback" not in chosen.output
