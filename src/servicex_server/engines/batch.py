"""What differs between batch systems: the commands, and what a job description says."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from servicex_server.engines.clusters import NANNY_MEMORY
from servicex_server.engines.options import JobQueueOptions

TLS_FILES = ("ca.pem", "certificate.pem", "key.pem")
"""What a worker needs to be let in, by their names in the folder of the jobs."""


@dataclass(frozen=True)
class Slurm:
    """Jobs of Slurm."""

    options: JobQueueOptions
    name: str
    """Of all our jobs."""
    memory: int
    """Bytes that a worker may use."""

    module = "dask_jobqueue.slurm"
    job = "SLURMJob"
    programs = ("sbatch", "squeue", "scancel")
    carries_files = False

    @property
    def _ours(self) -> list[str]:
        return [f"--user={getpass.getuser()}", f"--name={self.name}"]

    @property
    def listing(self) -> list[str]:
        """Return the command that prints the number of every job of ours, waiting or running."""
        return ["squeue", *self._ours, "--noheader", "--format=%A %t"]

    @property
    def removal(self) -> list[str]:
        """Return the command that ends all our jobs."""
        return ["scancel", *self._ours]

    def trial(self, description: str) -> list[str]:
        """Return the command that says what is wrong with a job description, submitting nothing."""
        return ["sbatch", "--test-only", description]

    def alive(self, listed: str) -> set[str]:
        """Return the jobs of a listing, by their numbers as submitting them gave them."""
        jobs = (line.split() for line in listed.splitlines())
        return {number for number, state in jobs if state != "CG"}  # which is ending

    def arguments(self, files: Sequence[str]) -> dict[str, Any]:
        """Return what this system is told about a job."""
        del files
        asked = self.options.job_memory or self.memory + NANNY_MEMORY
        return {
            "queue": self.options.queue,
            "account": self.options.account,
            "walltime": self.options.walltime,
            # half an hour is what dask-jobqueue says where nobody says anything
            "job_directives_skip": [] if self.options.walltime else ["#SBATCH -t "],
            "job_mem": f"{-(-asked >> 20)}M",
            "job_extra_directives": list(self.options.directives),
        }


@dataclass(frozen=True)
class HTCondor:
    """Jobs of HTCondor."""

    options: JobQueueOptions
    name: str
    """Of all our jobs."""
    memory: int
    """Bytes that a worker may use."""

    module = "dask_jobqueue.htcondor"
    job = "HTCondorJob"
    programs = ("condor_submit", "condor_q", "condor_rm")
    carries_files = True

    @property
    def _ours(self) -> str:
        return f'JobBatchName == "{self.name}"'

    @property
    def listing(self) -> list[str]:
        """Return the command that prints the number of every job of ours, waiting or running."""
        # not those removed or completed; one that is held waits for a person, and is replaced
        fit = f"{self._ours} && JobStatus =!= 3 && JobStatus =!= 4 && JobStatus =!= 5"
        return ["condor_q", "-constraint", fit, "-autoformat", "ClusterId", "ProcId"]

    @property
    def removal(self) -> list[str]:
        """Return the command that ends all our jobs."""
        return ["condor_rm", "-constraint", self._ours]

    def trial(self, description: str) -> list[str]:
        """Return the command that says what is wrong with a job description, submitting nothing."""
        return ["condor_submit", "-dry-run", "/dev/null", description]

    def alive(self, listed: str) -> set[str]:
        """Return the jobs of a listing, by their numbers as submitting them gave them."""
        return {".".join(line.split()) for line in listed.splitlines()}

    def arguments(self, files: Sequence[str]) -> dict[str, Any]:
        """Return what this system is told about a job."""
        asked = self.options.job_memory or self.memory + NANNY_MEMORY
        said = {
            "batch_name": self.name,
            "RequestMemory": str(-(-asked >> 20)),
            # no file system has to be shared for the certificates
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT",
            "transfer_input_files": ", ".join(files),
            "transfer_output_files": '""',
        }
        if self.options.account:
            said["accounting_group"] = self.options.account
        if self.options.walltime:
            said["allowed_job_duration"] = str(_seconds(self.options.walltime))
        for line in self.options.directives:
            key, _, value = line.partition("=")
            said[key.strip()] = value.strip()
        return {"disk": f"{self.options.disk}B", "job_extra_directives": said}


def _seconds(walltime: str) -> int:
    """Return the length of ``[days-]hours:minutes:seconds``, of which Slurm may leave out parts."""
    days, _, clock = walltime.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # hours come first
        units: tuple[int, ...] = (3600, 60, 1)
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        units = {1: (60,), 2: (60, 1)}.get(len(parts), (3600, 60, 1))
    clock_seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return int(days or 0) * 86400 + clock_seconds
