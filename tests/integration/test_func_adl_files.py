"""Files that func_adl queries produce: their trees, columns and values, in every format."""

from pathlib import Path
from typing import Any

import awkward as ak
import pyarrow.parquet as pq
import pytest
import uproot

from servicex_server.model import Limits, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration.func_adl_cases import query
from tests.integration.func_adl_peer import ours
from tests.support import sample

HZZ, ZMUMU = sample("uproot-HZZ.root"), sample("uproot-Zmumu.root")

NAMES: dict[str, tuple[str, list[str], list[str]]] = {
    "a value": ("e.MET_px", ["branch"], []),
    "a list": ("e.Jet_Px", ["branch"], ["nbranch"]),
    "a tuple": ("(e.MET_px, e.Jet_Px)", ["0", "1"], ["n1"]),
    "a record": ("{'px': e.Jet_Px, 'n': e.NJet}", ["px", "n"], ["npx"]),
    "a record beside a counter": ("{'px': e.Jet_Px, 'npx': e.NJet}", ["px", "npx"], []),
    "records in a list": ("Zip({'x': e.Jet_Px, 'y': e.Jet_Py})", ["x", "y"], ["nx", "ny"]),
    "rows of records": ("SelectMany(lambda e: {'x': e.Jet_Px, 'n': e.NJet})", ["x", "n"], []),
    "no events": ("Where(lambda e: e.NJet > 99).Select(lambda e: {'a': e.NJet})", ["a"], []),
    "texts": ("{'t': e.Type, 'm': e.M}", ["t", "m"], []),
}
"""A query, its columns, and the branches that count lists in a TTree."""


def written(text: str, path: Path, result_format: ResultFormat, target: Path) -> None:
    """Do the work for one file."""
    outcome = transform(
        TaskSpec(
            request_id="r",
            file_id=1,
            attempt=1,
            replicas=(Replica(str(path)),),
            language="uproot",
            selection=text,
            format=result_format,
            object_name="x",
            upload_url=target.as_uri(),
            limits=Limits(),
        )
    )
    assert outcome.error is None, outcome.error


def read(target: Path, result_format: ResultFormat) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the trees of a file with their kinds, and the columns of the first."""
    if result_format is ResultFormat.PARQUET:
        table = pq.read_table(target)
        return {}, {name: ak.from_arrow(table[name]) for name in table.column_names}
    with uproot.open(target) as file:
        trees = {name: str(kind) for name, kind in file.classnames(cycle=False).items()}
        tree = file[next(iter(trees))]
        columns = tree.arrays()
        return trees, {name: columns[name] for name in columns.fields}


KINDS = {
    ResultFormat.PARQUET: {},
    ResultFormat.TTREE: {"servicex": "TTree"},
    ResultFormat.RNTUPLE: {"servicex": "ROOT::RNTuple"},
}


@pytest.mark.parametrize("result_format", ResultFormat)
@pytest.mark.parametrize("name", NAMES)
def test_trees_and_columns_have_the_names_of_upstream(
    tmp_path: Path, name: str, result_format: ResultFormat
) -> None:
    """The tree is ``servicex``. A column has the name of its key or number, or else ``branch``."""
    text, columns, counters = NAMES[name]
    source = ZMUMU if name == "texts" else HZZ
    target = tmp_path / "result"
    written(query(text), source, result_format, target)
    trees, found = read(target, result_format)
    assert trees == KINDS[result_format]
    expected = ours(query(text), source)
    assert list(expected) == columns
    more = counters if result_format is ResultFormat.TTREE else []
    assert sorted(set(found) - {f"{one}_counter" for one in found}) == sorted([*columns, *more])
    for column in columns:
        assert found[column].to_list() == expected[column].to_list()


@pytest.mark.parametrize("result_format", [ResultFormat.PARQUET, ResultFormat.RNTUPLE])
def test_missing_value_is_missing_in_the_file(tmp_path: Path, result_format: ResultFormat) -> None:
    """An empty list has no first element. The server rejects such a query for a TTree."""
    written(query("{'lead': e.Jet_Px.First()}"), HZZ, result_format, tmp_path / "result")
    _, found = read(tmp_path / "result", result_format)
    expected = ours(query("{'lead': e.Jet_Px.First()}"), HZZ)
    assert found["lead"].to_list() == expected["lead"].to_list()
    assert expected["lead"].to_list().count(None) == 716
