"""Datasets, containers and files of a Rucio server, by ``rucio://scope:name``.

The client of Rucio blocks, so it runs in a thread, and files pass through a bounded buffer.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import ClassVar

from servicex_server.concurrency import iterate_in_thread, run_in_daemon_thread
from servicex_server.errors import DatasetError
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.finders.rucio_client import RucioOptions, check_options
from servicex_server.finders.rucio_session import Did, RucioSession
from servicex_server.model import BadReplica, InputFile, Replica

LONGEST = 500
"""Characters of a name: the width of the column in Rucio's tables."""

FORM = "write rucio://scope:name, as in rucio://user.jdoe:user.jdoe.zmumu.v1"


class Rucio(Finder):
    """Looks up DIDs in a Rucio server."""

    scheme: ClassVar[str] = "rucio"
    Options: ClassVar[type[FinderOptions]] = RucioOptions
    options: RucioOptions

    def __init__(self, options: RucioOptions | None = None) -> None:
        super().__init__(options)
        if self.options.url:
            check_options(self.options)

    def check(self, reference: str) -> None:
        """Reject a reference that is not the name of a dataset, a container or a file."""
        did_of(reference)
        if not self.options.url:
            raise DatasetError(
                "did: this service has no Rucio server",
                hint="an operator can set finders.rucio.url",
            )

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield each file once. A file without a readable replica is yielded, and fails alone."""
        self.check(reference)
        session = RucioSession(self.options)
        files = iterate_in_thread(session.files(did_of(reference)), stop=session.abort)
        async with aclosing(files):
            async for file in files:
                yield file

    async def report(self, bad: BadReplica) -> None:
        """Declare a replica suspicious or bad, as the option ``report_as`` says, with the error.

        The policies of Rucio decide what happens to a suspicious replica.
        """
        if self.options.url:
            did = Did(*bad.file.split(":", 1)) if ":" in bad.file else None
            await run_in_daemon_thread(RucioSession(self.options).declare, bad, did)

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Return the replicas that can be read now, ordered as in a look-up."""
        if not self.options.url or not names:
            return {}
        dids = [Did(*name.split(":", 1)) for name in names if ":" in name]
        found = await run_in_daemon_thread(RucioSession(self.options).replicas, dids)
        return {str(did): copies for did, copies in found.items()}


def did_of(reference: str) -> Did:
    """Parse ``scope:name``. A missing scope is guessed from the name, as Rucio's tools do.

    Raises
    ------
    DatasetError
        The reference is not a DID; the hint shows the form.

    Examples
    --------
    >>> did_of("data18_13TeV.00348885.physics_Main.deriv.DAOD_PHYSLITE.r13286/").scope
    'data18_13TeV'
    >>> did_of("user.jdoe.zmumu.v1")
    Did(scope='user.jdoe', name='user.jdoe.zmumu.v1')
    >>> did_of("cms:/SingleMuon/Run2018A-v1/NANOAOD").scope
    'cms'
    """
    shown = f"did: {reference[:200]!r}"
    if not reference.strip():
        raise DatasetError("did: there is no name after rucio://", hint=FORM)
    if reference.startswith("rucio://"):
        once = reference[:200].replace("rucio://", "")
        raise DatasetError(f"{shown} has rucio:// twice", hint=f"write rucio://{once}")
    if "://" in reference:
        raise DatasetError(f"{shown} is a URL, and not a name in Rucio", hint=FORM)
    if "*" in reference or "?" in reference:
        raise DatasetError(f"{shown} is a pattern, but one name is needed", hint=FORM)
    if any(one.isspace() or not one.isprintable() for one in reference):
        raise DatasetError(f"{shown} has a space or a control character", hint=FORM)
    if len(reference) > LONGEST:
        raise DatasetError(f"{shown}… has {len(reference)} characters; at most {LONGEST}")
    scope, mark, name = reference.removesuffix("/").partition(":")
    if not mark:
        name, parts = scope, scope.split(".")
        own = 2 if name.startswith(("user", "group")) else 1
        scope = ".".join(parts[:own])
        if len(parts) <= own or not all(parts[:own]) or "/" in scope:
            raise DatasetError(f"{shown} has no scope, and the name does not imply one", hint=FORM)
    if not scope or not name or ":" in name:
        raise DatasetError(f"{shown} is not one scope and one name", hint=FORM)
    return Did(scope, name)
