"""Stands in for three programs of HTCondor, of which no pool can run here.

HTCondor's own parser reads the job description. The job is then what the manual says that it is: a
process in a new folder, into which the named files were copied, with the arguments unquoted and no
variable of whoever submitted it. Jobs are kept as folders below ``$CONDOR_STAND_IN``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

JOBS = Path(os.environ.get("CONDOR_STAND_IN", "/nonexistent"))


def unquoted(text: str) -> list[str]:
    """Return the arguments of HTCondor's newer syntax: in ``"``, each perhaps in ``'``."""
    inside = text.strip().removeprefix('"').removesuffix('"').replace('""', '"')
    words = re.findall(r"((?:'(?:[^']|'')*'|[^\s'])+)", inside)
    return [
        re.sub(r"'((?:[^']|'')*)'", lambda found: found[1].replace("''", "'"), word)
        for word in words
    ]


def submit(*arguments: str) -> None:
    """Take a description; start its job."""
    import htcondor2

    described = htcondor2.Submit(Path(arguments[-1]).read_text())
    told = {key.lower(): described.expand(key) for key in described}
    command = [told["executable"], *unquoted(told["arguments"])]
    if "-dry-run" in arguments:
        return
    number = sum(1 for _ in JOBS.glob("*/")) + 1
    home = JOBS / str(number)
    home.mkdir()
    for file in told["transfer_input_files"].split(","):
        shutil.copy(file.strip(), home)
    with (home / "error").open("wb") as error:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={"PATH": os.defpath, "HOME": str(home)},
            stdout=subprocess.DEVNULL,  # whoever submitted waits for what is printed here
            stderr=error,
        )
    record = {"pid": process.pid, "told": told, "given": dict(os.environ)}
    (home / "job.json").write_text(json.dumps(record))
    sys.stdout.write(f"Submitting job(s).\n1 job(s) submitted to cluster {number}.\n")


def alive(constraint: str = "") -> Iterator[tuple[str, psutil.Process]]:
    """Yield the jobs that run, of the batch that a constraint names."""
    for job in JOBS.glob("*/job.json"):
        record = json.loads(job.read_text())
        named = f'JobBatchName == "{record["told"]["batch_name"]}"'
        if psutil.pid_exists(record["pid"]) and (not constraint or named in constraint):
            process = psutil.Process(record["pid"])
            if process.status() != psutil.STATUS_ZOMBIE:
                yield job.parent.name, process


def remove(*arguments: str) -> None:
    """End jobs, named by a constraint or by their numbers."""
    wanted = arguments[1] if arguments[0] == "-constraint" else ""
    jobs = [(n, job) for n, job in alive(wanted) if wanted or f"{n}.0" in arguments]
    for _, job in jobs:
        for one in [job, *job.children(recursive=True)]:
            one.terminate()
    if not jobs:
        sys.exit("Couldn't find/remove all jobs matching constraint")


def main() -> None:
    """Do what the name says by which this was called."""
    if (JOBS / "down").exists():
        sys.exit("Failed to connect to local queue manager")
    name, *arguments = sys.argv[1:]
    if name == "condor_submit":
        submit(*arguments)
    elif name == "condor_rm":
        remove(*arguments)
    else:
        for number, _ in alive(arguments[arguments.index("-constraint") + 1]):
            sys.stdout.write(f"{number} 0 2\n")  # 2 is "running"


if __name__ == "__main__":
    main()
