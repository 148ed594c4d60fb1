"""What a finder does: a dataset reference in, a stream of its files out.

A finder is a class with a ``scheme``, registered under the entry point group
``servicex_server.finders`` by that scheme: ``rucio`` finds what users call ``rucio://...``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from servicex_server.model import InputFile


class FinderOptions(BaseModel):
    """What an operator chooses of a finder: the part ``finders.<scheme>`` of the settings.

    A finder that has any derives its own from this; names it does not have are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Finder(ABC):
    """A catalogue.

    Parameters
    ----------
    options
        What the operator chose; an instance of ``Options``.
    """

    scheme: ClassVar[str]
    Options: ClassVar[type[FinderOptions]] = FinderOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def check(self, reference: str) -> None:  # noqa: B027  # a finder may take any reference
        """Refuse a reference that cannot be right, without asking the catalogue.

        Raises
        ------
        DatasetError
            Says what a reference looks like here; the message starts with ``did:``.
        """

    @abstractmethod
    def find(self, reference: Any) -> AsyncGenerator[InputFile, None]:
        """Yield the files of a dataset as they become known.

        Parameters
        ----------
        reference
            What follows ``scheme://``, without ``?files=N``; for file lists the list.

        Raises
        ------
        UnknownDatasetError
            The catalogue does not have it.
        DatasetError
            The reference is malformed, or the dataset is of no use; says why.
        CatalogueError
            The catalogue does not answer, or refuses us. Those that can pass are tried again,
            and what has been yielded by then is not taken twice.
        """
