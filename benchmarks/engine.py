"""The columnar engine on one core, against uproot by itself and against bare decompression."""

from pathlib import Path

from benchmarks.peers import Job
from benchmarks.race import HEADINGS, Contender, Race, race, skipped
from benchmarks.report import Section
from benchmarks.samples import BLOCK, COLUMNS, CUTS, SMALL_BLOCK, coffea_sample, prepared

MILLION = 1_000_000
LZMA_EVENTS = 250_000
"""Of the lzma file, which takes ten times as long as the others to read."""

PLAIN = (
    "The peer is what a physicist writes: uproot's `iterate(columns, cut=...)`, "
    "`ak.concatenate`, `ak.to_arrow_table`, `pyarrow.parquet.ParquetWriter` with its defaults. "
)
METHOD = (
    "Both do the same file by turns, each in a warm process of its own on one core, every time "
    "under a new name; medians of seconds. `ratio` is peer / ours; `memory` is the peak of the "
    "process. Files are made like NanoAOD: 35 columns, jagged and flat, floats of 10 to 12 bits "
    "of mantissa, clusters of 100,000 events; 11 columns are asked for, as Parquet."
)

SAMPLES = {
    "PHYSLITE_example.root": (
        "CollectionTree",
        [
            *(f"AnalysisElectronsAuxDyn.{name}" for name in ("pt", "eta", "phi")),
            *(f"AnalysisMuonsAuxDyn.{name}" for name in ("pt", "eta", "phi")),
            *(f"AnalysisJetsAuxDyn.{name}" for name in ("pt", "eta", "phi", "m")),
        ],
    ),
    "nano_tt_v15.root": (
        "Events",
        "run event PuppiMET_pt Muon_pt Muon_eta Muon_phi Jet_pt Jet_eta Jet_phi Jet_mass".split(),
    ),
}
"""Real files of many branches and few events, and ten of their columns."""


def job_on(path: Path, cut: str | None = None) -> Job:
    """Return the usual job: 11 of 35 columns."""
    return {"path": str(path), "tree": "Events", "columns": COLUMNS, "cut": cut}


def against_plain(repeats: int) -> tuple[list[Section], Race]:
    """Measure 11 of 35 columns of each kind of file; return also the race of zlib without a cut."""
    zlib, zstd = prepared("zlib", MILLION), prepared("zstd", MILLION)
    small = prepared("zlib", MILLION, block=SMALL_BLOCK)
    rntuple = prepared("zstd", MILLION, rntuple=True)
    few, very_few = CUTS.items()
    rows = []
    first: Race | None = None
    for what, path, (kept, cut), asked in (
        ("zlib", zlib, ("all", None), "2.5"),
        ("zlib", zlib, few, "4"),
        ("zlib", zlib, very_few, "4"),
        ("zstd", zstd, ("all", None), "2"),
        ("zstd", zstd, few, "2"),
        ("zstd", zstd, very_few, "2"),
        ("lz4", prepared("lz4", MILLION), ("all", None), ""),
        ("lzma", prepared("lzma", LZMA_EVENTS), ("all", None), ""),
        ("zlib, baskets of 48 kB", small, ("all", None), "3"),
        ("zlib, baskets of 48 kB", small, few, ""),
        ("RNTuple, zstd", rntuple, ("all", None), ""),
        ("RNTuple, zstd", rntuple, few, ""),
    ):
        title = f"{what}, {kept} events kept"
        events = LZMA_EVENTS if what == "lzma" else MILLION
        how = f"{events / MILLION:g} M events, {path.stat().st_size / 1e6:.0f} MB"
        try:
            run = race("plain", job_on(path, cut), repeats)
        except LookupError as error:
            rows.append(skipped(title, asked, error))
            continue
        first = first or run
        rows.append(run.row(title, asked, how))
    sections = [Section("Engine against uproot by itself", HEADINGS, tuple(rows), PLAIN + METHOD)]
    assert first is not None
    return sections, first


def real_files(repeats: int) -> Section:
    """Measure ten columns of small real files, where opening is most of the work."""
    rows = []
    for name, (tree, columns) in SAMPLES.items():
        try:
            path = coffea_sample(name)
            run = race("plain", {"path": str(path), "tree": tree, "columns": columns}, 2 * repeats)
        except LookupError as error:
            rows.append(skipped(name, "10", error))
            continue
        rows.append(run.row(name, "10", f"10 columns, {path.stat().st_size / 1e6:.1f} MB"))
    return Section("Real files of many branches", HEADINGS, tuple(rows), PLAIN)


FLOOR = ("what", "ours", "decompression", "ours / decompression", "asked for", "of CPU", "how")


def floor(repeats: int) -> Section:
    """Measure us against reading and decompressing the baskets alone."""
    rows: list[tuple[str, ...]] = []
    for codec in ("zlib", "zstd"):
        path = prepared(codec, MILLION)
        for kept, cut, asked in (
            ("0.3 %", CUTS["0.3 %"], "at most 1.5"),
            ("all", None, "reported"),
        ):
            title = f"{codec}, {kept} events kept"
            try:
                run = race("decompression", job_on(path, cut) | {"baskets_of": str(path)}, repeats)
            except LookupError as error:
                rows.append((title, "", "", "", asked, "", f"skipped: {error}"))
                continue
            row = run.row("", "", "")
            part = "reading alone, in effect" if cut else "with all that Parquet costs"
            rows.append(
                (title, *row[1:3], f"{1 / run.ratio:.2f}", asked, f"{1 / run.cpu_ratio:.2f}", part)
            )
    note = (
        f"What cannot be saved: reading the baskets of the 11 columns, of clusters of {BLOCK:,} "
        "events, and decompressing them, by libdeflate for zlib and by pyarrow for zstd. A cut "
        "that keeps next to nothing still needs all baskets."
    )
    return Section("Engine against bare decompression", FLOOR, tuple(rows), note)


def memory(short: Race, *, large: bool) -> Section:
    """Measure the peak memory of one process on 1 M, 10 M and, on request, 20 M events."""
    ours, peer = short.ours[-1].peak, short.peer[-1].peak
    rows = [
        ("1 M events, ours", f"{ours / 1e6:.0f} MB", "", "11 of 35 columns, zlib, no cut"),
        (
            "the same, over uproot by itself",
            f"{ours / peer:.2f}",
            "at most 0.5",
            f"the peer: {peer / 1e6:.0f} MB",
        ),
    ]
    for millions in (10, 20) if large else (10,):
        path = prepared("zlib", millions * MILLION)
        with Contender("ours") as contender:
            run = contender.run(job_on(path))
        speed = path.stat().st_size / 1e6 / run.seconds
        rows.append(
            (
                f"{millions} M events, ours",
                f"{run.peak / 1e6:.0f} MB",
                "under 1000 MB" if millions > 10 else "",  # noqa: PLR2004  # the largest
                f"{path.stat().st_size / 1e9:.1f} GB in {run.seconds:.0f} s, {speed:.0f} MB/s",
            )
        )
        rows.append((f"{millions} M over 1 M events", f"{run.peak / ours:.2f}", "within 1.1", ""))
    if not large:
        rows.append(("20 M events, ours", "", "under 1000 MB", "skipped: only with --large"))
    note = "Peak of the resident memory of a process that does nothing else, libraries included."
    return Section(
        "Memory of the engine", ("what", "result", "asked for", "how"), tuple(rows), note
    )


def engine(repeats: int, *, large: bool) -> list[Section]:
    """Measure all of this subject."""
    sections, first = against_plain(repeats)
    return [*sections, real_files(repeats), floor(repeats), memory(first, large=large)]
