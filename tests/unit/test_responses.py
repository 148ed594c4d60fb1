"""The OpenAPI document says what every route returns."""

from typing import Any

import pytest

from servicex_server.app import App
from servicex_server.settings.service import Settings
from servicex_server.web.application import web_app

DOCUMENT: dict[str, Any] = web_app(App(Settings())).openapi()

OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_route_says_what_it_returns(method: str, path: str) -> None:
    """By a schema with the keys of the object, or as text."""
    content = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]
    assert content
    for kind, about in content.items():
        schema = about["schema"]
        if kind != "application/json":
            assert schema == {"type": "string"}
            continue
        for given in schema.get("anyOf", [schema]):
            one = given
            if "$ref" in one:
                one = DOCUMENT["components"]["schemas"][one["$ref"].rpartition("/")[2]]
                assert one["properties"]
                assert one["required"]
            else:  # names that users choose
                assert one["additionalProperties"] == {"type": "string"}
