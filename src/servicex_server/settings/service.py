"""The settings of the service: one typed tree, file < environment < flag.

Every setting can be set in a YAML file (``--config``), by the environment variable
``SERVICEX_SERVER_<NAME>``, and by the flag of the same name if the command line has one. The
settings of a group are one level below it in the file; their variables are
``SERVICEX_SERVER_<GROUP>__<NAME>``.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, IPvAnyNetwork, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from servicex_server.model import SandboxChoice
from servicex_server.network.policy import NetworkPolicy, hosts_of
from servicex_server.settings.clusters import EngineOptions, LocalOptions
from servicex_server.settings.groups import (
    AccountSettings,
    LimitSettings,
    MailSettings,
    QuerySettings,
    ReadingSettings,
    ReportSettings,
    ScalingSettings,
    StorageSettings,
)

PREFIX = "SERVICEX_SERVER_"
NESTED = "__"


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "servicex-server"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """What an operator can choose. The defaults make a complete service on one machine."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on. Any address except loopback requires ``sign_in``, ``require_token`` or
    ``allow_anonymous``."""

    port: int = Field(default=5000, ge=0, le=65535)
    """TCP port to listen on. 0 selects any free port."""

    sign_in: bool = False
    """Require users to sign in. Each user has an account and can see and change only their own
    requests. Without sign-in, all clients act as one and the same user."""

    allow_anonymous: bool = False
    """Serve every client that can reach the address, although sign-in is disabled. All clients are
    then the same user. Without this setting, the service listens on loopback only and serves only
    processes of the account that runs it."""

    require_token: bool = False
    """Require the owner's token from every client while sign-in is disabled, instead of checking
    the account of the client's process. Use it in containers, whose clients connect from outside.
    ``serve`` prints the token. This is the default where the operating system does not report the
    account of a connection, as on macOS."""

    public_url: str | None = Field(default=None, pattern=r"^https?://[^/]+/?$")
    """URL at which clients reach the service behind a proxy, ``https://host[:port]``. Without it,
    the service answers each client with the address that the client used."""

    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks of proxies. The service trusts the headers ``X-Forwarded-For`` (the
    client's address) and ``X-Forwarded-Proto`` (whether the client uses TLS) from these proxies
    only, and ignores them from all other addresses."""

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Folder for the keys. It also holds the database and the results, unless ``storage``
    names another place for them. The service creates it if it does not exist."""

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Log level: DEBUG, INFO, WARNING or ERROR."""

    accounts: AccountSettings = Field(default_factory=AccountSettings)
    """How people sign in, and where notifications of accounts go."""

    storage: StorageSettings = Field(default_factory=StorageSettings)
    """Where rows, results and keys are kept, and for how long results can be opened."""

    engine: EngineOptions = Field(default_factory=LocalOptions)
    """Where the worker processes run: ``kind`` is ``local``, ``address``, ``jobqueue``,
    ``kubernetes`` or ``gateway``. Each kind has its own options."""

    workers: int = Field(default_factory=_cores, ge=1, le=10_000)
    """Maximum number of worker processes, 1 to 10,000. The default is the number of usable CPU
    cores."""

    scaling: ScalingSettings = Field(default_factory=ScalingSettings)
    """How the number of workers follows the work."""

    limits: LimitSettings = Field(default_factory=LimitSettings)
    """Limits on what one file, one request and one user may take."""

    queries: QuerySettings = Field(default_factory=QuerySettings)
    """Query languages, and how the code of users runs."""

    reading: ReadingSettings = Field(default_factory=ReadingSettings)
    """How input files are read, and from where."""

    finders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of the finders, by scheme. The options are documented with each finder."""

    reports: ReportSettings = Field(default_factory=ReportSettings)
    """Bad replicas, and probes of storage endpoints."""

    mail: MailSettings = Field(default_factory=MailSettings)
    """The mail server for notifications about accounts."""

    @field_validator("port", mode="before")
    @classmethod
    def _port(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "Kubernetes sets this variable for a Service that is named servicex-server; give "
                "the Service another name, or set `enableServiceLinks: false` in the pod"
            )
        return value

    @property
    def least_workers(self) -> int:
        """The smallest number of workers."""
        least = self.scaling.least_workers
        return self.workers if least is None else least

    @property
    def local_folders(self) -> tuple[Path, ...]:
        """The folders from which file lists may name files on the machines of the service."""
        if self.reading.local_folders is not None:
            return self.reading.local_folders
        return () if self.sign_in else (Path("/"),)

    @property
    def task_sandbox(self) -> SandboxChoice:
        """How workers run the code of users: where users sign in, only in the sandbox."""
        return SandboxChoice.BUBBLEWRAP if self.sign_in else self.queries.sandbox

    @property
    def database(self) -> str:
        """The URL of the database. It may hold a password."""
        if self.storage.database_url is not None:
            return self.storage.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'servicex.sqlite'}"

    @property
    def objects(self) -> str:
        """The URL of the results. It may hold a key."""
        if self.storage.objects_url is not None:
            return self.storage.objects_url.get_secret_value()
        return (self.data_dir / "objects").absolute().as_uri()

    @property
    def network_policy(self) -> NetworkPolicy:
        """Which servers files may be read from; the caches that the operator chose are allowed."""
        caches = tuple(host for cache in self.reading.caches for host in hosts_of(cache))
        return NetworkPolicy(
            allowed=(*self.reading.allowed_hosts, *caches),
            forbidden=self.reading.forbidden_hosts,
            public_only=self.sign_in,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put flags before the environment, and the environment before the file."""
        del dotenv_settings, file_secret_settings
        file = YamlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, file
