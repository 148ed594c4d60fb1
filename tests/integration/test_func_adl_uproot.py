"""func_adl queries in this service, compared with func-adl-uproot and a loop over the events.

Where the two differ, the loop shows which of them is right.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import pytest
import uproot

from tests.integration.func_adl_cases import DIFFERENT, ONLY_HERE, SAME, lines, query
from tests.integration.func_adl_made_up import made_up
from tests.integration.func_adl_more_cases import (
    BENCHMARKS,
    NANO,
    PHYSLITE,
    SHAPES,
    SHAPES_ONLY_HERE,
    WHOLE_EVENTS,
)
from tests.integration.func_adl_peer import Peer, RaisedError, difference, ours
from tests.property import event_loop
from tests.samples import coffea_samples
from tests.support import sample

pytestmark = pytest.mark.timeout(300)  # the first test waits until the package is installed

HZZ = sample("uproot-HZZ.root")
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))]
TREES, QUERIES = 5, 12
"""Trees of a seed, and queries of a tree."""

KNOWN = 0.85
"""Share of the made-up queries that func-adl-uproot runs at least."""


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Give a process of func-adl-uproot."""
    with Peer(tmp_path_factory.mktemp("func-adl-uproot")) as running:
        yield running


@pytest.fixture(scope="module")
def looped() -> "Loop":
    """Give a loop that computes queries on the events of HZZ."""
    return Loop(HZZ, "events")


class Loop:
    """A loop over the events of a tree."""

    def __init__(self, path: Path, tree: str) -> None:
        with uproot.open({path: tree}) as opened:
            self._events = opened.arrays().to_list()

    def columns(self, text: str) -> dict[str, Any]:
        """Return the columns of a query, with the types of their values."""
        array = ak.Array(event_loop.rows(text, self._events))
        return {name: array[name] for name in array.fields} or {"branch": array}


@pytest.mark.parametrize("text", lines(SAME))
def test_columns_equal_those_of_func_adl_uproot(peer: Peer, text: str) -> None:
    """Names, structure, kinds of numbers and values agree. Four-momenta have 64 bits here."""
    written, momenta = query(text), "FourMoment" in text
    assert not difference(peer.columns(written, HZZ), ours(written, HZZ), momenta=momenta)


@pytest.mark.parametrize(
    ("why", "text"), [(why, text) for why, texts in DIFFERENT.items() for text in lines(texts)]
)
def test_known_differences_are_defects_of_func_adl_uproot(
    peer: Peer, looped: Loop, why: str, text: str
) -> None:
    """They still exist, and the loop agrees with this service."""
    written = query(text)
    got = ours(written, HZZ)
    assert difference(peer.columns(written, HZZ), got), f"it is no longer so that {why}"
    assert not difference(looped.columns(written), got, exact=False)


@pytest.mark.parametrize("text", lines(ONLY_HERE))
def test_queries_that_func_adl_uproot_rejects_equal_the_loop(
    peer: Peer, looped: Loop, text: str
) -> None:
    """They have the first of an empty list, constants, Python functions, or nested loops."""
    written = query(text)
    with pytest.raises(RaisedError):
        peer.columns(written, HZZ)
    assert not difference(looped.columns(written), ours(written, HZZ), exact=False)


@pytest.mark.parametrize(("name", "tree"), SHAPES)
def test_other_data_shapes_equal_func_adl_uproot(peer: Peer, name: str, tree: str) -> None:
    """For queries that func-adl-uproot rejects, the values equal those of the loop."""
    path = sample(name)
    loop = Loop(path, tree)
    for text in lines(SHAPES[name, tree]):
        written = query(text, tree)
        assert not difference(peer.columns(written, path), ours(written, path)), text
    for text in lines(SHAPES_ONLY_HERE[name, tree]):
        written = query(text, tree)
        with pytest.raises(RaisedError):
            peer.columns(written, path)
        assert not difference(loop.columns(written), ours(written, path), exact=False), text


@pytest.mark.parametrize("text", lines(NANO))
def test_nanoaod_columns_equal_func_adl_uproot(peer: Peer, text: str) -> None:
    """The same events in an RNTuple, which func-adl-uproot does not read, have the same columns."""
    written, folder = query(text, "Events"), coffea_samples()
    expected, momenta = peer.columns(written, folder / "nano_dy.root"), "FourMoment" in text
    for name in ("nano_dy.root", "nano_dy_rntuple.root"):
        assert not difference(expected, ours(written, folder / name), momenta=momenta)


@pytest.mark.parametrize("text", BENCHMARKS.values(), ids=BENCHMARKS)
def test_benchmarks_equal_func_adl_uproot(peer: Peer, text: str) -> None:
    """The queries are the benchmarks of analysis languages."""
    written, path = query(text, "Events"), coffea_samples() / "nano_tt_v12.root"
    expected = peer.columns(written, path)
    assert not difference(expected, ours(written, path), momenta="FourMoment" in text)
    assert len(next(iter(expected.values()))) > 0


@pytest.mark.parametrize("name", WHOLE_EVENTS)
def test_whole_events_equal_func_adl_uproot(peer: Peer, name: str) -> None:
    """All readable branches agree, with their order, types and values."""
    path = sample(name) if name.startswith("uproot-") else coffea_samples() / name
    written = query("Select(lambda e: e)", WHOLE_EVENTS[name])
    found = ours(written, path)
    assert not difference(peer.columns(written, path), found)
    assert found


def test_names_with_dots_equal_func_adl_uproot(peer: Peer) -> None:
    """PHYSLITE has such names. Only this service also reads them without brackets, after a dot."""
    path = coffea_samples() / "PHYSLITE_example.root"
    written = query(PHYSLITE, "CollectionTree")
    expected = peer.columns(written, path)
    dotted = query(re.sub(r"\['(\w+)\.(\w+)'\]", r".\1.\2", PHYSLITE), "CollectionTree")
    assert dotted != written
    for one in (written, dotted):
        assert not difference(expected, ours(one, path))


@pytest.mark.parametrize("tree", ["", " 'bogus.root'"])
def test_query_without_a_tree_equals_func_adl_uproot(peer: Peer, tree: str) -> None:
    """It means the only tree of the file."""
    written = query("e.NJet").replace(" 'bogus.root' 'events'", tree)
    assert "events" not in written
    assert not difference(peer.columns(written, HZZ), ours(written, HZZ))


@pytest.mark.parametrize("text", lines(SAME)[::8])
def test_spellings_of_operators_equal_func_adl_uproot(peer: Peer, text: str) -> None:
    """An operator may be a method, a function or a node."""
    method = query(text)
    for spelling in ("function", "node"):
        other = respelled(event_loop.read(method), spelling)
        assert other != method
        assert "Select'" not in other
        momenta = "FourMoment" in text
        assert not difference(peer.columns(other, HZZ), ours(method, HZZ), momenta=momenta)
        assert not difference(ours(other, HZZ), ours(method, HZZ))


def respelled(form: event_loop.Form, spelling: str) -> str:
    """Return a query with its operators as functions or nodes instead of methods."""
    if isinstance(form, str):
        return form
    parts = form
    if form[0] == "call" and isinstance(form[1], list):
        _, source, name = form[1]
        if (operator := name.strip("'")) in event_loop.OPERATORS:
            head = [operator] if spelling == "node" else ["call", operator]
            parts = [*head, source, *form[2:]]
    return f"({' '.join(respelled(one, spelling) for one in parts)})"


@pytest.mark.parametrize("number", SEEDS)
def test_generated_queries_equal_func_adl_uproot(peer: Peer, tmp_path: Path, number: int) -> None:
    """The trees are generated, too. func-adl-uproot can run enough of the queries.

    Every run tries two seeds, and the long run tries more.
    """
    refused, different = [], []
    for at, (tree, texts) in enumerate(made_up(number, TREES, QUERIES)):
        path = tmp_path / f"{at}.root"
        tree.write(path)
        for text in texts:
            try:
                expected = peer.columns(text, path)
            except RaisedError as error:
                refused.append((text, error))
                continue
            momenta = "FourMoment" in text
            if found := difference(expected, ours(text, path), momenta=momenta):
                different.append((text, found))
    assert different == []
    assert len(refused) < (1 - KNOWN) * TREES * QUERIES
