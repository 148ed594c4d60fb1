"""The OpenAPI document describes the response of every route."""

from typing import Any

import pytest

from servicex_server.app import App
from servicex_server.settings.service import Settings
from servicex_server.web.application import web_app

DOCUMENT: dict[str, Any] = web_app(App(Settings())).openapi()

OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_route_describes_its_response(method: str, path: str) -> None:
    """The description is a schema with the keys of the object, or says that it is text."""
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
