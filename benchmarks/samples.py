"""Input files: made like NanoAOD, of any length and codec, and real ones of published packages.

They are kept in a folder of the system's temporary folder, or in ``SERVICEX_BENCH_DATA``.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

BLOCK = 100_000
"""Events that are made and written at a time: one cluster of the file, unless told otherwise."""

SMALL_BLOCK = 4_000
"""Events of a cluster whose baskets are of about 48 kB, where uproot's are of about 1 MB."""

JAGGED: dict[str, tuple[float, dict[str, str]]] = {
    "Muon": (
        1.2,
        {"pt": "f", "eta": "f", "phi": "f", "mass": "f", "dxy": "f", "dz": "f"}
        | {"charge": "i", "tightId": "?"},
    ),
    "Electron": (
        0.9,
        {"pt": "f", "eta": "f", "phi": "f", "mass": "f", "charge": "i", "cutBased": "i"},
    ),
    "Jet": (
        5.0,
        {"pt": "f", "eta": "f", "phi": "f", "mass": "f", "area": "f", "btagDeepFlavB": "f"}
        | {"nConstituents": "i", "jetId": "i"},
    ),
    "GenPart": (12.0, {"pt": "f", "eta": "f", "phi": "f", "pdgId": "i", "status": "i"}),
}
"""Mean number of objects and the columns of each collection; 27 columns."""

FLAT = {"MET_pt": "f", "MET_phi": "f", "genWeight": "f", "PV_npvs": "i", "HLT_IsoMu24": "?"}
"""Columns of events; with ``run``, ``luminosityBlock`` and ``event`` they are 8."""

COLUMNS = (
    "MET_pt HLT_IsoMu24 Muon_pt Muon_eta Muon_phi Muon_charge "
    "Jet_pt Jet_eta Jet_phi Jet_mass Jet_btagDeepFlavB"
).split()
"""The 11 of 35 columns that most measurements ask for."""

CUTS = {"10 %": "MET_pt > 69.08", "0.3 %": "MET_pt > 174.3"}
"""Cuts by the share of events they keep: MET_pt falls off exponentially, by 1/e in 30."""

CODECS = {
    "zlib": uproot.ZLIB(1),
    "zstd": uproot.ZSTD(3),
    "lz4": uproot.LZ4(4),
    "lzma": uproot.LZMA(1),
}


def folder() -> Path:
    """Return the folder of all that is made once, outside the project."""
    name = os.environ.get("SERVICEX_BENCH_DATA")
    path = Path(name) if name else Path(tempfile.gettempdir()) / "servicex-bench-data"
    path.mkdir(parents=True, exist_ok=True)
    return path


def prepared(codec: str, events: int, *, block: int = BLOCK, rntuple: bool = False) -> Path:
    """Return a file of the cache folder; the first time it is written."""
    kind = "rntuple" if rntuple else "tree"
    path = folder() / f"nano-{kind}-{codec}-{events}-{block}-v1.root"
    if not path.exists():
        part = path.with_suffix(".part")
        nano_like(part, events, codec=codec, block=block, rntuple=rntuple)
        part.rename(path)
    return path


def nano_like(
    path: Path,
    events: int,
    *,
    seed: int = 1,
    codec: str = "zstd",
    block: int = BLOCK,
    rntuple: bool = False,
) -> Path:
    """Write a file of 35 columns in ``Events``.

    Parameters
    ----------
    path
        Where.
    events
        How many events. After the first million their content is repeated, only ``event`` and
        ``luminosityBlock`` go on: that makes a long file of any codec in little time.
    seed
        Of the random numbers.
    codec
        One of ``CODECS``.
    block
        Events of a cluster, which has one basket for each branch.
    rntuple
        Whether an RNTuple is written instead of a TTree.
    """
    compression = _remembering(CODECS[codec]) if events > _DISTINCT else CODECS[codec]
    with uproot.recreate(path, compression=compression) as file:
        tree = None
        for columns in _clusters(events, block, seed):
            if rntuple:
                columns = _by_field(columns)  # noqa: PLW2901  # the same in other form
            if tree is None:
                types = {name: ak.type(array).content for name, array in columns.items()}
                tree = (
                    file.mkrntuple("Events", columns) if rntuple else file.mktree("Events", types)
                )
                if rntuple:
                    continue  # which has written them already
            tree.extend(columns)
    return path


_DISTINCT = 1_000_000
"""Events that differ from each other."""


def _clusters(events: int, block: int, seed: int) -> Iterator[dict[str, ak.Array]]:
    """Yield the columns of each cluster; collections are arrays of lists of records."""
    made: list[dict[str, ak.Array]] = []
    for start in range(0, events, block):
        count = min(block, events - start)
        at = start % _DISTINCT // BLOCK
        if at == len(made):
            random = np.random.default_rng([seed, at])
            made.append(_random_columns(random, min(BLOCK, events - start)))
        inside = start % BLOCK
        columns = {name: array[inside : inside + count] for name, array in made[at].items()}
        number = np.arange(start, start + count)
        yield {
            "run": ak.Array(np.full(count, 362_760, "u4")),
            "event": ak.Array(number.astype("u8")),
            "luminosityBlock": ak.Array((number // 500).astype("u4")),
        } | columns


def _random_columns(random: np.random.Generator, count: int) -> dict[str, ak.Array]:
    columns = {name: ak.Array(_values(random, name, kind, count)) for name, kind in FLAT.items()}
    for collection, (mean, fields) in JAGGED.items():
        counts = random.poisson(mean, count)
        total = int(counts.sum())
        records = {field: _values(random, field, kind, total) for field, kind in fields.items()}
        columns[collection] = ak.unflatten(ak.zip(records), counts)
    return columns


def _values(random: np.random.Generator, name: str, kind: str, count: int) -> np.ndarray:
    """Return values with the precision that NanoAOD stores: ten to twelve bits of mantissa."""
    if kind == "?":
        return random.random(count) < 0.3  # noqa: PLR2004  # a share that a trigger may keep
    if kind == "i":
        return random.integers(-3, 25, count).astype("i4")
    if name in ("phi", "MET_phi"):
        return _rounded(random.uniform(-np.pi, np.pi, count), 12)
    if name in ("eta", "dxy", "dz", "genWeight"):
        return _rounded(random.normal(0, 1.5, count), 12)
    return _rounded(random.exponential(30, count), 10)


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Return float32 of so many bits of mantissa, of which the format has 23."""
    mask = np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)
    return (values.astype("f4").view("u4") & mask).view("f4")


def _by_field(columns: dict[str, ak.Array]) -> dict[str, ak.Array]:
    """Return each field of a collection as a column of its own, as NanoAOD names them."""
    flat: dict[str, ak.Array] = {}
    for name, array in columns.items():
        if name in JAGGED:
            flat |= {f"{name}_{field}": array[field] for field in ak.fields(array)}
        else:
            flat[name] = array
    return flat


def _remembering(compression: Any) -> Any:
    """Return a compression that does the same data once only."""
    compress = compression.compress
    done: dict[bytes, bytes] = {}

    def once(data: bytes) -> bytes:
        key = blake2b(data, digest_size=16).digest()
        if key not in done:
            done[key] = compress(data)
        return done[key]

    again = type(compression)(compression.level)
    again.compress = once
    return again


@cache
def coffea_sample(name: str) -> Path:
    """Return a file of the samples in coffea's source package; the first time it is fetched.

    Raises
    ------
    LookupError
        The package could not be had, or has no such file.
    """
    target = folder() / "coffea-samples"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
            options = ["--quiet", "--no-deps", "--no-binary", "coffea", "--dest", scratch]
            ran = subprocess.run(
                [*pip, *options, "coffea==2026.9.0"],
                capture_output=True,
                text=True,
                check=False,
            )
            if ran.returncode:
                raise LookupError(f"coffea's samples are not to be had: {ran.stderr[-200:]}")
            unpacked = Path(scratch) / "samples"
            unpacked.mkdir()
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as package:
                for member in package.getmembers():
                    source = (
                        package.extractfile(member) if "/tests/samples/" in member.name else None
                    )
                    if source is not None:
                        (unpacked / Path(member.name).name).write_bytes(source.read())
            unpacked.rename(target)
    if not (target / name).exists():
        raise LookupError(f"coffea's samples have no {name}")
    return target / name


def package_sample(name: str) -> Path:
    """Return a file of the package scikit-hep-testdata."""
    spec = find_spec("skhep_testdata")
    if spec is None or spec.origin is None:
        raise LookupError("scikit-hep-testdata is not installed")
    return Path(spec.origin).parent / "data" / name
