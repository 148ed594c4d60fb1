"""A real Slurm of one node on loopback: munge, controller and node daemon, ended by their ids."""

import contextlib
import os
import pwd
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.servers import free_port
from tests.support import needed

READY_SECONDS = 30

CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
SlurmUser={user}
SlurmdUser={owner}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/state/slurmctld.pid
SlurmdPidFile={home}/spool/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
KillWait=2
MpiDefault=none
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A running Slurm; programs find it by the variables of ``environment``."""

    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """Run one of Slurm's programs; return what it prints."""
        ran = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return ran.stdout

    def jobs(self, shape: str = "%i %T") -> list[str]:
        """Return a line for every job that waits, runs or ends just now."""
        return self.ask("squeue", "--noheader", f"--format={shape}").splitlines()


@contextlib.contextmanager
def slurm(cpus: int = 2) -> Iterator[Slurm]:
    """Run a Slurm of one node.

    The node daemon needs the rights of whose jobs it runs, so it is ours; the others change to a
    user without rights if we are root.
    """
    programs = {
        name: needed(name, f"apt-get install {package}", beside=Path("/usr/sbin"))
        for name, package in (
            ("munged", "munge"),
            ("slurmctld", "slurmctld"),
            ("slurmd", "slurmd"),
            ("sbatch", "slurm-client"),
        )
    }
    owner = pwd.getpwuid(os.getuid())
    user = pwd.getpwnam("nobody") if owner.pw_uid == 0 else owner
    # pytest's own folders are for one user only, and the daemons are another
    with tempfile.TemporaryDirectory(prefix="sx-") as made, contextlib.ExitStack() as started:
        home = Path(made)
        home.chmod(0o755)
        for name in ("munge", "state"):
            (home / name).mkdir(mode=0o755)
            os.chown(home / name, user.pw_uid, user.pw_gid)
        (home / "spool").mkdir()
        key = home / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        os.chown(key, user.pw_uid, user.pw_gid)
        config = home / "slurm.conf"
        config.write_text(
            CONFIG.format(
                home=home,
                user=user.pw_name,
                owner=owner.pw_name,
                ctld_port=free_port(),
                d_port=free_port(),
                cpus=cpus,
            )
        )
        munged = [programs["munged"], "--foreground", "--num-threads=2"]
        munged += [f"--{what}-file={home}/munge/{what}" for what in ("key", "log", "pid", "seed")]
        munged += [f"--socket={home}/munge/socket"]
        started.enter_context(_daemon(munged, user, home / "munged.log"))
        _until((home / "munge" / "socket").exists, home)
        for name, runs_as in (("slurmctld", user), ("slurmd", owner)):
            command = [programs[name], "-D", "-f", str(config)]
            command += ["-N", "localhost"] if name == "slurmd" else []
            started.enter_context(_daemon(command, runs_as, home / f"{name}.log"))
        running = Slurm({"SLURM_CONF": str(config)})
        _until(lambda: _is_idle(running), home)
        yield running


@contextlib.contextmanager
def _daemon(command: Sequence[str], user: pwd.struct_passwd, log: Path) -> Iterator[None]:
    other = user.pw_uid != os.getuid()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user.pw_uid if other else None,
            group=user.pw_gid if other else None,
            extra_groups=() if other else None,
            cwd=log.parent,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _is_idle(running: Slurm) -> bool:
    try:
        return running.ask("sinfo", "--noheader", "--format=%T").strip() == "idle"
    except subprocess.CalledProcessError:
        return False  # the controller does not listen yet


def _until(true: Callable[[], bool], home: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.05)
    logs = [log.read_text(errors="replace")[-2000:] for log in home.glob("*.log")]
    pytest.fail("Slurm did not start:\n" + "\n".join(logs))
