"""The differences between batch systems: their commands and job descriptions."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from servicex_server.clusters.dask_config import NANNY_MEMORY
from servicex_server.settings.clusters import JobQueueOptions

TLS_FILES = ("ca.pem", "certificate.pem", "key.pem")
"""The TLS files by which a worker authenticates, in the folder of the jobs."""


@dataclass(frozen=True)
class Slurm:
    """Jobs of Slurm."""

    options: JobQueueOptions
    name: str
    """The name of all jobs of this service."""
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
        """Return the command that lists all queued and running jobs of this service."""
        return ["squeue", *self._ours, "--noheader", "--format=%A %t"]

    @property
    def removal(self) -> list[str]:
        """Return the command that cancels all jobs of this service."""
        return ["scancel", *self._ours]

    def trial(self, description: str) -> list[str]:
        """Return the command that validates a job description without submitting it."""
        return ["sbatch", "--test-only", description]

    def alive(self, listed: str) -> set[str]:
        """Return the ids of the jobs of a listing, in the form that submission returns."""
        jobs = (line.split() for line in listed.splitlines())
        return {number for number, state in jobs if state != "CG"}  # CG: completing

    def running(self, listed: str) -> set[str]:
        """Return the ids of the jobs of a listing that have started."""
        jobs = (line.split() for line in listed.splitlines())
        return {number for number, state in jobs if state == "R"}

    def arguments(self, files: Sequence[str]) -> dict[str, Any]:
        """Return the arguments for dask-jobqueue's job class of this batch system."""
        del files
        asked = self.options.job_memory or self.memory + NANNY_MEMORY
        return {
            "queue": self.options.queue,
            "account": self.options.account,
            "walltime": self.options.walltime,
            # without a walltime, dask-jobqueue would set half an hour
            "job_directives_skip": [] if self.options.walltime else ["#SBATCH -t "],
            "job_mem": f"{-(-asked >> 20)}M",
            "job_extra_directives": list(self.options.directives),
        }


@dataclass(frozen=True)
class HTCondor:
    """Jobs of HTCondor."""

    options: JobQueueOptions
    name: str
    """The name of all jobs of this service."""
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
        """Return the command that lists all queued and running jobs of this service."""
        # without removed, completed and held jobs; a held job waits for a person, so it is replaced
        fit = f"{self._ours} && JobStatus =!= 3 && JobStatus =!= 4 && JobStatus =!= 5"
        return ["condor_q", "-constraint", fit, "-autoformat", "ClusterId", "ProcId", "JobStatus"]

    @property
    def removal(self) -> list[str]:
        """Return the command that cancels all jobs of this service."""
        return ["condor_rm", "-constraint", self._ours]

    def trial(self, description: str) -> list[str]:
        """Return the command that validates a job description without submitting it."""
        return ["condor_submit", "-dry-run", "/dev/null", description]

    def alive(self, listed: str) -> set[str]:
        """Return the ids of the jobs of a listing, in the form that submission returns."""
        return {".".join(line.split()[:2]) for line in listed.splitlines()}

    def running(self, listed: str) -> set[str]:
        """Return the ids of the jobs of a listing that have started."""
        jobs = (line.split() for line in listed.splitlines())
        return {f"{cluster}.{process}" for cluster, process, status in jobs if status == "2"}

    def arguments(self, files: Sequence[str]) -> dict[str, Any]:
        """Return the arguments for dask-jobqueue's job class of this batch system."""
        asked = self.options.job_memory or self.memory + NANNY_MEMORY
        said = {
            "batch_name": self.name,
            "RequestMemory": str(-(-asked >> 20)),
            # transfer the certificates, so that a shared file system is not needed
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
    """Return the seconds of a Slurm walltime, ``[days-]hours:minutes:seconds`` or a part of it."""
    days, _, clock = walltime.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # hours come first
        units: tuple[int, ...] = (3600, 60, 1)
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        units = {1: (60,), 2: (60, 1)}.get(len(parts), (3600, 60, 1))
    clock_seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return int(days or 0) * 86400 + clock_seconds
