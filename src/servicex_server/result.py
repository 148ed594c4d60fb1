"""What becomes of a file: written from one replica, and from the next one where that fails."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from servicex_server.columnar.fetch import fetch
from servicex_server.columnar.plan import Plan, Query, chunks, parts
from servicex_server.columnar.read import RootFile, Tree, open_root
from servicex_server.columnar.source import Access
from servicex_server.columnar.write import Writer, open_writer
from servicex_server.credentials import shown_to
from servicex_server.errors import (
    CorruptError,
    ServiceXError,
    TruncatedError,
    UnknownNameError,
)
from servicex_server.model import Credential, Entries, Limits, Replica, ResultFormat, TaskSpec


class UnfinishedError(Exception):
    """What is written is not whole, and is dropped."""


class Result:
    """What becomes of a file: how far it is, so that another replica goes on where one failed.

    Parameters
    ----------
    spec
        What to do.
    output
        Where it is written.
    step
        Called whenever it has gone on.
    writing
        What ends the writing, by an error if it is not whole.
    """

    def __init__(
        self, spec: TaskSpec, output: Path, step: Callable[[], None], writing: ExitStack
    ) -> None:
        self.output = output
        self._spec = spec
        self.step = step
        self._writing = writing
        self._doubtful = False
        self.fetched = 0
        self._begin()

    def _begin(self) -> None:
        self._writer: Writer | None = None
        self._at: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._copied: set[str] = set()
        self.read = self.kept = 0

    def take(self, query: Query, replica: Replica) -> tuple[Entries, ...]:
        """Write what is not there yet from a replica; return the parts if it is done in parts.

        Raises
        ------
        ReplicaError
            What was written by then is good, and stays.
        """
        self.step()
        with opened(replica, self._spec, self.output.parent, self.step) as file:
            try:
                plans = plans_of(query, file)
                self._compare(replica, {number: tree for number, _, _, tree in plans})
                if self._writer is None:
                    if found := self._parts(query, plans):
                        return found
                    writer = new_writer(query, self.output, self._spec.format)
                    self._writer = self._writing.enter_context(writer)
                for of_one in plans:
                    self._tree(self._writer, *of_one)
                self._copy_objects(self._writer, query, file)
            finally:
                self.fetched += file.bytes_read
        self._writing.close()
        return ()

    def failed(self, error: ServiceXError) -> None:
        """Hear of what was wrong with a replica; one that is broken is not believed any more."""
        self._doubtful |= isinstance(error, TruncatedError | CorruptError)

    def _compare(self, replica: Replica, trees: dict[int, Tree]) -> None:
        """Hold the trees of another replica against those that a part was written of.

        Raises
        ------
        CorruptError
            They differ, and nothing is known against the former one.
        """
        for number, entries in self._entries.items():
            there = trees[number].entries if number in trees else 0
            if there == entries:
                continue
            if not self._doubtful:
                raise CorruptError(
                    f"{replica.place} has {there} entries where another replica has {entries}"
                )
            with suppress(UnfinishedError), self._writing.pop_all():
                raise UnfinishedError  # what was written is dropped
            self._begin()
            return

    def _parts(self, query: Query, plans: list[tuple[int, str, Plan, Tree]]) -> tuple[Entries, ...]:
        if self._spec.entries is not None or len(plans) != 1 or query.copies or self._spec.whole:
            return ()  # only a single tree has parts, and each would fetch the file
        (_, _, plan, tree), *_ = plans
        return parts(plan, tree, size=self._spec.limits.part)

    def _tree(self, writer: Writer, number: int, name: str, plan: Plan, tree: Tree) -> None:
        first, last = self._spec.entries or (0, None)
        for end, count, arrays in chunks(
            plan,
            tree,
            budget=self._spec.limits.chunk,
            start=self._at.get(number, first),
            stop=last,
            typed=number not in self._at,
        ):
            self.step()
            if arrays:
                writer.write(name, arrays)
            self.kept += count
            self.read += end - self._at.get(number, first)
            self._at[number], self._entries[number] = end, tree.entries

    def _copy_objects(self, writer: Writer, query: Query, file: RootFile) -> None:
        for pattern in query.copies:
            for path, found in file.objects(pattern):
                if path not in self._copied:
                    writer.copy(path, found)
                    self._copied.add(path)


@contextmanager
def opened(
    replica: Replica, spec: TaskSpec, folder: Path, step: Callable[[], None]
) -> Iterator[RootFile]:
    """Open a replica as its task has it, of which a copy may come into the folder meanwhile.

    Raises
    ------
    ReplicaError
        It cannot be read, or is not what its catalogue has.
    """
    with ExitStack() as having:
        if spec.whole:
            copy = having.enter_context(fetched(replica, spec, folder, step))
            file = having.enter_context(open_root(replica.place, at=copy))
        else:
            access = access_to(replica, spec.limits, spec.credentials, size=spec.size)
            file = having.enter_context(open_root(replica.place, access))
        yield file


@contextmanager
def fetched(
    replica: Replica, spec: TaskSpec, folder: Path, step: Callable[[], None]
) -> Iterator[Path]:
    """Have a copy of a replica in a folder, which is what its catalogue has.

    Raises
    ------
    ReplicaError
        It cannot be read, or is something else.
    """
    access = access_to(replica, spec.limits, spec.credentials, size=spec.size)
    with TemporaryDirectory(prefix="whole-", dir=folder) as made:
        copy = Path(made) / "file.root"
        fetch(replica.place, copy, access, adler32=spec.adler32, step=step)
        yield copy


def access_to(
    replica: Replica,
    limits: Limits,
    credentials: Sequence[Credential],
    *,
    size: int = 0,
    patience: float = math.inf,
) -> Access:
    """Return how a replica is read, and as whom; ``patience`` is for who is in a hurry.

    Raises
    ------
    ExpiredError
        What its host is to be shown is good no more.
    """
    shown = shown_to(replica.place, credentials)
    return Access(
        opening=limits.opening,
        silence=limits.silence,
        patience=patience,
        size=size,
        proxy=shown.proxy,
        token=shown.token,
        token_file=shown.token_file,
    )


def new_writer(query: Query, output: Path, result_format: ResultFormat) -> Writer:
    """Return what writes the result of a query in a format."""
    several = len({extraction.output for extraction in query.extractions}) > 1
    return open_writer(output, result_format.value, tree_column=several)


def plans_of(query: Query, file: RootFile) -> list[tuple[int, str, Plan, Tree]]:
    """Return the trees that are there: number of the extraction, what it becomes, plan, tree."""
    present = _present(query, file)
    plans = []
    for number, extraction in enumerate(query.extractions):
        if extraction.tree in present:
            tree = file.tree(extraction.tree or _only_tree(file))
            plans.append((number, extraction.output, extraction.bind(tree), tree))
    return plans


def _present(query: Query, file: RootFile) -> set[str]:
    """Return which of the query's trees the file has; a tree that must be there and is not raises.

    Raises
    ------
    UnknownNameError
        A required tree is missing; or all are, unless the query says that this is fine.
    """
    present = set()
    missing = []
    for extraction in query.extractions:
        if not extraction.tree or file.has(extraction.tree):
            present.add(extraction.tree)
        elif extraction.required:
            file.tree(extraction.tree)
        elif extraction.required is None:
            missing.append(extraction)
    if missing and not present and not query.copies:
        try:
            file.tree(missing[0].tree)
        except UnknownNameError as error:
            raise UnknownNameError(
                error.message, hint=f"{error.hint}; fail_on_missing_trees=false accepts such files"
            ) from None
    return present


def _only_tree(file: RootFile) -> str:
    """Return the tree that a query means which names none."""
    if len(file.trees) == 1:
        return file.trees[0]
    many = "several trees" if file.trees else "no tree"
    raise UnknownNameError(
        f"the query names no tree, and the file has {many}",
        hint=f"name one of {', '.join(file.trees[:8])}" if file.trees else "",
    )
