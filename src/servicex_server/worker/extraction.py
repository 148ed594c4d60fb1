"""Extracts the result of a query from a file, and continues on another replica if one fails."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from servicex_server.columnar.plan import Plan, Query, chunks, is_name, parts
from servicex_server.columnar.reading.access import Access
from servicex_server.columnar.reading.download import fetch
from servicex_server.columnar.reading.trees import LEAVE_OUT, RootFile, Tree, open_root
from servicex_server.columnar.tree_paths import check_paths, plain_path
from servicex_server.columnar.writing.joining import PartWriter
from servicex_server.columnar.writing.writer import Writer, open_writer
from servicex_server.credentials import shown_to
from servicex_server.errors import (
    CorruptError,
    FormatError,
    ServiceXError,
    TruncatedError,
    UnknownNameError,
    UnreadableError,
)
from servicex_server.model import Credential, Entries, Limits, Replica, ResultFormat, TaskSpec

T = TypeVar("T")

_FIRST = 1_000
"""Entries at the beginning of the file that each split reads to find unreadable branches."""


class Bound(NamedTuple):
    """An extraction bound to its tree: its number in the query, and the name in the result."""

    number: int
    output: str
    plan: Plan
    tree: Tree


class UnfinishedError(Exception):
    """The written result is incomplete, and is dropped."""


class ExtractionJob:
    """The extraction of one file: its progress, so that another replica continues where one failed.

    Parameters
    ----------
    spec
        The task.
    output
        Where the result is written.
    step
        Called whenever the work makes progress.
    writing
        Stack that closes the writer; it drops the result if it is closed with an error.
    """

    def __init__(
        self, spec: TaskSpec, output: Path, step: Callable[[], None], writing: ExitStack
    ) -> None:
        self.output = output
        self.began = time.monotonic()
        self._spec = spec
        self.step = step
        self._writing = writing
        self._doubtful = False
        self._unreadable: dict[str, dict[str, str]] = {}
        self.fetched = 0
        self._begin()

    def _begin(self) -> None:
        self._writer: Writer | None = None
        self._at: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._copied: set[str] = set()
        self._not_copied: dict[str, str] = {}
        self._left_out: dict[str, Mapping[str, str]] = {}
        self.read = self.kept = 0

    def take(self, query: Query, replica: Replica) -> tuple[Entries, ...]:
        """Write the missing entries from a replica; return the splits, if the file is to be split.

        Raises
        ------
        ReplicaError
            The replica failed. The entries written before stay valid.
        """
        self.step()
        with opened(replica, self._spec, self.output.parent, self.step) as file:
            file.unreadable = self._unreadable
            try:
                if self._spec.entries is not None:
                    find_unreadable(plans_of(query, file))
                if found := readable(query, file, lambda plans: self._write(query, replica, plans)):
                    return found
                self._copy_objects(query, file)
            finally:
                self.fetched += file.bytes_read
        self._writing.close()
        return ()

    def _write(self, query: Query, replica: Replica, plans: Sequence[Bound]) -> tuple[Entries, ...]:
        """Write the trees, or return the splits, if the file is to be split."""
        self._compare(replica, {number: tree for number, _, _, tree in plans})
        left_out = {bound.output: bound.plan.left_out for bound in plans}
        if self._writer is not None and left_out != self._left_out:
            if self._spec.entries is not None:
                raise _unreadable_here(self._left_out, left_out)
            self._drop()
        self._left_out = left_out
        if self._writer is None:
            if found := self._parts(query, plans):
                return found
            writer = self._new_writer(query)
            self._writer = self._writing.enter_context(writer)
        for of_one in plans:
            self._tree(self._writer, *of_one)
        return ()

    def _new_writer(self, query: Query) -> Writer:
        if is_part(self._spec):
            return PartWriter(self.output)
        return new_writer(query, self.output, self._spec.format)

    def _drop(self) -> None:
        """Drop the written entries and start again."""
        with suppress(UnfinishedError), self._writing.pop_all():
            raise UnfinishedError
        self._begin()

    @property
    def log(self) -> str:
        """What was selected but is not in the result, with the reasons."""
        lines = []
        for tree, left_out in self._left_out.items():
            if left_out:
                lines.append(f"left out of tree {tree}: {len(left_out)} selected by patterns")
                lines += [f"  {name}: {why}" for name, why in left_out.items()]
        if self._not_copied:
            lines.append(f"not copied: {len(self._not_copied)} objects selected by patterns")
            lines += [f"  {name}: {why}" for name, why in self._not_copied.items()]
        return "\n".join(lines)

    def failed(self, error: ServiceXError) -> None:
        """Note the error of a replica; after a corrupt one, the entries it gave are doubtful."""
        self._doubtful |= isinstance(error, TruncatedError | CorruptError)

    def _compare(self, replica: Replica, trees: dict[int, Tree]) -> None:
        """Compare the trees of a replica with those of the replica that was read before.

        If they differ in size and the former replica was corrupt, start again.

        Raises
        ------
        CorruptError
            They differ in size, and the former replica had no such error.
        """
        for number, entries in self._entries.items():
            there = trees[number].entries if number in trees else 0
            if there == entries:
                continue
            if not self._doubtful:
                raise CorruptError(
                    f"{replica.place} has {there} entries, and another replica has {entries}"
                    " entries"
                )
            self._drop()
            return

    def _parts(self, query: Query, plans: Sequence[Bound]) -> tuple[Entries, ...]:
        if self._spec.entries is not None or len(plans) != 1 or query.copies or self._spec.whole:
            return ()  # only a single tree is split; each split would download the whole file
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

    def _copy_objects(self, query: Query, file: RootFile) -> None:
        assert self._writer is not None  # noqa: S101  # the trees were written before
        self._writer.flush()  # so that errors of trees are not attributed to objects
        named = {plain_path(one) for one in query.copies if is_name(one)}
        for path in copies_of(query, file):
            if path in self._copied or path in self._not_copied:
                continue
            try:
                self._writer.copy(path, file.object(path))
            except (UnreadableError, FormatError) as error:
                if path in named:
                    raise
                self._not_copied[path] = error.message
            else:
                self._copied.add(path)


def is_part(spec: TaskSpec) -> bool:
    """Return whether the task stores arrays, which are written when all splits are done."""
    return spec.entries is not None and spec.format is not ResultFormat.PARQUET


@contextmanager
def opened(
    replica: Replica, spec: TaskSpec, folder: Path, step: Callable[[], None]
) -> Iterator[RootFile]:
    """Open a replica as its task says; a full download puts a copy into the folder meanwhile.

    Raises
    ------
    ReplicaError
        The replica cannot be read, or is not what its catalogue lists.
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
    """Download a replica into a folder, and check its size and checksum against its catalogue.

    Raises
    ------
    ReplicaError
        The replica cannot be read, or is not what its catalogue lists.
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
    """Return how a replica is read, and with which credentials.

    ``patience`` limits the timeouts, for a caller that cannot wait that long.

    Raises
    ------
    ExpiredError
        The credentials for its host have expired.
    """
    shown = shown_to(replica.place, credentials)

    def redirected(url: str) -> Access:
        return access_to(Replica(url), limits, credentials, size=size, patience=patience)

    return Access(
        opening=limits.opening,
        silence=limits.silence,
        patience=patience,
        size=size,
        proxy=shown.proxy,
        token=shown.token,
        token_file=shown.token_file,
        folders=limits.folders,
        network=limits.network,
        redirected=redirected,
    )


def new_writer(query: Query, output: Path, result_format: ResultFormat) -> Writer:
    """Return the writer for the result of a query in a format."""
    several = len({extraction.output for extraction in query.extractions}) > 1
    return open_writer(output, result_format.value, tree_column=several)


def plans_of(query: Query, file: RootFile) -> list[Bound]:
    """Return the extractions of a query whose trees are in a file."""
    present = _present(query, file)
    plans = []
    for number, extraction in enumerate(query.extractions):
        if extraction.tree in present:
            tree = file.tree(extraction.tree or _only_tree(file))
            plans.append(Bound(number, extraction.output, extraction.bind(tree), tree))
    return plans


def readable(query: Query, file: RootFile, use: Callable[[Sequence[Bound]], T]) -> T:
    """Call a function with the extractions of a query; repeat it without unreadable branches.

    Some branches prove unreadable only when their data are read. If only a pattern selects such a
    branch, it is left out the next time.

    Raises
    ------
    UnreadableError
        A branch that the query names cannot be read.
    """
    while True:
        plans = plans_of(query, file)
        try:
            return use(plans)
        except UnreadableError:
            if not any(one.plan.by_pattern & one.tree.unreadable.keys() for one in plans):
                raise


def _unreadable_here(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> UnreadableError:
    """Return the error for a branch that proves unreadable after entries were written with it."""
    reasons = (why for tree in now for name, why in now[tree].items() if name not in before[tree])
    return UnreadableError(next(reasons, "a branch cannot be read"), hint=LEAVE_OUT)


def find_unreadable(plans: Sequence[Bound]) -> None:
    """Read the first entries of branches that only patterns select.

    So all splits of a file leave out the same branches.
    """
    for one in plans:
        with suppress(UnreadableError):
            one.tree.read(sorted(one.plan.by_pattern), 0, min(_FIRST, one.tree.entries))


def copies_of(query: Query, file: RootFile) -> list[str]:
    """Return the paths of the objects that are copied.

    Raises
    ------
    UnknownNameError
        The file does not have a named object, or no object matches the patterns.
    QueryError
        An object has the path of a tree of the result.
    """
    if not query.copies:
        return []
    found = file.objects(query.copies)
    check_paths([*(extraction.output for extraction in query.extractions), *found])
    return found


def _present(query: Query, file: RootFile) -> set[str]:
    """Return which trees of the query the file has.

    Raises
    ------
    UnknownNameError
        A required tree is missing; or all trees are, unless the query accepts that.
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
    """Return the only tree of a file, for a query that does not name a tree."""
    if len(file.trees) == 1:
        return file.trees[0]
    many = "several trees" if file.trees else "no tree"
    raise UnknownNameError(
        f"the query names no tree, and the file has {many}",
        hint=f"name one of {', '.join(file.trees[:8])}" if file.trees else "",
    )
