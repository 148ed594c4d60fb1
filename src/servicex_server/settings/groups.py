"""The groups of settings: each is a level of its own in the file."""

import re
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from servicex_server.model import Credential, Role, SandboxChoice, Sharing
from servicex_server.network.policy import check_entry
from servicex_server.settings.issuers import Issuer
from servicex_server.settings.mail import mail_server, sender

HostEntry: TypeAlias = Annotated[str, AfterValidator(check_entry)]

_KEY = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class AccountSettings(Group):
    """How people sign in, and where notifications of accounts go."""

    issuers: tuple[Issuer, ...] = ()
    """OpenID Connect providers at which users can sign in. Each has a ``name``, a ``metadata_url``,
    a ``client_id``, a ``client_secret`` and further options. Without a provider, users sign in with
    an API token."""

    administrators: tuple[str, ...] = ()
    """E-mail addresses of users who become administrators when they sign in."""

    approve_domains: tuple[str, ...] = ()
    """E-mail domains, for example ``cern.ch``, whose users need no approval when they sign up."""

    experiments: tuple[str, ...] = (
        "ATLAS",
        "CMS",
        "LHCb",
        "ALICE",
        "DUNE",
        "Belle II",
        "other",
    )
    """Experiments that users can choose from when they sign up."""

    webhook: SecretStr | None = None
    """URL to which notifications of sign-ups and approvals are sent, as JSON with a ``text`` for
    Slack or Mattermost. The value is never shown."""

    @field_validator("issuers")
    @classmethod
    def _issuers(cls, value: tuple[Issuer, ...]) -> tuple[Issuer, ...]:
        names = [one.name for one in value]
        if len(set(names)) != len(names):
            raise ValueError("two have the same name")
        return value


class StorageSettings(Group):
    """Where rows, results and keys are kept, and for how long results can be opened."""

    database_url: SecretStr | None = None
    """URL of a PostgreSQL database, ``postgresql+psycopg://user:password@host/database``. Without
    it, the database is a file in ``data_dir``. The value is never shown."""

    objects_url: SecretStr | None = None
    """Where results are stored: ``s3://bucket/prefix?endpoint=https://…&region=…``, or a folder,
    ``file:///absolute/folder``. Without it, results are stored in ``data_dir``. The value is never
    shown."""

    service_keys: tuple[SecretStr, ...] = ()
    """Signing keys of the service, newest first, 64 hexadecimal digits each. The first key signs
    access tokens, links and bucket keys; the service accepts signatures of all keys. Without this
    setting, the keys are in ``service.key`` in ``data_dir``. The value is never shown."""

    upload_seconds: float = Field(default=120.0, ge=0)
    """Seconds for which a worker keeps a finished result, and tries its upload again, while the
    object store is in trouble. After that, the file waits without a worker until the store
    works."""

    link_days: int = Field(default=90, ge=1, le=365)
    """Days after which links to results and bucket keys expire; the client signs links for a year.
    They expire earlier when the API token with which they were obtained expires or is revoked, when
    the user signs out everywhere, or when the account is suspended."""

    budget_bytes: int | None = Field(default=None, ge=1 << 20)
    """Bytes of results that the object store may hold; at least 1 MiB. From 90 % on, the least
    recently used results are evicted: they are deleted, and made again when somebody asks for them.
    From 95 % on, a request starts only if its results are expected to fit, and from 98 % on, no
    file starts."""

    free_bytes: int | None = Field(default=None, ge=0)
    """Bytes that stay free on the disk of the results, if they are stored in a folder. The rest
    is the budget of the results."""

    unused_days: float | None = Field(default=30.0, gt=0)
    """Days without use after which a result is evicted. ``null`` keeps results until they are
    deleted or have to make room."""

    least_days: float = Field(default=1.0, ge=0)
    """Days without use before which a result is not evicted, even if the store is full."""

    share_results: Sharing = Sharing.OWN
    """Which existing results can be reused for a request with the same work: ``none``, results of
    the user's ``own`` requests, or results of ``all`` users."""

    @field_validator("service_keys")
    @classmethod
    def _are_keys(cls, given: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(given, 1):
            if not _KEY.fullmatch(key.get_secret_value()):
                raise ValueError(
                    f"key {number} is no 64 hexadecimal digits, as `openssl rand -hex 32` gives"
                )
        return given


class ScalingSettings(Group):
    """How the number of workers follows the work."""

    least_workers: int | None = Field(default=None, ge=0)
    """Minimum number of worker processes, which run even if no request is active. 0 is allowed. The
    default is the value of ``workers``."""

    idle_seconds: float = Field(default=300.0, ge=0)
    """Seconds for which workers that are no longer needed keep running."""


class LimitSettings(Group):
    """Limits on what one file, one request and one user may take."""

    worker_memory: int = Field(default=2 << 30, ge=256 << 20)
    """Memory in bytes that a worker may use before it is restarted; at least 256 MiB."""

    file_seconds: float = Field(default=3600.0, gt=0)
    """Time limit in seconds for the work on one file. When it is exceeded, the worker is restarted
    and another worker tries the file again."""

    stall_seconds: float = Field(default=300.0, gt=0)
    """Seconds without progress on one file, after which the worker is restarted and another worker
    tries the file again."""

    attempts: int = Field(default=3, ge=1, le=20)
    """How many times a file is tried if the error is retryable, 1 to 20."""

    fatal_after: int = Field(default=3, ge=1)
    """Number of files that fail with the same query error, while no file has succeeded, after which
    the request ends."""

    files_per_user_at_once: int | None = Field(default=None, ge=1)
    """Maximum number of one user's files that are processed at the same time. Without it, the
    number is not limited; worker slots are shared fairly."""

    files_per_request_at_once: int | None = Field(default=None, ge=1)
    """Maximum number of files of one request that are processed at the same time."""

    requests_per_user_a_minute: int | None = Field(default=None, ge=1)
    """Maximum number of requests that one user may submit in a minute."""

    requests_per_user_at_once: int | None = Field(default=None, ge=1)
    """Maximum number of active requests of one user. A request is active until it reaches a final
    state."""

    bytes_per_user: int | None = Field(default=None, ge=1)
    """Storage quota per user, in bytes. When it is reached, new requests are rejected and none of
    the user's files starts, until results are deleted or evicted."""

    files_per_request: int = Field(default=100_000, ge=1)
    """Maximum number of entries in a file list."""

    selection_bytes: int = Field(default=1 << 20, ge=1024)
    """Maximum size of a query in bytes; at least 1 KiB."""


class QuerySettings(Group):
    """Query languages, and how the code of users runs."""

    languages: dict[str, Role] = Field(default_factory=dict)
    """Query languages on offer, each with the lowest role that may use it: ``user``, ``operator``
    or ``administrator``. The default is every installed language for every user."""

    sandbox: SandboxChoice = SandboxChoice.AUTO
    """How user code runs, as in ``python`` queries. ``auto`` uses the sandbox if it works. With
    ``bubblewrap``, the service does not start without the sandbox. ``none`` uses no sandbox. With
    sign-in, a language that runs code is offered only if the sandbox works."""


class ReadingSettings(Group):
    """How input files are read, and from where."""

    chunk_bytes: int = Field(default=32 << 20, ge=1 << 20)
    """Approximate number of bytes of column data that a worker holds at a time; at least 1 MiB."""

    part_bytes: int = Field(default=128 << 20, ge=1 << 20)
    """Uncompressed bytes of column data above which a file is split between several workers. The
    splits become one result. At least 1 MiB."""

    open_seconds: float = Field(default=20.0, ge=1)
    """Seconds within which a server must accept a connection. After that, another replica is tried.
    At least 1."""

    silence_seconds: float = Field(default=30.0, ge=1)
    """Seconds that a server may go without sending a byte. After that, another replica is tried. At
    least 1."""

    local_folders: tuple[Path, ...] | None = None
    """Folders from which file lists may name files on the machines of the service, including
    subfolders. An empty list allows no local files; it is the default with sign-in. Workers check
    the real path of every opened file, so a symbolic link cannot lead out of these folders."""

    allowed_hosts: tuple[HostEntry, ...] = ()
    """Servers from which files may be read although their addresses are not public: host names,
    patterns such as ``*.example.org``, addresses and networks such as ``10.0.0.0/8``. A pattern
    does not cover loopback, link-local and metadata addresses. The setting has an effect with
    sign-in, where only public addresses are allowed by default, and with a ``*`` in
    ``forbidden_hosts``."""

    forbidden_hosts: tuple[HostEntry, ...] = ()
    """Servers from which files are never read, in the same notation as ``allowed_hosts``. Entries
    that name a server take precedence over ``allowed_hosts``. A ``*`` forbids all servers that
    ``allowed_hosts`` does not list."""

    credentials: tuple[Credential, ...] = ()
    """Credentials for reading files. Each entry has ``hosts`` (names, patterns such as
    ``*.cern.ch``, or ``host:port``) with a ``proxy``, a ``token`` or both; these are files that the
    workers can read and that an external tool renews. The first entry that matches a server is
    used; a server that no entry matches receives no credential. An entry with neither ``proxy`` nor
    ``token`` uses the credentials that grid tools would find, for its hosts only."""

    caches: tuple[Annotated[str, Field(pattern=r"^root://[^/]+/?$")], ...] = ()
    """XCache servers, ``root://host[:port]``, through which files at ``root://`` are read. Each
    file is assigned to one cache, as long as that cache responds."""

    whole_files: bool = False
    """Download each file completely and verify its size and checksum against the catalogue before
    reading it. This takes longer, because most queries need a small part of a file. The size is
    always verified."""

    speculative_reads: bool = False
    """Enable speculative reads: a second replica of a slow file is read as well, and the first
    result counts. A file is slow if it takes longer than 95 % of the files of its request.
    Speculative reads use idle workers only, for at most one file in twenty."""

    dataset_seconds: float = Field(default=86_400.0, ge=0)
    """Seconds for which the stored result of a dataset look-up is reused."""


class ReportSettings(Group):
    """Bad replicas, and probes of storage endpoints."""

    file: Path | None = None
    """File to which bad replicas are written, one line of JSON for each."""

    webhook: SecretStr | None = None
    """URL to which bad replicas are sent as JSON."""

    to_catalogue: bool = False
    """Report bad replicas to the catalogue that named them. Rucio records them as suspicious by
    default."""

    probe_seconds: float = Field(default=0.0, ge=0)
    """Seconds between two probes of every known storage endpoint. 0 disables probing."""


class MailSettings(Group):
    """The mail server for notifications about accounts."""

    url: SecretStr | None = None
    """Mail server for notifications about accounts, ``smtp://[user:password@]host[:port]``, or
    ``smtps://`` for TLS from the start. Special characters in the password are percent-encoded as
    in URLs, ``%40`` for ``@``. STARTTLS is used if the server offers it, and required if there is a
    password. The default port is 25, with a password 587, with ``smtps`` 465. The value is never
    shown."""

    sender: str | None = Field(default=None, validate_default=True)
    """Sender of the mails, ``servicex@example.org`` or ``ServiceX <servicex@example.org>``.
    Required with ``url``."""

    @field_validator("url")
    @classmethod
    def _mail_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            mail_server(value.get_secret_value())
        return value

    @field_validator("sender")
    @classmethod
    def _mail_from(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("url") is not None:
            raise ValueError("mail.url needs it: who mails are from, as servicex@example.org")
        return None if value is None else sender(value)
