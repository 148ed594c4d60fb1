"""What a finder does: a dataset reference in, a stream of its files out.

A finder is a class with a ``scheme``, registered under the entry point group
``servicex_server.finders`` by that scheme: ``rucio`` finds what users call ``rucio://...``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from servicex_server.model import InputFile


class Finder(ABC):
    """A catalogue."""

    scheme: ClassVar[str]

    def check(self, reference: str) -> None:  # noqa: B027  # a finder may take any reference
        """Refuse a reference that cannot be right, without asking the catalogue.

        Raises
        ------
        DatasetError
            Says what a reference looks like here.
        """

    @abstractmethod
    def find(self, reference: Any, options: Mapping[str, str]) -> AsyncIterator[InputFile]:
        """Yield the files of a dataset as they become known.

        Parameters
        ----------
        reference
            The dataset reference without its scheme and options; for file lists the list.
        options
            What followed the ``?``, such as ``{"files": "10"}``.

        Raises
        ------
        UnknownDatasetError
            The catalogue does not have it.
        DatasetError
            The reference is malformed.
        """
