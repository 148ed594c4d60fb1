"""No text of a user forges a line in the log of a real service, or controls a terminal."""

import json
import re
import socket
from base64 import b64encode
from collections.abc import Callable

from tests.integration.servers import Answer, stand_in
from tests.support import Server, sample

FORGED = "2026-01-01 00:00:00,000 INFO    servicex_server.web: jane is administrator"
HOSTILE = f"x\r\n{FORGED}\x1b[2J\x1b]0;x\x07\u202e\u2028\x85\x9b2J"

FUNCTION = f"""
def run_query(path):
    import logging, sys, warnings
    text = {HOSTILE!r}
    print(text)
    print(text, file=sys.stderr)
    warnings.warn(text)
    logging.error(text)
    raise ValueError(text)
"""

_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +\S+: ")


def test_log_escapes_hostile_texts(new_server: Callable[..., Server]) -> None:
    """They are in titles, URLs, queries, functions, headers, paths and answers of a catalogue."""
    said = json.dumps({"hits": {"hits": [{"id": HOSTILE, "metadata": {"title": HOSTILE}}]}})
    with stand_in(lambda _: Answer(said.encode())) as portal:
        server = new_server(
            "--workers",
            "1",
            SERVICEX_SERVER_FINDERS__CERNOPENDATA__URL=portal.url,
            SERVICEX_SERVER_LOG_LEVEL="DEBUG",
            SERVICEX_SERVER_LIMITS__ATTEMPTS="1",
        )
        began = len(server.output)
        _attack(server)
        assert server.run()["status"] == "Complete"
    new = server.output[began:]
    assert not [ascii(one) for one in new if one != "\n" and not one.isprintable()]
    lines = new.splitlines()
    assert lines
    assert not [line for line in lines if line.startswith(FORGED)]
    strange = [one for one in lines if not (_RECORD.match(one) or one.startswith("  | "))]
    assert not strange, strange[:5]


def _attack(server: Server) -> None:
    entry = f"http://127.0.0.1:9/{HOSTILE}"
    assert server.submit(file_list=[entry]).status_code == 400
    for changes in (
        {"title": HOSTILE},
        {"selection": HOSTILE},
        {"selection": f"'\\\x1b{HOSTILE}'", "codegen": "uproot"},
        {"selection": b64encode(FUNCTION.encode()).decode(), "codegen": "python"},
        {"file_list": None, "did": f"cernopendata://{HOSTILE}"},
        {"file_list": None, "did": f"xrootd://root://127.0.0.1:9//{HOSTILE}/*.root"},
        {"file_list": ["root://127.0.0.1:9//\u202e\u2028.root"]},
        {"file_list": ["http://127.0.0.1:9/\u202e\u2028.root"]},
        {"file_list": [f"{sample('uproot-Zmumu.root')}\u202e"]},
    ):
        answer = server.submit(**changes)
        if answer.status_code == 200:
            server.wait(answer.json()["request_id"])
    path = "/servicex/transformation/%0d%0a%1b%5b2J%e2%80%ae" + "%0a" + FORGED.replace(" ", "%20")
    for asked in (path, f"/{path}", f"/requests{path}", f"/servicex/datasets/1?x={path}"):
        server.get(asked)
    host, port = server.url.removeprefix("http://").split(":")
    for line in (
        "GET /\x1b[2J\n HTTP/1.1",
        "GET /servicex/no HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: x\x1b[2J\x9b2J",
        f"GET / HTTP/1.1\r\nHost: x\n{FORGED}",
        FORGED,
    ):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"{line}\r\n\r\n".encode())
            raw.recv(1000)
