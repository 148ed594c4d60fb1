"""What an operator can choose of each kind of cluster: the part ``engine`` of the settings.

Every kind is a model of its own, told apart by ``kind``; a name that belongs to another kind is an
error. The files beside this one, one for each kind, make a `Cluster` of it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LocalOptions(_Options):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"
    """Worker processes on this machine, which end with the service."""


class AddressOptions(_Options):
    """A scheduler that somebody else runs."""

    kind: Literal["address"]
    """A Dask scheduler that runs already, with workers that are somebody else's business."""

    scheduler: str = Field(pattern=r"^(tcp|tls)://[^/]+:\d+/?$")
    """Its address, ``tls://host:port``; or ``tcp://host:port``, for a network of its own."""

    tls_ca_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the authority that signed the scheduler's certificate."""

    tls_cert_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the certificate that the service shows."""

    tls_key_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the key to that certificate."""

    @field_validator("tls_ca_file", "tls_cert_file", "tls_key_file")
    @classmethod
    def _with_tls_only(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        encrypted = str(info.data.get("scheduler", "")).startswith("tls://")
        if encrypted and value is None:
            raise ValueError("a tls:// scheduler needs all three files")
        if "scheduler" in info.data and not encrypted and value is not None:
            raise ValueError("a tcp:// scheduler takes no certificates")
        return value


class JobQueueOptions(_Options):
    """A batch system: each worker is a job."""

    kind: Literal["jobqueue"]
    """Jobs of a batch system, one for each worker, submitted from this machine."""

    system: Literal["slurm", "htcondor"]
    """Which batch system: ``slurm`` or ``htcondor``."""

    queue: str | None = None
    """Partition that jobs go to; Slurm only. Without it the system's default."""

    account: str | None = None
    """Whom the jobs are charged to: Slurm's account, HTCondor's accounting group."""

    walltime: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:[0-5]\d){0,2}$")
    """How long a job may run, ``[days-]hours:minutes:seconds``; then another takes its place. Much
    longer than the work on a file takes."""

    job_memory: int | None = Field(default=None, ge=256 << 20)
    """Bytes of memory that a job asks for. The default is ``worker_memory`` and 512 MiB for the
    process that watches over the worker."""

    disk: int = Field(default=4 << 30, ge=1 << 20)
    """Bytes of disk that a job asks for; HTCondor only."""

    directives: tuple[str, ...] = ()
    """More lines for the job description, as the batch system takes them: ``--constraint=el9`` of
    Slurm, ``+JobFlavour = "longlunch"`` of HTCondor."""

    prologue: tuple[str, ...] = ()
    """Shell commands that a job runs before the worker: load a module, set a variable."""

    python: str | None = None
    """Python with this package on the machines of the jobs. The default is that of the service."""

    scheduler_host: str | None = None
    """Address of this machine by which jobs reach it. The default is found from the routes."""

    scheduler_interface: str | None = None
    """Network interface to listen on, as ``eth0``, instead of ``scheduler_host``."""

    scheduler_port: int = Field(default=0, ge=0, le=65535)
    """Port that jobs connect to; 0 takes any free one."""

    worker_interface: str | None = None
    """Network interface that workers listen on. The default is found from the routes."""

    worker_arguments: tuple[str, ...] = ()
    """More arguments for ``dask worker``, as ``--worker-port=30000:31000``."""

    job_folder: Path | None = None
    """Folder for the logs and the certificates of jobs, on a file system that they share with
    this machine. The default is ``jobs`` in the data folder."""

    scratch_folder: str | None = None
    """Folder on the machines of the jobs for temporary files of Dask."""

    @field_validator("queue")
    @classmethod
    def _slurm_only(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("system") == "htcondor":
            raise ValueError("HTCondor has no queues; requirements go into directives")
        return value

    @field_validator("directives")
    @classmethod
    def _are_directives(cls, lines: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        slurm = info.data.get("system") == "slurm"
        for line in lines:
            if "\n" in line or not (line.startswith("-") if slurm else "=" in line.strip("=")):
                shape = "an option of sbatch" if slurm else "name = value"
                raise ValueError(f"each directive is one line, {shape}; not {line!r}")
        return lines


class KubernetesOptions(_Options):
    """Pods of a Kubernetes cluster that has the Dask operator."""

    kind: Literal["kubernetes"]
    """Pods, made by the Dask operator of a Kubernetes cluster."""

    spec_file: Path | None = None
    """YAML file of a DaskCluster to start from, for volumes, tolerations or secrets. What has to be
    so for the service to work is filled in."""

    image: str | None = Field(default=None, validate_default=True)
    """Image of the scheduler and the workers, with this version of this package in it. Needed
    unless ``spec_file`` names one."""

    name: str = Field(default="servicex", pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")
    """Name of the DaskCluster. One that is left from before is replaced."""

    namespace: str | None = None
    """Namespace to make it in. The default is that of the pod or of the kubeconfig."""

    cpu: str = "1"
    """Processors that a worker's pod asks for, as Kubernetes writes them."""

    pod_memory: int | None = Field(default=None, ge=256 << 20)
    """Bytes of memory that a worker's pod asks for and may use. The default is ``worker_memory``
    and 512 MiB for the process that watches over the worker."""

    service_account: str | None = None
    """Service account of the pods. They call no API, so the default is the namespace's own."""

    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How the scheduler is reached: ``ClusterIP``, ``NodePort`` or ``LoadBalancer``; anything but
    ``ClusterIP`` only if the service runs outside."""

    start_seconds: float = Field(default=120.0, gt=0)
    """Seconds that the scheduler's pod may take to start."""

    @field_validator("image")
    @classmethod
    def _named_somewhere(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("spec_file") is None:
            raise ValueError("needed, unless spec_file names one")
        return value


class GatewayOptions(_Options):
    """A Dask Gateway."""

    kind: Literal["gateway"]
    """A cluster of a Dask Gateway."""

    address: str = Field(pattern=r"^https?://.+")
    """URL of the gateway."""

    proxy_address: str | None = Field(default=None, pattern=r"^(tls|gateway)://[^/]+:\d+$")
    """Where its proxy of schedulers listens, ``tls://host:port``, if not at the URL."""

    auth: Literal["basic", "jupyterhub", "kerberos"] = "basic"
    """How to sign in there: ``basic``, ``jupyterhub`` or ``kerberos``."""

    username: str | None = None
    """Whom to sign in as; ``basic`` only. The default is the user of this process."""

    password: SecretStr | None = None
    """Password, for ``basic``."""

    token: SecretStr | None = None
    """API token, for ``jupyterhub``."""

    cluster_options: dict[str, Any] = {}
    """Options of the cluster, by the names that this gateway gives them."""

    start_seconds: float = Field(default=120.0, gt=0)
    """Seconds that the cluster may take to start."""


EngineOptions = Annotated[
    LocalOptions | AddressOptions | JobQueueOptions | KubernetesOptions | GatewayOptions,
    Field(discriminator="kind"),
]


def kinds() -> dict[str, type[BaseModel]]:
    """Return the model of every kind, by its name."""
    models: tuple[type[BaseModel], ...] = get_args(get_args(EngineOptions)[0])
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}
