"""The contract of a finder, which yields the files of a dataset reference.

A finder is a class with a ``scheme``. It is registered under that scheme in the entry point group
``servicex_server.finders``: ``rucio`` looks up references that begin with ``rucio://``.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from servicex_server.errors import CatalogueDeniedError, CatalogueError
from servicex_server.model import BadReplica, Credential, InputFile, Replica
from servicex_server.network.policy import ANYWHERE, NetworkPolicy


class FinderOptions(BaseModel):
    """The options of a finder: the part ``finders.<scheme>`` of the settings.

    A finder with options derives its own class from this one; unknown names are rejected. As an
    environment variable is a text, a list may be JSON or separated by commas, and nested options
    may be JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, given: Any, about: ValidationInfo) -> Any:
        if not isinstance(given, str):
            return given
        kinds = _kinds(cls.model_fields[str(about.field_name)].annotation)
        if any(issubclass(kind, BaseModel) for kind in kinds):
            return json.loads(given)
        if kinds.isdisjoint(_LISTS):
            return given
        if given.lstrip().startswith("["):
            return json.loads(given)
        return [one.strip() for one in given.split(",") if one.strip()]


_LISTS = frozenset({tuple, list, set, frozenset})


def _kinds(annotation: Any) -> set[type]:
    """Return the classes that a value may have, without the types of their items."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    kind = origin or annotation
    return {kind} if isinstance(kind, type) else set()


class Finder(ABC):
    """Looks up datasets in a catalogue.

    Parameters
    ----------
    options
        The options from the settings; an instance of ``Options``.
    """

    scheme: ClassVar[str]
    Options: ClassVar[type[FinderOptions]] = FinderOptions

    network: NetworkPolicy = ANYWHERE
    """The servers that a user's reference may name; the service sets it. The servers in ``options``
    are the operator's choice, and are not checked."""

    credentials: Sequence[Credential] = ()
    """The credentials for the servers of a reference; the service sets them."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def check(self, reference: str) -> None:  # noqa: B027  # a finder may take any reference
        """Validate a reference without asking the catalogue.

        Raises
        ------
        DatasetError
            The reference is invalid. The message starts with ``did:``, and the hint shows a valid
            reference.
        """

    @abstractmethod
    def find(self, reference: Any) -> AsyncGenerator[InputFile, None]:
        """Yield the files of a dataset as they become known.

        Parameters
        ----------
        reference
            The text after ``scheme://``, without ``?files=N``; for file lists the list.

        Raises
        ------
        UnknownDatasetError
            The catalogue does not have the dataset.
        DatasetError
            The reference is malformed, or the dataset cannot be used; the message says why.
        CatalogueError
            The catalogue does not answer, or refuses the service. If the error is retryable, the
            look-up is tried again, and files that were yielded before are not stored twice.
        """

    async def report(self, bad: BadReplica) -> None:
        """Report a bad replica to the catalogue. Most catalogues do not accept reports.

        Raises
        ------
        CatalogueError
            The report failed; it is tried again.
        """
        del bad

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Look up the current replicas of files of which all known replicas have failed.

        Parameters
        ----------
        names
            The names of the files in the catalogue, as in `InputFile.name`; up to a few hundred.

        Returns
        -------
        The current replicas by name, in the order in which to try them. A name is missing if its
        replicas are not known. The default returns nothing, as most catalogues have no other
        replicas than those of the look-up.

        Raises
        ------
        CatalogueError
            The catalogue does not answer, or refuses the service.
        """
        del names
        return {}


def adler32(checksum: object) -> str | None:
    """Return an Adler-32 checksum with eight hexadecimal digits, or None if it is not one.

    Catalogues leave out leading zeros, put ``adler32:`` before the digits, or write NOTSET.

    Examples
    --------
    >>> adler32("adler32:fa61aca")
    '0fa61aca'
    >>> adler32("NOTSET") is None
    True
    """
    found = re.fullmatch(r"(?:adler32:)?([0-9a-f]{1,8})", str(checksum), re.IGNORECASE)
    return found[1].lower().zfill(8) if found else None


def number(value: object) -> int:
    """Return a size or a number of events; 0 if the catalogue does not know it.

    Examples
    --------
    >>> number(3), number(None), number(-1)
    (3, 0, 0)
    """
    return max(value, 0) if isinstance(value, int) else 0


@contextmanager
def asking(catalogue: str, seconds: float) -> Iterator[None]:
    """Convert errors of httpx to errors of a catalogue.

    Parameters
    ----------
    catalogue
        The name of the catalogue for the message.
    seconds
        The time-out for the message.

    Raises
    ------
    CatalogueError
        The catalogue cannot be reached, exceeds the time-out, or closes the connection.
    """
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise CatalogueError(f"{catalogue} did not answer within {seconds:g} s") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        said = str(error) or type(error).__name__
        raise CatalogueError(f"the request to {catalogue} failed: {said}") from error


def refusal(catalogue: str, status: int, said: str, *, hint: str = "") -> CatalogueError:
    """Return the error for an HTTP status; ``hint`` is used if the credential was refused."""
    words = f"{catalogue} answers with status {status}" + (f": {said[:300]}" if said else "")
    if status in (401, 403):
        return CatalogueDeniedError(words, hint=hint)
    return CatalogueError(words)
