"""What a finder does: a dataset reference in, a stream of its files out.

A finder is a class with a ``scheme``, registered under the entry point group
``servicex_server.finders`` by that scheme: ``rucio`` finds what users call ``rucio://...``.
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
from servicex_server.model import BadReplica, InputFile, Replica


class FinderOptions(BaseModel):
    """What an operator chooses of a finder: the part ``finders.<scheme>`` of the settings.

    A finder that has any derives its own from this; names it does not have are refused. A list may
    be given as a text, as variables of the environment are: as JSON, or with commas. Options that
    have options of their own may be JSON.
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
    """Return the classes that a value may be of, without what is in them."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    kind = origin or annotation
    return {kind} if isinstance(kind, type) else set()


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
        self.options: Any = self.Options() if options is None else options

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

    async def report(self, bad: BadReplica) -> None:
        """Tell the catalogue of a replica that is bad; most take no word of it.

        Raises
        ------
        CatalogueError
            It could not be told; it is tried again.
        """
        del bad

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Ask once more where files are, which could be read at none of the places that are known.

        Parameters
        ----------
        names
            What the catalogue calls them, as `InputFile.name`; up to a few hundred.

        Returns
        -------
        By name the replicas that there are by now, in the order to try them; what is not in it is
        not known. Most catalogues have no more to tell than they have told, and return nothing.

        Raises
        ------
        CatalogueError
            It does not answer, or refuses us.
        """
        del names
        return {}


def adler32(checksum: object) -> str | None:
    """Return a checksum with its eight hexadecimal digits, None if it is no Adler-32.

    Catalogues leave out zeros at the front, put the kind and a colon before it, or write NOTSET.

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
    """Return a size or a number of events, 0 if the catalogue does not know it.

    Examples
    --------
    >>> number(3), number(None), number(-1)
    (3, 0, 0)
    """
    return max(value, 0) if isinstance(value, int) else 0


@contextmanager
def asking(catalogue: str, seconds: float) -> Iterator[None]:
    """Turn what httpx raises into errors of a catalogue, which is called by this name.

    Raises
    ------
    CatalogueError
        It cannot be reached, says nothing for so many seconds, or breaks off.
    """
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise CatalogueError(f"{catalogue} did not answer within {seconds:g} s") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        said = str(error) or type(error).__name__
        raise CatalogueError(f"{catalogue} cannot be asked: {said}") from error


def refusal(catalogue: str, status: int, said: str, *, hint: str = "") -> CatalogueError:
    """Return the error for an HTTP status that is no success; ``hint`` is about the credential."""
    words = f"{catalogue} answers with status {status}" + (f": {said[:300]}" if said else "")
    if status in (401, 403):
        return CatalogueDeniedError(words, hint=hint)
    return CatalogueError(words)
