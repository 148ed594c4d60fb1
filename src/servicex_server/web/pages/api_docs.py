"""The API documentation page, as data made from the OpenAPI document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter of a route, or a field of a body."""

    name: str
    place: str
    type: str
    needed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """A method on a path, with its parameters and responses."""

    method: str
    path: str
    summary: str
    text: str
    fields: tuple[Field, ...]
    answers: tuple[tuple[str, str], ...]

    @property
    def anchor(self) -> str:
        """The fragment of a link to the route."""
        return f"{self.method}{self.path}".replace("/", "-").replace("{", "").replace("}", "")


def routes(document: dict[str, Any]) -> list[Route]:
    """Return the routes of an OpenAPI document, in its order."""
    return [
        Route(
            method=method.upper(),
            path=path,
            summary=about.get("summary", ""),
            text=about.get("description", "").replace("``", ""),
            fields=(*_parameters(about), *_body(about, document)),
            answers=tuple((code, one["description"]) for code, one in about["responses"].items()),
        )
        for path, known in document["paths"].items()
        for method, about in known.items()
    ]


def _parameters(about: dict[str, Any]) -> Iterator[Field]:
    for one in about.get("parameters", ()):
        schema = one.get("schema", {})
        text = one.get("description", "")
        yield Field(one["name"], one["in"], _type(schema), one.get("required", False), text)


def _body(about: dict[str, Any], document: dict[str, Any]) -> Iterator[Field]:
    for content in about.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        if reference := schema.get("$ref"):
            schema = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
        for name, one in schema.get("properties", {}).items():
            needed = name in schema.get("required", ())
            yield Field(name, "body", _type(one), needed, one.get("description", ""))


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f'"{one}"' for one in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
