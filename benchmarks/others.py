"""The same columns by larger tools: ROOT's RDataFrame, and dask-awkward as coffea uses it."""

from benchmarks.engine import MILLION, job_on
from benchmarks.race import HEADINGS, race, skipped
from benchmarks.report import Section
from benchmarks.samples import CUTS, prepared


def root(repeats: int) -> list[Section]:
    """Measure a ROOT file to a ROOT file, against RDataFrame's Snapshot."""
    path = prepared("zlib", MILLION)
    rows = []
    for kept, cut, codec, asked in (
        ("all", None, "zstd", "1.2"),
        ("10 %", CUTS["10 %"], "zstd", ""),
        ("all", None, "zlib", ""),
    ):
        title = f"zlib to a TTree, {kept} events kept; the peer writes {codec}"
        changes = {
            "ours": {"format": "root-file", "target": "result.root"},
            "rdataframe": {"target": "result.root", "zstd": 1 if codec == "zstd" else 0},
        }
        try:
            run = race("rdataframe", job_on(path, cut), repeats, changes=changes)
        except LookupError as error:
            rows.append(skipped(title, asked, error))
            continue
        rows.append(run.row(title, asked, "1 M events, 11 of 35 columns"))
    note = (
        "The peer is `ROOT.RDataFrame(...).Snapshot(...)` of the `root` package of PyPI, one "
        "thread, after a first Snapshot in the same process. We write zstd of level 1; its own "
        "default is zlib."
    )
    return [Section("ROOT file to ROOT file", HEADINGS, tuple(rows), note)]


def dask(repeats: int) -> list[Section]:
    """Measure Parquet from dask-awkward."""
    path = prepared("zlib", MILLION)
    rows = []
    for kept, cut in (("all", None), ("10 %", CUTS["10 %"])):
        title = f"zlib, {kept} events kept"
        try:
            run = race("dask_awkward", job_on(path, cut), repeats)
        except LookupError as error:
            rows.append(skipped(title, "", error))
            continue
        rows.append(run.row(title, "", "1 M events, 11 of 35 columns"))
    note = (
        "The peer is `uproot.dask(...)[columns]`, a cut, and `dak.to_parquet`, in ten steps of "
        "100,000 events by dask's synchronous scheduler: what coffea stands on."
    )
    return [Section("dask-awkward", HEADINGS, tuple(rows), note)]
