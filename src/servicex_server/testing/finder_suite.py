"""Conformance tests of finders."""

import asyncio
import re
import threading
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from servicex_server.errors import DatasetError, UnknownDatasetError
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.model import InputFile


async def found(finder: Finder, reference: Any) -> list[InputFile]:
    """Return all files of a dataset."""
    return [file async for file in finder.find(reference)]


class FinderSuite:
    """Derive a class whose name begins with ``Test``, and set what follows.

    ``known`` is the reference of a dataset that exists and has files, without the scheme;
    ``unknown`` one that the catalogue does not have, if it can tell; ``malformed`` are texts that
    `Finder.check` rejects.
    """

    known: ClassVar[Any]
    unknown: ClassVar[Any] = None
    malformed: ClassVar[Sequence[Any]] = ()

    @pytest.fixture
    def finder(self) -> Finder:
        """Return the finder."""
        raise NotImplementedError("return the finder in a fixture of this name")

    def test_scheme_can_stand_before_a_reference(self, finder: Finder) -> None:
        """Users write ``scheme://reference``."""
        assert re.fullmatch(r"[a-z][a-z0-9-]*", finder.scheme)

    def test_unknown_option_is_rejected(self, finder: Finder) -> None:
        """An operator who mistypes an option hears of it at the start."""
        assert issubclass(finder.Options, FinderOptions)
        with pytest.raises(ValidationError):
            finder.Options.model_validate({"an_option_that_no_finder_has": 1})

    def test_known_reference_passes_the_check(self, finder: Finder) -> None:
        """`Finder.check` rejects nothing that exists."""
        finder.check(self.known)

    def test_malformed_reference_is_rejected(self, finder: Finder) -> None:
        """`Finder.check` rejects it before a request exists. The message begins with the field."""
        for reference in self.malformed:
            with pytest.raises(DatasetError, match=r"^(did|file-list):"):
                finder.check(reference)

    def test_files_have_different_keys(self, finder: Finder) -> None:
        """Each file has a name or a replica, and no two files have the same."""
        files = asyncio.run(found(finder, self.known))
        assert files
        assert all(one.key for one in files)
        assert all(replica.url for one in files for replica in one.replicas)
        assert len({one.key for one in files}) == len(files)

    def test_second_look_up_finds_the_same_files(self, finder: Finder) -> None:
        """The service continues an interrupted look-up by the keys of the files."""
        first, second = (
            [one.key for one in asyncio.run(found(finder, self.known))] for _ in range(2)
        )
        assert sorted(first) == sorted(second)

    def test_look_up_can_be_interrupted(self, finder: Finder) -> None:
        """The service stops after N files of ``?files=N``. The finder leaves no thread behind."""

        async def first() -> InputFile:
            async with aclosing(finder.find(self.known)) as files:
                return await anext(files)

        before = set(threading.enumerate())
        assert asyncio.run(first()).key
        assert set(threading.enumerate()) <= before

    def test_unknown_dataset_is_an_error(self, finder: Finder) -> None:
        """The request ends with this error, and the service does not try again."""
        if self.unknown is None:
            pytest.skip("this finder cannot tell")
        with pytest.raises(UnknownDatasetError):
            asyncio.run(found(finder, self.unknown))

    def test_replica_refresh_returns_only_requested_files(self, finder: Finder) -> None:
        """A catalogue that knows no other replicas returns nothing."""
        names = [one.name for one in asyncio.run(found(finder, self.known)) if one.name][:5]
        again = asyncio.run(finder.replicas_again(names))
        assert set(again) <= set(names)
