"""Conformance tests of query languages."""

from collections.abc import Sequence
from typing import ClassVar

import pytest

from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError, RequestError
from servicex_server.languages.contract import Language, Program
from servicex_server.model import ResultFormat


class LanguageSuite:
    """Derive a class whose name begins with ``Test``, and set what follows.

    ``language`` is the class, ``valid`` are texts that compile, and ``invalid`` texts that do not.
    """

    language: ClassVar[type[Language]]
    valid: ClassVar[Sequence[str]]
    invalid: ClassVar[Sequence[str]]

    @property
    def formats(self) -> Sequence[ResultFormat]:
        """The formats that the language writes."""
        return tuple(self.language.formats)

    def test_language_has_a_name_and_a_description(self) -> None:
        """Clients send the name as ``codegen``, and a list shows both."""
        assert self.language.name
        assert self.language.description

    def test_valid_text_compiles_for_every_format(self) -> None:
        """The result is a `Program` exactly if the language declares that it runs code."""
        for text in self.valid:
            for result_format in self.formats:
                meaning = self.language().compiled(text, result_format)
                assert isinstance(meaning, Program if self.language.runs_code else Query)

    def test_same_text_has_the_same_meaning(self) -> None:
        """The service reuses results by it. `compile_accepted` skips checks, and gives the same."""
        for text in self.valid:
            for result_format in self.formats:
                first = self.language().compile(text, result_format)
                assert repr(first) == repr(self.language().compile(text, result_format))
                again = self.language().compile_accepted(text, result_format)
                assert repr(first) == repr(again)

    def test_invalid_text_is_rejected_with_the_field(self) -> None:
        """The user waits for the answer. The message begins with the field of the request."""
        for text in self.invalid:
            with pytest.raises(RequestError, match=r"^selection"):
                self.language().compile(text, self.formats[0])

    def test_other_format_is_rejected(self) -> None:
        """The language does not write this format."""
        for result_format in set(ResultFormat) - set(self.formats):
            with pytest.raises(FormatError):
                self.language().check_format(result_format)
