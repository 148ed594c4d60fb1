"""Files of experiments for the tests: the samples in coffea's source distribution (BSD-3)."""

import fcntl
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support import missing

COFFEA = "2026.9.0"
CACHE = Path(__file__).parent.parent / ".cache"
DOWNLOAD_SECONDS = 110


def coffea_samples() -> Path:
    """Return the folder of coffea's samples, downloaded (30 MB) when it is asked for first.

    DAOD_PHYSLITE, NanoAOD of several versions, Delphes, EDM4hep and others, as TTrees and as
    RNTuples. Where they cannot be had a test is skipped; it fails where everything is tested.
    """
    folder = CACHE / f"coffea-{COFFEA}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "coffea.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of pytest-xdist one downloads
        if not folder.is_dir():
            try:
                _download(folder)
            except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
                missing(f"no samples of coffea {COFFEA}: {error}")
    return folder


def _download(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*command, "--no-binary", "coffea", "--dest", scratch, f"coffea=={COFFEA}"],
            check=True,
            capture_output=True,
            timeout=DOWNLOAD_SECONDS,
        )
        made = Path(scratch) / "samples"
        made.mkdir()
        with tarfile.open(next(Path(scratch).glob("coffea-*.tar.gz"))) as archive:
            for member in archive:
                if "/tests/samples/" in member.name and member.isfile():
                    member.name = Path(member.name).name
                    archive.extract(member, made, filter="data")
        made.rename(folder)
