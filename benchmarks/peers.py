"""What does the work that is measured: our engine, and what a user would pick instead.

This file is also run by itself, as ``python peers.py NAME``, in a process that holds nothing but
one of them, in whatever environment has it installed. So it imports nothing of the project but
in `ours`. The process takes jobs from its input and answers with what they cost, as lines of
JSON.
"""

import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Job = dict[str, Any]
"""``path``: what to read. ``target``: what to write. ``tree``, ``columns``, ``cut``: what of it;
or ``qastle``: a query. ``format``: ``parquet``, ``root-file`` or ``root-rntuple``."""


def ours(job: Job) -> None:
    """Do what a worker does for one file."""
    from servicex_server.engine.malloc import keep_freed_memory
    from servicex_server.model import Limits, Replica, ResultFormat, TaskSpec
    from servicex_server.worker.transform import transform

    keep_freed_memory()
    if "qastle" in job:
        language, selection = "uproot", job["qastle"]
    else:
        wanted = {"treename": job["tree"], "filter_name": job["columns"], "cut": job.get("cut")}
        language, selection = "uproot-raw", json.dumps([wanted])
    outcome = transform(
        TaskSpec(
            request_id="bench",
            file_id=1,
            attempt=1,
            replicas=(Replica(job["path"]),),
            language=language,
            selection=selection,
            format=ResultFormat(job.get("format", "parquet")),
            object_name="result",
            upload_url=Path(job["target"]).as_uri(),
            limits=Limits(part=1 << 50),  # one worker does the whole file
        )
    )
    if outcome.error is not None:
        raise LookupError(outcome.error.message)


def plain(job: Job) -> None:
    """Do what a physicist writes: uproot and awkward, then pyarrow with its defaults."""
    import awkward as ak
    import pyarrow.parquet as pq
    import uproot

    with uproot.open(job["path"]) as file:
        tree, cut = file[job["tree"]], job.get("cut")
        parts = list(tree.iterate(job["columns"], cut=cut))
    if cut and tree.classname != "TTree":  # uproot takes a cut on an RNTuple and leaves it out
        name, limit = cut.split(" > ")
        parts = [part[part[name] > float(limit)] for part in parts]
    table = ak.to_arrow_table(ak.concatenate(parts))
    with pq.ParquetWriter(job["target"], table.schema) as writer:
        writer.write_table(table)


@cache
def _query(qastle: str) -> Callable[..., Any]:
    from func_adl_uproot import generate_function

    found: Callable[..., Any] = generate_function(qastle)
    return found


def func_adl_uproot(job: Job) -> None:
    """Run the function that func-adl-uproot makes of a query, as ServiceX's transformers do."""
    import awkward as ak

    result = _query(job["qastle"])([job["path"]], job["tree"])
    if not ak.fields(result):
        result = ak.zip({"branch": result}, depth_limit=1)
    ak.to_parquet(result, job["target"])


def dask_awkward(job: Job) -> None:
    """Do what coffea does below: lazy columns by uproot and dask-awkward, written by partition."""
    import dask
    import dask_awkward as dak
    import uproot

    events = uproot.dask(
        {job["path"]: job["tree"]},
        filter_name=job["columns"],
        open_files=False,
        steps_per_file=10,
    )
    if cut := job.get("cut"):
        name, limit = cut.split(" > ")
        events = events[events[name] > float(limit)]
    with dask.config.set(scheduler="sync"):
        dak.to_parquet(events[job["columns"]], job["target"], compute=True)


@cache
def _root() -> Any:
    import ROOT

    ROOT.gROOT.SetBatch(True)  # noqa: FBT003  # ROOT's own interface
    return ROOT


def rdataframe(job: Job) -> None:
    """Run ROOT's RDataFrame and its Snapshot to a TTree; ``zstd`` tells the level, if not zlib."""
    root = _root()
    frame = root.RDataFrame(job["tree"], job["path"])
    if cut := job.get("cut"):
        frame = frame.Filter(cut)
    options = root.RDF.RSnapshotOptions()
    if level := job.get("zstd"):
        options.fCompressionAlgorithm = root.RCompressionSetting.EAlgorithm.kZSTD
        options.fCompressionLevel = level
    frame.Snapshot(job["tree"], job["target"], job["columns"], options)


@cache
def _baskets(path: str, tree: str, columns: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return where each basket of the columns lies, and its bytes."""
    import uproot

    found = []
    with uproot.open(path) as file:
        for name in columns:
            branch = file[tree][name]
            seeks, sizes = branch.member("fBasketSeek"), branch.member("fBasketBytes")
            number = branch.num_baskets
            found += [(int(s), int(b)) for s, b in zip(seeks[:number], sizes[:number], strict=True)]
    return sorted(found)


def decompression(job: Job) -> None:
    """Read the baskets of the columns and decompress them, by the fastest codec for Python.

    A basket is a TKey (ROOT's ``TKey`` documentation: bytes 0-3 its size, 14-15 the size of the
    header) and compressed blocks, each with a header of 9 bytes (ROOT's ``RZip``: two letters for
    the codec, one byte of its method, 3 bytes each for both sizes, the least significant first).
    """
    import deflate
    import pyarrow as pa

    # as a worker has it: glibc keeps what is freed (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    mallopt(-3, 32 << 20)
    mallopt(-1, 128 << 20)
    places = _baskets(job["baskets_of"], job["tree"], tuple(job["columns"]))
    file = os.open(job["path"], os.O_RDONLY)
    try:
        for seek, size in places:
            basket = memoryview(os.pread(file, size, seek))
            at = int.from_bytes(basket[14:16], "big")
            while at < size:
                small = int.from_bytes(basket[at + 3 : at + 6], "little")
                large = int.from_bytes(basket[at + 6 : at + 9], "little")
                block = basket[at + 9 : at + 9 + small]
                codec = bytes(basket[at : at + 2])
                if codec == b"ZL":
                    deflate.zlib_decompress(block, large)
                elif codec == b"ZS":
                    pa.decompress(block, decompressed_size=large, codec="zstd")
                else:
                    raise LookupError(f"no codec for {codec!r}")
                at += 9 + small
    finally:
        os.close(file)


CONTENDERS: dict[str, Callable[[Job], None]] = {
    one.__name__: one
    for one in (ours, plain, func_adl_uproot, dask_awkward, rdataframe, decompression)
}


def _peak() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    What ``getrusage`` tells on Linux may be that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _rows(target: Path) -> int | None:
    """Return how many events are in a result, or None if it is not of Parquet."""
    files = sorted(target.glob("*.parquet")) if target.is_dir() else [target]
    if not files[0].exists() or files[0].suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    return sum(int(pq.read_metadata(file).num_rows) for file in files)


def main() -> None:
    """Take jobs until the input ends; whatever a job prints goes to the errors."""
    contender = CONTENDERS[sys.argv[1]]
    if hasattr(os, "sched_setaffinity") and len(sys.argv) > 2:  # noqa: PLR2004  # a core was named
        os.sched_setaffinity(0, {int(sys.argv[2])})
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="servicex-bench-", dir=job["scratch"]) as scratch:
            target = Path(scratch) / job.get("target", "result.parquet")
            gc.collect()
            began, cpu = time.perf_counter(), time.process_time()
            try:
                contender(job | {"target": str(target)})
            except Exception as error:  # noqa: BLE001  # it is told to who asked
                traceback.print_exc()
                first = next(iter(str(error).splitlines()), "")
                answer["error"] = f"{type(error).__name__}: {first}"
            answer |= {
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - cpu,
                "peak": _peak(),
            }
            if "error" not in answer:
                answer["events"] = _rows(target)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
