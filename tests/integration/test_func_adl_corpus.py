"""Real func_adl queries of clients on real files, compared with plain uproot and awkward."""

import math
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import FormatError, QueryError, QueryTypeError, UnknownNameError
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.model import ResultFormat
from tests.support import sample

HZZ, ZMUMU = sample("uproot-HZZ.root"), sample("uproot-Zmumu.root")
E = "(call EventDataset 'bogus.root' 'events')"
PT = "(call (attr (attr e 'Jet_Px') 'Where') (lambda (list p) (> p 20)))"


def select(*fields: str, source: str = E) -> str:
    """Return a query that gives a record of named columns."""
    names = " ".join(f"'{field.split('=', 1)[0]}'" for field in fields)
    values = " ".join(field.split("=", 1)[1] for field in fields)
    return f"(call Select {source} (lambda (list e) (dict (list {names}) (list {values}))))"


def where(condition: str) -> str:
    """Return the events that satisfy a condition."""
    return f"(call Where {E} (lambda (list e) {condition}))"


def run(
    query: str,
    path: Path = HZZ,
    result_format: ResultFormat = ResultFormat.PARQUET,
    budget: int = 1 << 20,
) -> dict[str, Any]:
    """Return the columns of a query on a file, in one piece."""
    (extraction,) = FuncAdl().compile(query, result_format).extractions
    with open_root(str(path)) as file:
        tree = file.tree(extraction.tree or file.trees[0])
        found = chunks(extraction.bind(tree), tree, budget=budget)
        pieces = [columns for _, _, columns in found if columns]
    return {name: ak.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def chosen(array: Any) -> Any:
    """Return all pairs of elements of each list, as lists."""
    pairs = ak.unzip(ak.combinations(array, 2))
    lists = ak.concatenate([one[..., np.newaxis] for one in pairs], axis=-1)
    return ak.from_regular(lists, axis=None)


def differences(array: Any) -> Any:
    """Return for each element of a list its difference from all of them."""
    one, other = ak.unzip(ak.cartesian([array, array], nested=True))
    return one - other


MANY = "(lambda (list e) (> (attr e 'NJet') 2))"
NUMBER = "(lambda (list e) (dict (list 'n') (list (attr e 'NJet'))))"
KEPT = f"(call Select {E} (lambda (list e) {PT}))"
PAIRS = "(call Select r (lambda (list p) (call Select r (lambda (list q) (- p q)))))"
SELECTED = select("px=(attr e 'Jet_Px')")

CASES: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "dict": (
        select("px=(subscript e 'Jet_Px')", "n=(attr e 'NJet')"),
        lambda e: {"px": e.Jet_Px, "n": e.NJet},
    ),
    "bare column": (
        f"(call Select {E} (lambda (list e) (attr e 'Jet_Px')))",
        lambda e: {"branch": e.Jet_Px},
    ),
    "tuple": (
        f"(call Select {E} (lambda (list e) (list (attr e 'MET_px') (attr e 'MET_py'))))",
        lambda e: {"0": e.MET_px, "1": e.MET_py},
    ),
    "node spelling": (
        f"(Select (Where {E} {MANY}) {NUMBER})",
        lambda e: {"n": e.NJet[e.NJet > 2]},
    ),
    "method spelling": (
        f"(call (attr (call (attr {E} 'Where') {MANY}) 'Select') {NUMBER})",
        lambda e: {"n": e.NJet[e.NJet > 2]},
    ),
    "metadata": (
        select("n=(attr e 'NJet')", source=f"(call MetaData {E} (dict (list 'a') (list 1)))"),
        lambda e: {"n": e.NJet},
    ),
    "and, or": (
        select(
            "n=(attr e 'NJet')",
            source=where(
                "(or (and (> (attr e 'NJet') 1) (> (attr e 'MET_px') 0)) (>= (attr e 'NMuon') 2))"
            ),
        ),
        lambda e: {"n": e.NJet[((e.NJet > 1) & (e.MET_px > 0)) | (e.NMuon >= 2)]},
    ),
    "jets by a condition": (select(f"px={PT}"), lambda e: {"px": e.Jet_Px[e.Jet_Px > 20]}),
    "jets by a mask": (
        select("px=(subscript (attr e 'Jet_Px') (> (attr e 'Jet_E') 50))"),
        lambda e: {"px": e.Jet_Px[e.Jet_E > 50]},
    ),
    "filter after select": (
        f"(call Where {SELECTED} (lambda (list r) (> (attr r 'px') 20)))",
        lambda e: {"px": e.Jet_Px[e.Jet_Px > 20]},
    ),
    "count": (
        select(f"n=(call (attr {PT} 'Count'))", source=where("(> (attr e 'NJet') 0)")),
        lambda e: {"n": ak.sum(e.Jet_Px > 20, axis=1)[e.NJet > 0]},
    ),
    "sum, max, min": (
        select(
            "s=(call (attr (attr e 'Jet_Px') 'Sum'))",
            "x=(call (attr (attr e 'Jet_E') 'Max'))",
            "n=(call min (attr e 'Jet_E'))",
        ),
        lambda e: {
            "s": ak.sum(e.Jet_Px, axis=1),
            "x": ak.max(e.Jet_E, axis=1),
            "n": ak.min(e.Jet_E, axis=1),
        },
    ),
    "first without a guard": (
        select("lead=(call (attr (attr e 'Jet_Px') 'First'))"),
        lambda e: {"lead": ak.firsts(e.Jet_Px)},
    ),
    "last, element, index": (
        select(
            "l=(call (attr (attr e 'Jet_Px') 'Last'))",
            "e=(call (attr (attr e 'Jet_Px') 'ElementAt') 1)",
            "i=(subscript (attr e 'Jet_Px') 1)",
        ),
        lambda e: {
            "l": ak.firsts(e.Jet_Px[:, ::-1]),
            "e": ak.firsts(e.Jet_Px[:, 1:]),
            "i": ak.firsts(e.Jet_Px[:, 1:]),
        },
    ),
    "outer names": (
        select(
            "d=(call (attr (attr e 'Jet_Px') 'Select') (lambda (list p) (- p (attr e 'MET_px'))))"
        ),
        lambda e: {"d": e.Jet_Px - e.MET_px},
    ),
    "pairs": (
        select(
            "m=(call (attr (attr e 'Muon_Px') 'SelectMany') (lambda (list p) (call (attr "
            "(attr e 'Jet_Px') 'Select') (lambda (list q) (* p q)))))"
        ),
        lambda e: {
            "m": ak.prod(
                ak.concatenate(
                    [x[..., np.newaxis] for x in ak.unzip(ak.cartesian([e.Muon_Px, e.Jet_Px]))],
                    axis=-1,
                ),
                axis=-1,
            )
        },
    ),
    "pairs of what an earlier stage has left": (
        f"(call Select {KEPT} (lambda (list r) {PAIRS}))",
        lambda e: {"branch": differences(e.Jet_Px[e.Jet_Px > 20])},
    ),
    "flatten": (
        f"(call SelectMany {E} (lambda (list e) (attr e 'Jet_Px')))",
        lambda e: {"branch": ak.flatten(e.Jet_Px)},
    ),
    "flatten records": (
        select("p=(attr e 'Jet_Px')", "n=(attr e 'NJet')").replace("Select", "SelectMany", 1),
        lambda e: {
            "p": ak.flatten(e.Jet_Px),
            "n": ak.flatten(ak.broadcast_arrays(e.Jet_Px, e.NJet)[1]),
        },
    ),
    "choose": (
        select("c=(call (attr (attr e 'Jet_Px') 'Choose') 2)"),
        lambda e: {"c": chosen(e.Jet_Px)},
    ),
    "elements of what is chosen": (
        select(
            "m=(call (attr (call (attr (attr e 'Jet_Px') 'Choose') 2) 'Select') "
            "(lambda (list c) (call (attr c 'Max'))))",
            "t=(call (attr (call (attr (attr e 'Jet_Px') 'Choose') 2) 'Select') "
            "(lambda (list c) (subscript c 1)))",
        ),
        lambda e: {
            "m": ak.max(chosen(e.Jet_Px), axis=-1),
            "t": ak.firsts(chosen(e.Jet_Px)[:, :, 1:], axis=2),
        },
    ),
    "more than there are": (
        select("n=(call (attr (call (attr (attr e 'Jet_Px') 'Choose') 32) 'Count'))"),
        lambda e: {"n": e.NJet.to_numpy().astype("i8") * 0},
    ),
    "one of some": (
        select("x=(call (attr (list 0 (attr e 'NMuon')) 'Contains') (attr e 'NJet'))"),
        lambda e: {"x": (e.NJet == 0) | (e.NJet == e.NMuon)},
    ),
    "order": (
        select(
            "s=(call (attr (attr e 'Jet_Px') 'OrderByDescending') (lambda (list p) (abs p)))"
        ).replace("(abs p)", "(call abs p)"),
        lambda e: {"s": e.Jet_Px[ak.argsort(abs(e.Jet_Px), ascending=False, stable=True)]},
    ),
    "any, all": (
        select(
            "y=(call (attr (attr e 'Jet_Px') 'Any') (lambda (list p) (> p 50)))",
            "l=(call (attr (attr e 'Jet_Px') 'All') (lambda (list p) (> p 0)))",
        ),
        lambda e: {"y": ak.any(e.Jet_Px > 50, axis=1), "l": ak.all(e.Jet_Px > 0, axis=1)},
    ),
    "functions": (
        select(
            "a=(call (attr np 'hypot') (attr e 'MET_px') (attr e 'MET_py'))",
            "b=(call sqrt (call abs (attr e 'Jet_Px')))",
            "c=(call (attr math 'atan2') (attr e 'MET_py') (attr e 'MET_px'))",
            "d=(call (attr ak 'num') (attr e 'Jet_Px'))",
            "f=(call len (attr e 'Jet_Px'))",
        ),
        lambda e: {
            "a": np.hypot(e.MET_px, e.MET_py),
            "b": np.sqrt(abs(e.Jet_Px)),
            "c": np.arctan2(e.MET_py, e.MET_px),
            "d": ak.num(e.Jet_Px),
            "f": ak.num(e.Jet_Px),
        },
    ),
    "functions of numpy that have a symbol": (
        select(
            "a=(call (attr np 'add') (attr e 'MET_px') 1)",
            "b=(call (attr np 'square') (attr e 'Jet_Px'))",
            "c=(call (attr np 'maximum') (attr e 'MET_px') (attr e 'MET_py'))",
            "d=(call (attr np 'fmod') (attr e 'MET_px') 2)",
            "f=(call (attr np 'where') (> (attr e 'NJet') 1) (attr e 'MET_px') 0)",
            "g=(call (attr math 'degrees') (attr e 'MET_px'))",
            "h=(call pow (attr e 'MET_px') 2)",
        ),
        lambda e: {
            "a": e.MET_px + 1,
            "b": e.Jet_Px**2,
            "c": np.maximum(e.MET_px, e.MET_py),
            "d": np.fmod(e.MET_px, 2),
            "f": ak.where(e.NJet > 1, e.MET_px, np.float32(0)),
            "g": np.degrees(e.MET_px),
            "h": e.MET_px**2,
        },
    ),
    "condition and constant": (
        select("x=(if (> (attr e 'MET_px') 0) (attr e 'MET_px') (attr e 'MET_py'))", "k=1"),
        lambda e: {
            "x": ak.where(e.MET_px > 0, e.MET_px, e.MET_py),
            "k": np.ones(len(e), dtype="i8"),
        },
    ),
    "fold": (
        select("s=(call (attr (attr e 'Jet_Px') 'Aggregate') 10 (lambda (list acc v) (+ acc v)))"),
        lambda e: {"s": 10 + ak.sum(e.Jet_Px, axis=1)},
    ),
    "nested record": (
        select("jet=(dict (list 'px') (list (attr e 'Jet_Px')))"),
        lambda e: {"jet": ak.zip({"px": e.Jet_Px}, depth_limit=1)},
    ),
}


@pytest.fixture(scope="module")
def events() -> Any:
    """Return all columns of the file as uproot reads them."""
    with uproot.open({HZZ: "events"}) as tree:
        return tree.arrays()


@pytest.mark.parametrize("budget", [1 << 14, 1 << 30])
@pytest.mark.parametrize("case", CASES)
def test_columns_equal_those_of_plain_awkward(events: Any, case: str, budget: int) -> None:
    """Names, types and all values agree, for one read of the file and for small ranges."""
    query, oracle = CASES[case]
    got = run(query, budget=budget)
    expected = oracle(events)
    assert list(got) == list(expected)
    for name, array in expected.items():
        wanted = ak.Array(array)
        assert str(got[name].type) == str(wanted.type), name
        assert ak.almost_equal(got[name], wanted, rtol=1e-6), name


def test_four_vectors_add_up() -> None:
    """The query computes the mass of the first and last muon, as in the published examples."""
    two = where("(== (attr e 'NMuon') 2)")
    zipped = (
        "(call Zip (dict (list 'px' 'py' 'pz' 'E') (list (attr e 'Muon_Px') (attr e 'Muon_Py') "
        "(attr e 'Muon_Pz') (attr e 'Muon_E'))))"
    )
    query = (
        f"(call Select (call Select {two} (lambda (list e) "
        f"(call (attr {zipped} 'ToFourMomenta')))) (lambda (list m) (dict (list 'mass') (list "
        "(attr (+ (call (attr m 'First')) (call (attr m 'Last'))) 'mass')))))"
    )
    mass = run(query)["mass"]
    assert len(mass) == 1371
    assert mass[0] == pytest.approx(90.2278, abs=1e-3)


def test_query_adds_the_momenta_of_three_jets() -> None:
    """A benchmark of analysis languages (ADL 6) asks for the triplet with a mass near 172.5."""
    jets = "(dict (list 'px' 'py' 'pz' 'E') (list {} {} {} {}))".format(
        *(f"(attr e 'Jet_{part}')" for part in ("Px", "Py", "Pz", "E"))
    )
    total = "(call (attr (call Select t (lambda (list j) (call (attr j 'ToFourMomentum')))) 'Sum'))"
    query = (
        f"(call Select (call Select {E} (lambda (list e) (call (attr (call Zip {jets}) "
        f"'Choose') 3))) (lambda (list ts) (dict (list 'pt' 'mass') (list "
        f"(call Select ts (lambda (list t) (attr {total} 'pt'))) "
        f"(attr (call (attr (call OrderBy (call Select ts (lambda (list t) {total})) "
        f"(lambda (list p) (call abs (- (attr p 'mass') 172.5)))) 'First')) 'mass')))))"
    )
    got = run(query)
    wanted: dict[str, list[Any]] = {"pt": [], "mass": []}
    with uproot.open(HZZ) as file:
        tree = file["events"]
        parts = [tree[f"Jet_{part}"].array().to_list() for part in ("Px", "Py", "Pz", "E")]
    for event in zip(*parts, strict=True):
        triplets = combinations(zip(*event, strict=True), 3)
        sums = [[math.fsum(one) for one in zip(*three, strict=True)] for three in triplets]
        wanted["pt"].append([math.hypot(px, py) for px, py, _, _ in sums])
        masses = [math.sqrt(e**2 - px**2 - py**2 - pz**2) for px, py, pz, e in sums]
        wanted["mass"].append(min(masses, key=lambda mass: abs(mass - 172.5), default=None))
    assert sum(map(len, wanted["pt"])) == 336
    assert ak.num(got["pt"]).tolist() == [len(one) for one in wanted["pt"]]
    assert ak.flatten(got["pt"]).tolist() == pytest.approx(list(chain(*wanted["pt"])))
    assert got["mass"].tolist() == [
        None if one is None else pytest.approx(one) for one in wanted["mass"]
    ]


def test_query_without_a_tree_means_the_only_tree() -> None:
    """Clients write ``'None'`` if a YAML query does not name a tree."""
    for source in ("(call EventDataset)", "(call EventDataset 'bogus.root' 'None')"):
        got = run(select("m=(attr e 'M')", source=source), ZMUMU)
        assert len(got["m"]) == 2304


def test_unknown_branch_is_named_with_its_position_in_the_query() -> None:
    """The hint has the nearest name."""
    with pytest.raises(
        UnknownNameError, match=r"no branch Jet_PX, at character \d+: \(attr e"
    ) as e:
        run(select("x=(attr e 'Jet_PX')"))
    assert "did you mean Jet_Px" in e.value.hint


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            select("x=(+ (attr e 'Jet_Px') (if (> (attr e 'NJet') 1) 'a' 'b'))"),
            "texts can only be compared",
        ),
        (select("x=(call (attr (attr e 'MET_px') 'Count'))"), "Count needs a list"),
        (select("x=(call Zip (attr e 'Jet_Px'))"), "Zip needs a record of lists"),
        (select("x=(call (attr ak 'num') (attr e 'Jet_Px') 0)"), "num with axis=0 works across"),
        (select("x=(+ (attr e 'Jet_Px') (attr e 'Muon_Px'))"), "cannot compute this"),
        (select("x=(call (attr (attr e 'Jet_Px') 'Sum'))", source=where("(attr e 'Jet_Px')")), ""),
    ],
)
def test_type_error_is_shown_with_its_position_in_the_query(query: str, words: str) -> None:
    """The service knows the types from the first file."""
    if words:
        with pytest.raises(QueryTypeError, match=rf"{words}.*at character \d+"):
            run(query)
    else:
        with pytest.raises(QueryTypeError, match="several values for each event"):
            run(query)


def test_query_with_too_many_stages_is_rejected() -> None:
    """Each stage works on the result of the one before, so they nest however they are written."""
    stage = "(lambda (list r) (dict (list 'a') (list (+ (attr r 'a') 1))))"
    query = f"(Select {E} (lambda (list e) (dict (list 'a') (list (attr e 'NJet')))))"
    for _ in range(140):
        query = f"(Select {query} {stage})"
    with pytest.raises(QueryError, match="nested too deeply"):
        run(query)


def test_ttree_rejects_values_that_may_be_missing() -> None:
    """An element that every event has is a plain column in a TTree."""
    lead = "lead=(call (attr (attr e 'Jet_Px') 'First'))"
    guarded = select(lead, source=where("(> (attr e 'NJet') 0)"))
    assert str(run(guarded, result_format=ResultFormat.TTREE)["lead"].type) == "1705 * float32"
    for nothing in (select(lead), select(lead, source=where("(>= (attr e 'NJet') 0)"))):
        with pytest.raises(FormatError, match="lead"):
            run(nothing, result_format=ResultFormat.TTREE)
