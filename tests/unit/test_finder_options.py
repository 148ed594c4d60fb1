"""Options of finders, as values of YAML or as texts of variables."""

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from servicex_server.finders.contract import FinderOptions


class Inner(FinderOptions):
    """Options of a service that a finder asks."""

    names: tuple[str, ...] = ()


class Outer(FinderOptions):
    """Options of a finder."""

    numbers: Annotated[list[int], Field(max_length=3)] = Field(default_factory=list)
    names: tuple[str, ...] | None = None
    inner: Inner | None = None
    text: str = ""


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("numbers", "1, 2,", [1, 2]),
        ("numbers", "[1, 2]", [1, 2]),
        ("numbers", [1, 2], [1, 2]),
        ("numbers", "", []),
        ("names", ' ["a,b"]', ("a,b",)),
        ("names", "a,b", ("a", "b")),
        ("names", None, None),
        ("inner", '{"names": "a,b"}', Inner(names=("a", "b"))),
        ("inner", {"names": "a,b"}, Inner(names=("a", "b"))),
        ("text", "[a, b]", "[a, b]"),
    ],
)
def test_texts_are_parsed_only_for_lists_and_nested_options(
    name: str, given: Any, read: Any
) -> None:
    assert getattr(Outer.model_validate({name: given}), name) == read


@pytest.mark.parametrize(
    ("name", "given"),
    [("numbers", "a"), ("numbers", "1,2,3,4"), ("names", "["), ("inner", "a,b"), ("inner", "[]")],
)
def test_unreadable_text_is_an_error_of_its_option(name: str, given: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate({name: given})
    assert raised.value.errors()[0]["loc"][0] == name
