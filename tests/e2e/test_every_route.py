"""Every route of the OpenAPI document: errors have one shape, and no input gives a 500."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import Server

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module", params=["sqlite_server", "postgresql_server"])
def server(request: pytest.FixtureRequest) -> Server:
    """Give a server: what one database takes the other one may refuse."""
    chosen: Server = request.getfixturevalue(request.param)
    return chosen


def operations(server: Server) -> Iterator[tuple[str, str]]:
    """Yield method and path of every operation there is."""
    document = server.get("/openapi.json").json()
    for path, known in document["paths"].items():
        for method in known:
            yield method, path


def filled(path: str, value: str) -> str:
    """Put a value into every parameter of a path."""
    parts = [quote(value, safe="") if part.startswith("{") else part for part in path.split("/")]
    return "/".join(parts)


def check(answer: httpx.Response) -> None:
    """Assert that an error has the one shape, and is nobody's crash."""
    assert answer.status_code != 500, answer.text
    assert not 300 <= answer.status_code < 400, answer.headers
    if answer.is_error:
        body = answer.json()
        assert list(body) == ["message"], body
        assert isinstance(body["message"], str)
        assert body["message"]


def test_openapi_document_has_the_routes_of_clients(server: Server) -> None:
    """The document is valid JSON."""
    found = set(operations(server))
    for wanted in (
        ("get", "/servicex"),
        ("post", "/servicex/transformation"),
        ("get", "/servicex/transformation/{request_id}/cancel"),
        ("post", "/servicex/transformation/{request_id}/cancel"),
        ("delete", "/servicex/datasets/{dataset_id}"),
        ("post", "/token/refresh"),
        ("get", "/readyz"),
    ):
        assert wanted in found


def test_errors_have_one_shape_on_every_route(server: Server) -> None:
    """The server answers unknown ids, wrong bodies and wrong methods with one sentence."""
    there = list(operations(server))
    for method, path in there:
        for content in (b"", b"no json", b"[]", b'{"request_id": 5}'):
            answer = server.client.request(
                method,
                filled(path, "unknown"),
                content=content,
                headers={"Content-Type": "application/json"},
            )
            check(answer)
        for wrong in METHODS:
            if (wrong, path) not in there:
                answer = server.client.request(wrong, filled(path, "unknown"))
                assert answer.status_code in (404, 405), (wrong, path)
                check(answer)
    check(server.get("/no/such/page"))
    check(server.get("/servicex/no"))


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "title": ANY_JSON,
        "did": ANY_JSON,
        "file-list": st.one_of(ANY_JSON, st.just(["/no/such.root"])),
        "selection": st.one_of(
            ANY_JSON, st.text(), ANY_JSON.map(json.dumps), st.just('[{"treename": "t"}]')
        ),
        "codegen": st.one_of(ANY_JSON, st.sampled_from(["uproot-raw", "python"])),
        "result-destination": st.one_of(ANY_JSON, st.just("object-store")),
        "result-format": st.one_of(ANY_JSON, st.just("parquet")),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES)
def test_json_body_never_causes_a_server_error(server: Server, body: dict[str, Any]) -> None:
    """The server accepts any JSON, or rejects it with a sentence."""
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    check(server.client.post("/servicex/transformation", content=content, headers=headers))


@settings(max_examples=20, deadline=None)
@given(
    name=st.text(min_size=1, max_size=20).filter(lambda t: "/" not in t and t not in (".", ".."))
)
def test_id_never_causes_a_server_error(server: Server, name: str) -> None:
    """The server answers 404 to any text in the place of an id."""
    try:
        encoded = quote(name, safe="")
    except UnicodeEncodeError:
        pytest.skip("a lone surrogate cannot be sent")
    for path in ("transformation", "datasets"):
        answer = server.get(f"/servicex/{path}/{encoded}")
        check(answer)
    check(server.get(f"/servicex/transformation?submitted_by={encoded}"))
    check(server.get(f"/servicex/datasets?did-finder={encoded}"))


def test_server_without_sign_in_issues_access_tokens(server: Server) -> None:
    """Anybody gets an access token, which has three parts and expires in the future."""
    import base64
    import time

    answer = server.client.post("/token/refresh")
    assert answer.status_code == 200
    parts = answer.json()["access_token"].split(".")
    assert len(parts) == 3
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
    assert claims["exp"] > time.time() + 3600


def test_capabilities_are_announced(server: Server) -> None:
    """The client finds the query languages and the capabilities of the server."""
    answer = server.get("/servicex").json()
    assert {"uproot-raw", "python"} <= set(answer["code-gen-image"])
    assert "poll_local_transformation_results" in answer["capabilities"]
    assert "long_sample_titles_10240" in answer["capabilities"]
    assert server.get("/healthz").json() == {"status": "alive"}
    assert server.get("/readyz").json() == {"status": "ready", "leads": True, "workers": 2}
