"""What the service makes of func_adl, held against func-adl-uproot and a loop over the events.

Where both differ the loop tells which of them is right.
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
    """Give what a loop over the events of HZZ makes of queries."""
    return Loop(HZZ, "events")


class Loop:
    """A loop over the events of a tree."""

    def __init__(self, path: Path, tree: str) -> None:
        with uproot.open({path: tree}) as opened:
            self._events = opened.arrays().to_list()

    def columns(self, text: str) -> dict[str, Any]:
        """Return the columns of a query; their types are those that their values have."""
        array = ak.Array(event_loop.rows(text, self._events))
        return {name: array[name] for name in array.fields} or {"branch": array}


@pytest.mark.parametrize("text", lines(SAME))
def test_columns_are_those_of_func_adl_uproot(peer: Peer, text: str) -> None:
    """Names, structure, kinds of numbers and values; four-momenta have 64 bits here."""
    written, momenta = query(text), "FourMoment" in text
    assert not difference(peer.columns(written, HZZ), ours(written, HZZ), momenta=momenta)


@pytest.mark.parametrize(
    ("why", "text"), [(why, text) for why, texts in DIFFERENT.items() for text in lines(texts)]
)
def test_known_differences_are_defects_of_it(peer: Peer, looped: Loop, why: str, text: str) -> None:
    """They are still there, and the loop is on our side."""
    written = query(text)
    got = ours(written, HZZ)
    assert difference(peer.columns(written, HZZ), got), f"it is no longer so that {why}"
    assert not difference(looped.columns(written), got, exact=False)


@pytest.mark.parametrize("text", lines(ONLY_HERE))
def test_what_it_refuses_is_as_in_a_loop_over_events(peer: Peer, looped: Loop, text: str) -> None:
    """First of an empty list, constants, functions of Python, loops in loops."""
    written = query(text)
    with pytest.raises(RaisedError):
        peer.columns(written, HZZ)
    assert not difference(looped.columns(written), ours(written, HZZ), exact=False)


@pytest.mark.parametrize(("name", "tree"), SHAPES)
def test_other_shapes_are_as_with_func_adl_uproot(peer: Peer, name: str, tree: str) -> None:
    """And as in a loop over the events, which alone tells of what the other refuses."""
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
def test_nanoaod_is_as_with_func_adl_uproot(peer: Peer, text: str) -> None:
    """Also where the same events are an RNTuple, which func-adl-uproot does not read."""
    written, folder = query(text, "Events"), coffea_samples()
    expected, momenta = peer.columns(written, folder / "nano_dy.root"), "FourMoment" in text
    for name in ("nano_dy.root", "nano_dy_rntuple.root"):
        assert not difference(expected, ours(written, folder / name), momenta=momenta)


@pytest.mark.parametrize("text", BENCHMARKS.values(), ids=BENCHMARKS)
def test_benchmarks_are_as_with_func_adl_uproot(peer: Peer, text: str) -> None:
    """The queries by which languages of analyses are compared."""
    written, path = query(text, "Events"), coffea_samples() / "nano_tt_v12.root"
    expected = peer.columns(written, path)
    assert not difference(expected, ours(written, path), momenta="FourMoment" in text)
    assert len(next(iter(expected.values()))) > 0


@pytest.mark.parametrize("name", WHOLE_EVENTS)
def test_whole_events_are_as_with_func_adl_uproot(peer: Peer, name: str) -> None:
    """All branches that can be read, in their order, with their types and values."""
    path = sample(name) if name.startswith("uproot-") else coffea_samples() / name
    written = query("Select(lambda e: e)", WHOLE_EVENTS[name])
    found = ours(written, path)
    assert not difference(peer.columns(written, path), found)
    assert found


def test_names_with_dots_are_as_with_func_adl_uproot(peer: Peer) -> None:
    """Of PHYSLITE; and a name after a dot means the same, which func-adl-uproot does not know."""
    path = coffea_samples() / "PHYSLITE_example.root"
    written = query(PHYSLITE, "CollectionTree")
    expected = peer.columns(written, path)
    dotted = query(re.sub(r"\['(\w+)\.(\w+)'\]", r".\1.\2", PHYSLITE), "CollectionTree")
    assert dotted != written
    for one in (written, dotted):
        assert not difference(expected, ours(one, path))


@pytest.mark.parametrize("tree", ["", " 'bogus.root'"])
def test_the_only_tree_is_meant_as_with_func_adl_uproot(peer: Peer, tree: str) -> None:
    """A query without the name of a tree."""
    written = query("e.NJet").replace(" 'bogus.root' 'events'", tree)
    assert "events" not in written
    assert not difference(peer.columns(written, HZZ), ours(written, HZZ))


@pytest.mark.parametrize("text", lines(SAME)[::8])
def test_spellings_mean_the_same_as_with_func_adl_uproot(peer: Peer, text: str) -> None:
    """An operator is a method, a function or a node."""
    method = query(text)
    for spelling in ("function", "node"):
        other = respelled(event_loop.read(method), spelling)
        assert other != method
        assert "Select'" not in other
        momenta = "FourMoment" in text
        assert not difference(peer.columns(other, HZZ), ours(method, HZZ), momenta=momenta)
        assert not difference(ours(other, HZZ), ours(method, HZZ))


def respelled(form: event_loop.Form, spelling: str) -> str:
    """Return a query with operators in another spelling than that of methods."""
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
def test_made_up_queries_are_as_with_func_adl_uproot(
    peer: Peer, tmp_path: Path, number: int
) -> None:
    """On made-up trees; enough of them are such that it can run them.

    Two seeds are tried in each run of the tests, more of the same kind in the long one.
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
