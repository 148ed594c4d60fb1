"""The options of each kind of cluster: the part ``engine`` of the settings.

Every kind is a model of its own, chosen by ``kind``. An option of another kind is an error.
`servicex_server.clusters.choose` creates the cluster of a kind from its options.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
)

from servicex_server import plugins


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LocalOptions(_Options):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"
    """Worker processes on this machine, which end with the service."""

    scratch_folder: Path | None = None
    """Folder on this machine for the temporary files of workers. The service creates a private
    folder in it. The default is ``scratch`` in the data folder."""


class AddressOptions(_Options):
    """A scheduler that others run."""

    kind: Literal["address"]
    """A Dask scheduler that is already running, with workers that others manage."""

    allow_plain_tcp: bool = False
    """Allow a ``tcp://`` scheduler. Anyone who can reach its port can run code on it and on its
    workers. Use it only in a network that is closed to everyone else."""

    scheduler: str = Field(pattern=r"^(tcp|tls)://[^/]+:\d+/?$")
    """Address of the scheduler, ``tls://host:port``, or ``tcp://host:port`` with
    ``allow_plain_tcp``."""

    tls_ca_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the certificate authority that signed the scheduler's certificate."""

    tls_cert_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the certificate that the service presents."""

    tls_key_file: Path | None = Field(default=None, validate_default=True)
    """PEM file of the private key of that certificate."""

    @field_validator("scheduler")
    @classmethod
    def _encrypted(cls, value: str, info: ValidationInfo) -> str:
        if value.startswith("tcp://") and not info.data.get("allow_plain_tcp"):
            raise ValueError(
                "a tcp:// scheduler obeys everybody who reaches its port: start it with"
                " --tls-ca-file, --tls-cert and --tls-key, and give its tls:// address; or set"
                " allow_plain_tcp: true, on a network that nobody else is on"
            )
        return value

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
    """Batch system: ``slurm`` or ``htcondor``."""

    queue: str | None = None
    """Partition to which jobs are submitted; Slurm only. Without it, the default partition of the
    system."""

    account: str | None = None
    """Account to which jobs are charged: Slurm's account, HTCondor's accounting group."""

    walltime: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:[0-5]\d){0,2}$")
    """Maximum run time of a job, ``[days-]hours:minutes:seconds``. After that, another job replaces
    it. Choose a time much longer than the work on one file."""

    job_memory: int | None = Field(default=None, ge=256 << 20)
    """Memory in bytes that a job requests. The default is ``limits.worker_memory`` plus 512 MiB
    for the nanny process that supervises the worker."""

    disk: int = Field(default=4 << 30, ge=1 << 20)
    """Disk space in bytes that a job requests; HTCondor only."""

    directives: tuple[str, ...] = ()
    """Additional lines for the job description, in the syntax of the batch system:
    ``--constraint=el9`` for Slurm, ``+JobFlavour = "longlunch"`` for HTCondor."""

    prologue: tuple[str, ...] = ()
    """Shell commands that a job runs before the worker, for example to load a module or set a
    variable."""

    python: str | None = None
    """Python interpreter on the machines of the jobs, with this package installed. The default is
    the interpreter of the service."""

    scheduler_host: str | None = None
    """Address of this machine at which jobs reach it. The default is determined from the routes."""

    scheduler_interface: str | None = None
    """Network interface on which the scheduler listens, for example ``eth0``, instead of
    ``scheduler_host``."""

    scheduler_port: int = Field(default=0, ge=0, le=65535)
    """Port to which jobs connect. 0 selects any free port."""

    worker_interface: str | None = None
    """Network interface on which workers listen. The default is determined from the routes."""

    worker_arguments: tuple[str, ...] = ()
    """Additional arguments for ``dask worker``, for example ``--worker-port=30000:31000``."""

    job_folder: Path | None = None
    """Folder for the logs and the certificates of jobs, on a file system shared by the jobs and
    this machine. The default is ``jobs`` in the data folder."""

    scratch_folder: str | None = None
    """Folder on the machines of the jobs for the temporary files of workers. The shell of the job
    expands variables in it. The worker creates a private folder in it. The default is ``$TMPDIR``
    or ``/tmp``."""

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
    """Pods that the Dask operator of a Kubernetes cluster creates."""

    spec_file: Path | None = None
    """YAML file of a DaskCluster to start from, for example for volumes, tolerations or secrets.
    The service fills in the fields that it needs."""

    image: str | None = Field(default=None, validate_default=True)
    """Container image of the scheduler and the workers. It must contain this version of this
    package. Required unless ``spec_file`` names an image."""

    name: str = Field(default="servicex", pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")
    """Name of the DaskCluster. An existing DaskCluster of this name is replaced."""

    namespace: str | None = None
    """Namespace of the DaskCluster. The default is the namespace of the pod or of the
    kubeconfig."""

    cpu: str = "1"
    """CPUs that a worker pod requests, in the notation of Kubernetes."""

    pod_memory: int | None = Field(default=None, ge=256 << 20)
    """Memory request and memory limit of a worker pod, in bytes. The default is ``worker_memory``
    plus 512 MiB for the nanny process that supervises the worker."""

    service_account: str | None = None
    """Service account of the pods. The pods call no API, so the default is the namespace's own
    service account."""

    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the scheduler's Kubernetes service: ``ClusterIP``, ``NodePort`` or ``LoadBalancer``.
    Choose a type other than ``ClusterIP`` only if this service runs outside the cluster."""

    start_seconds: float = Field(default=120.0, gt=0)
    """Seconds within which the scheduler pod must start."""

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
    """Address of the gateway's scheduler proxy, ``tls://host:port``, if it differs from the URL."""

    auth: Literal["basic", "jupyterhub", "kerberos"] = "basic"
    """Authentication method: ``basic``, ``jupyterhub`` or ``kerberos``."""

    username: str | None = None
    """User name; ``basic`` only. The default is the user of this process."""

    password: SecretStr | None = None
    """Password, for ``basic``."""

    token: SecretStr | None = None
    """API token, for ``jupyterhub``."""

    cluster_options: dict[str, Any] = {}
    """Cluster options, with the names that this gateway defines."""

    start_seconds: float = Field(default=120.0, gt=0)
    """Seconds within which the cluster must start."""


class PluginOptions(BaseModel):
    """A cluster of an installed plug-in, which validates its options itself."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    """Name of the entry point."""

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Show the kind only: any other option may be a password."""
        return [("kind", self.kind)]


def kinds() -> dict[str, type[BaseModel]]:
    """Return the model of every kind that is built in, by its name."""
    models = LocalOptions, AddressOptions, JobQueueOptions, KubernetesOptions, GatewayOptions
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}


_PLUGIN = "plug-in"


def _tag(value: Any) -> str | None:
    """Return the kind of an engine; all kinds of plug-ins have one tag."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    installed = kind not in kinds() and kind in plugins.available("clusters")
    return _PLUGIN if installed else kind


EngineOptions = Annotated[
    Annotated[LocalOptions, Tag("local")]
    | Annotated[AddressOptions, Tag("address")]
    | Annotated[JobQueueOptions, Tag("jobqueue")]
    | Annotated[KubernetesOptions, Tag("kubernetes")]
    | Annotated[GatewayOptions, Tag("gateway")]
    | Annotated[PluginOptions, Tag(_PLUGIN)],
    Discriminator(_tag),
]
