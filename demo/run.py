"""The demonstration: start the service, ask it for columns with the published client, plot them.

Everything happens in a temporary folder and on a free loopback port; nothing is left running.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import awkward as ak
import hist
import httpx
import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table
from servicex import General, Sample, ServiceXSpec, dataset, deliver, query

OUT = Console(highlight=False)
READY_SECONDS = 30


def sample(name: str) -> str:
    """Return the path of a sample file of the package scikit-hep-testdata."""
    spec = find_spec("skhep_testdata")
    if spec is None or spec.origin is None:
        sys.exit("the package scikit-hep-testdata is missing; run: make demo")
    return str(Path(spec.origin).parent / "data" / name)


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server in ``folder``; yield its URL and the configuration that it prints."""
    command = Path(sys.executable).with_name("servicex-server")
    log = (folder / "server.log").open("w+", encoding="utf-8")
    process = subprocess.Popen(
        [str(command), "serve", "--port", "0", "--data-dir", str(folder / "data")],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = _ready(process, folder / "server.log")
        printed = (folder / "server.log").read_text(encoding="utf-8")
        yield url, printed[printed.index("api_endpoints:") :]
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        printed = log.read_text(encoding="utf-8")
        found = re.search(r"ready at (http://\S+)", printed)
        if found and re.search(r"endpoint: \S+\n", printed):
            httpx.get(f"{found[1]}/readyz").raise_for_status()
            return found[1]
        time.sleep(0.05)
    sys.exit(f"the service did not start:\n{log.read_text(encoding='utf-8')}")


def ask(endpoint: str, folder: Path) -> dict[str, list[str]]:
    """Ask for the muons of the Z -> mumu file and the jets of the H -> ZZ file."""
    config = folder / "servicex.yaml"
    config.write_text(f"{endpoint}cache_path: {folder / 'cache'}\n", encoding="utf-8")
    muons = query.UprootRaw(
        [
            {
                "treename": "events",
                "expressions": [f"{name}{n}" for n in (1, 2) for name in ("E", "px", "py", "pz")],
                "cut": "(Q1 * Q2 < 0) & (pt1 > 20) & (pt2 > 20)",
            }
        ]
    )
    jets = query.UprootRaw(
        [{"treename": "events", "filter_name": ["NJet", "Jet_P*"], "cut": "any(Jet_E > 50)"}]
    )
    spec = ServiceXSpec(
        General=General(OutputFormat="parquet"),
        Sample=[
            Sample(
                Name="Zmumu", Dataset=dataset.FileList([sample("uproot-Zmumu.root")]), Query=muons
            ),
            Sample(Name="HZZ", Dataset=dataset.FileList([sample("uproot-HZZ.root")]), Query=jets),
        ],
    )
    delivered = deliver(spec, config_path=str(config), progress_bar="expanded")
    return {name: list(paths) for name, paths in delivered.items()}


def show(delivered: dict[str, list[str]], seconds: float) -> None:
    """Print what came back."""
    table = Table(title=f"Delivered in {seconds:.1f} s")
    for heading in ("sample", "file", "events", "columns", "bytes"):
        table.add_column(heading, justify="left" if heading in ("sample", "file") else "right")
    for name, paths in delivered.items():
        for path in paths:
            array = ak.from_parquet(path)
            size = Path(path).stat().st_size
            columns = str(len(array.fields))
            table.add_row(name, Path(path).name, f"{len(array):,}", columns, f"{size:,}")
    OUT.print(table)


def mass(path: str) -> np.ndarray:
    """Return the invariant mass of the two muons in GeV."""
    muons = ak.from_parquet(path)
    energy, px, py, pz = (muons[f"{name}1"] + muons[f"{name}2"] for name in ("E", "px", "py", "pz"))
    return np.sqrt(np.maximum(ak.to_numpy(energy**2 - px**2 - py**2 - pz**2), 0))


def draw(masses: np.ndarray, target: Path) -> None:
    """Draw the di-muon mass into a PNG file and into the terminal."""
    mpl.use("agg")
    import matplotlib.pyplot as plt
    import mplhep

    histogram = hist.Hist.new.Reg(40, 60, 120, name="mass").Int64().fill(masses)
    plt.style.use(mplhep.style.ATLAS)
    figure, axes = plt.subplots(figsize=(7, 5))
    counts, edges = histogram.to_numpy()
    mplhep.histplot(counts, edges, ax=axes, histtype="fill", alpha=0.35, color="C0")
    mplhep.histplot(
        counts,
        edges,
        ax=axes,
        yerr=np.sqrt(counts),
        histtype="errorbar",
        color="black",
        label=f"{len(masses):,} muon pairs",
    )
    axes.set(xlabel=r"$m_{\mu\mu}$ [GeV]", ylabel="events / 1.5 GeV", xlim=(60, 120))
    axes.legend()
    axes.set_title(r"$Z \to \mu\mu$, delivered by servicex-server", fontsize=13)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    tallest = max(histogram.values().max(), 1)
    OUT.print("\n  di-muon mass [GeV]")
    for low, count in zip(histogram.axes[0].edges[:-1], histogram.values(), strict=True):
        bar = "█" * round(50 * count / tallest)
        OUT.print(f"  {low:6.1f} │{bar} {int(count) if count else ''}")


def main() -> None:
    """Run the demonstration."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "dimuon-mass.png")
    with tempfile.TemporaryDirectory(prefix="servicex-demo-") as name:
        folder = Path(name)
        began = time.monotonic()
        with service(folder) as (url, endpoint):
            OUT.print(f"service ready at {url} after {time.monotonic() - began:.1f} s")
            asked = time.monotonic()
            delivered = ask(endpoint, folder)
            show(delivered, time.monotonic() - asked)
            draw(mass(delivered["Zmumu"][0]), target)
    OUT.print(f"\nplot written to {target}; the service is stopped")


if __name__ == "__main__":
    main()
