"""The settings of the service: one typed tree, file < environment < flag.

Every field can be given in a YAML file (``--config``), as environment variable
``SERVICEX_SERVER_<FIELD>``, and by the flag of the same name where the command line has one. What
belongs to ``engine`` is one level down in the file, and ``SERVICEX_SERVER_ENGINE__<FIELD>``.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from servicex_server.accounts.mail import mail_server, sender
from servicex_server.accounts.options import Issuer
from servicex_server.engines.options import EngineOptions, LocalOptions, kinds
from servicex_server.errors import StartupError, did_you_mean
from servicex_server.model import Credential, Sharing

PREFIX = "SERVICEX_SERVER_"
NESTED = "__"
SECRETS = ("password", "token", "client_secret")
"""Settings that are never shown."""

_KEY = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")


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
    """Address to listen on. Anything but loopback needs sign-in, or ``allow_anonymous``."""

    port: int = Field(default=5000, ge=0, le=65535)
    """TCP port to listen on; 0 takes any free one."""

    sign_in: bool = False
    """Whether users sign in, each with an account of their own (``servicex-server user``), and see
    and touch only their own requests. Without it everybody is one and the same user."""

    issuers: tuple[Issuer, ...] = ()
    """Who vouches for users by OpenID Connect: a list; each has a ``name``, a ``metadata_url``, a
    ``client_id``, a ``client_secret`` and more. Without any, users come in with an API token."""

    administrators: tuple[str, ...] = ()
    """E-mails of those who are administrators as soon as they have signed in."""

    approve_domains: tuple[str, ...] = ()
    """Domains of e-mails, as ``cern.ch``, whose users need no approval when they sign up."""

    experiments: tuple[str, ...] = (
        "ATLAS",
        "CMS",
        "LHCb",
        "ALICE",
        "DUNE",
        "Belle II",
        "other",
    )
    """What users can say to be of when they sign up."""

    allow_anonymous: bool = False
    """Serve other machines although nobody signs in: everybody is then the same user."""

    public_url: str | None = Field(default=None, pattern=r"^https?://[^/]+/?$")
    """URL by which clients reach the service, when it is behind a proxy; ``https://host[:port]``.
    Without it each client is answered with the address that it used itself."""

    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks of proxies, whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are
    believed: where a client is, and whether it speaks TLS. From anywhere else they are ignored."""

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Folder for the keys, and for the database and the results if they are not elsewhere; made if
    it is not there."""

    database_url: SecretStr | None = None
    """URL of a PostgreSQL database, ``postgresql+psycopg://user:password@host/database``. Without
    it the database is a file in ``data_dir``."""

    service_keys: tuple[SecretStr, ...] = ()
    """The service's own keys, newest first, 64 hexadecimal digits each: the first signs access
    tokens, links and what opens results, and all are accepted. Without them they are in a file in
    ``data_dir``."""

    objects_url: SecretStr | None = None
    """Where results are kept: ``s3://bucket/prefix?endpoint=https://…&region=…``, or another
    ``file:///absolute/folder``. Without it they are in ``data_dir``."""

    engine: EngineOptions = Field(default_factory=LocalOptions)
    """Where the worker processes are: ``kind`` is ``local``, ``address``, ``jobqueue``,
    ``kubernetes`` or ``gateway``, and each has options of its own."""

    workers: int = Field(default_factory=_cores, ge=1, le=10_000)
    """Worker processes that there may be. The default is the number of usable cores."""

    least_workers: int = Field(default_factory=lambda given: given["workers"], ge=0)
    """Worker processes that there always are, also when nobody asks for anything. The default is
    as many as there may be."""

    idle_seconds: float = Field(default=300.0, ge=0)
    """Seconds for which workers are kept that have nothing to do."""

    worker_memory: int = Field(default=2 << 30, ge=256 << 20)
    """Bytes of memory a worker may use before it is restarted."""

    chunk_bytes: int = Field(default=32 << 20, ge=1 << 20)
    """Bytes of columns that a worker holds at a time, roughly."""

    part_bytes: int = Field(default=128 << 20, ge=1 << 20)
    """Bytes of columns, uncompressed, from which on a file is done in parts by several workers;
    each part is a result of its own."""

    file_seconds: float = Field(default=3600.0, gt=0)
    """Seconds that the work on one file may take; then its worker is started again, and another one
    tries."""

    stall_seconds: float = Field(default=300.0, gt=0)
    """Seconds that the work on one file may be without going on, with the same end."""

    open_seconds: float = Field(default=20.0, ge=1)
    """Seconds that a server has to take a connection; then another replica is tried."""

    silence_seconds: float = Field(default=30.0, ge=1)
    """Seconds that a server may be without sending a byte, with the same end."""

    files_per_user_at_once: int | None = Field(default=None, ge=1)
    """Files of one user that may be at work at a time. The default is any number: slots are shared
    out fairly."""

    files_per_request_at_once: int | None = Field(default=None, ge=1)
    """Files of one request that may be at work at a time."""

    requests_per_user_a_minute: int | None = Field(default=None, ge=1)
    """Requests that one user may submit in a minute."""

    requests_per_user_at_once: int | None = Field(default=None, ge=1)
    """Requests of one user that may be open, which is those that have not ended."""

    bytes_per_user: int | None = Field(default=None, ge=1)
    """Bytes of results that one user may have; who has as many gets no further request done before
    some are deleted."""

    share_results: Sharing = Sharing.OWN
    """Which results are used again by requests for the same: none, one's own, or those of all
    users."""

    attempts: int = Field(default=3, ge=1, le=20)
    """Times a file is tried when the failure may pass."""

    fatal_after: int = Field(default=3, ge=1)
    """Files that fail with the same query error, none having succeeded, before a request ends."""

    files_per_request: int = Field(default=100_000, ge=1)
    """Entries a file list may have."""

    selection_bytes: int = Field(default=1 << 20, ge=1024)
    """Bytes a query may have."""

    local_folders: tuple[Path, ...] = Field(
        default_factory=lambda given: () if given["sign_in"] else (Path("/"),)
    )
    """Folders below which file lists may name files on the machines of the service; none with an
    empty list, which is the default where users sign in."""

    finders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of finders, by their scheme; what each has is said where it is described."""

    credentials: tuple[Credential, ...] = ()
    """Who reads: a list, the first that fits is taken, of ``hosts`` (names, or patterns such as
    ``*.cern.ch``) with a ``proxy``, a ``token`` or both: files that the workers can read, and that
    something else renews. With neither they are looked for where grid tools have them."""

    caches: tuple[Annotated[str, Field(pattern=r"^root://[^/]+/?$")], ...] = ()
    """XCache servers, ``root://host[:port]``, through which files are read that are at ``root://``;
    each file through one of them, as long as that answers."""

    whole_files: bool = False
    """Whether files are fetched whole, and held against size and checksum of their catalogue,
    before they are read. It takes longer, as most queries want a small part of a file."""

    race_replicas: bool = False
    """Whether a second replica of a file is read where the first takes longer than those of 95 % of
    the files of its request, and a worker has nothing else to do; the faster one counts. Of twenty
    files one may be raced."""

    dataset_seconds: float = Field(default=86_400.0, ge=0)
    """Seconds for which a dataset that was looked up is used again as it is."""

    report_file: Path | None = None
    """File to which bad replicas are written, a line of JSON for each."""

    report_webhook: SecretStr | None = None
    """URL that is sent bad replicas, as JSON."""

    report_to_catalogue: bool = False
    """Whether the catalogue that named a replica is told that it is bad: of Rucio, suspicious."""

    account_webhook: SecretStr | None = None
    """URL that is sent word, as JSON with a ``text`` for Slack or Mattermost, of who has signed up
    and who was approved."""

    mail_url: SecretStr | None = None
    """Server that takes mails about accounts, ``smtp://[user:password@]host[:port]``, or ``smtps://``
    for TLS from the start. STARTTLS is used where it is offered, and needed with a password."""

    mail_from: str | None = Field(default=None, validate_default=True)
    """Who the mails are from, ``servicex@example.org``; needed with ``mail_url``."""

    probe_seconds: float = Field(default=0.0, ge=0)
    """Seconds between two looks at a replica of every door of a site that was read from; 0 for
    none."""

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """How much is logged."""

    @field_validator("mail_url")
    @classmethod
    def _mail_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            mail_server(value.get_secret_value())
        return value

    @field_validator("mail_from")
    @classmethod
    def _mail_from(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("mail_url") is not None:
            raise ValueError("mail_url needs it: who mails are from, as servicex@example.org")
        return None if value is None else sender(value)

    @field_validator("issuers")
    @classmethod
    def _issuers(cls, value: tuple[Issuer, ...]) -> tuple[Issuer, ...]:
        names = [one.name for one in value]
        if len(set(names)) != len(names):
            raise ValueError("two have the same name")
        return value

    @field_validator("service_keys")
    @classmethod
    def _are_keys(cls, given: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(given, 1):
            if not _KEY.fullmatch(key.get_secret_value()):
                raise ValueError(
                    f"key {number} is no 64 hexadecimal digits, as `openssl rand -hex 32` gives"
                )
        return given

    @property
    def database(self) -> str:
        """The URL of the database. It may hold a password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'servicex.sqlite'}"

    @property
    def objects(self) -> str:
        """The URL of the results. It may hold a key."""
        if self.objects_url is not None:
            return self.objects_url.get_secret_value()
        return (self.data_dir / "objects").absolute().as_uri()

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


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings.

    Parameters
    ----------
    config
        A YAML file, or None.
    flags
        What was given on the command line; None means not given.

    Raises
    ------
    StartupError
        The file cannot be read, or a value is wrong; names the setting and where it was given.
    """
    import yaml

    given = {name: value for name, value in flags.items() if value is not None}
    if config is not None and not config.is_file():
        raise StartupError(f"there is no settings file {config}")
    chosen: type[Settings] = Settings
    if config is not None:

        class FromFile(Settings):
            model_config = SettingsConfigDict(yaml_file=config)

        chosen = FromFile
    try:
        settings = chosen(**given)
    except yaml.YAMLError as error:
        raise StartupError(f"{config} is no YAML: {_place(error)}") from None
    except ValidationError as error:
        raise StartupError(_explained(error, given)) from None
    except SettingsError as error:
        found = re.search(r'field "(\w+)"', str(error))
        name = found[1] if found else "?"
        raise StartupError(
            f"setting {name} ({PREFIX}{name.upper()}): the variable is no JSON",
            hint='as in ["one", "two"]',
        ) from None
    return Settings.model_construct(**dict(settings))


def _explained(error: ValidationError, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    # the second of a place in `engine` is its kind
    nested = first["loc"][0] == "engine"
    path = [str(part) for n, part in enumerate(first["loc"]) if n != 1 or not nested]
    if first["type"] == "unexpected_keyword_argument":
        known = did_you_mean(path[-1], Credential.__dataclass_fields__)
        return f"there is no setting {'.'.join(path)} ({known})"
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = Settings
        if len(path) > 1:
            model = kinds()[str(first["loc"][1])] if nested else Issuer
        return (
            f"there is no setting {'.'.join(path)} ({did_you_mean(path[-1], model.model_fields)})"
        )
    if first["type"].startswith("union_tag"):
        path.append("kind")
        first["msg"] = f"one of {', '.join(kinds())} is needed"
    name = ".".join(path)
    variable = PREFIX + (NESTED.join(path) if nested else path[0]).upper()
    place = f"--{name.replace('_', '-')}" if name in flags else f"{name} (or {variable})"
    # what is no plain value may have a password in it
    field = Settings.model_fields.get(path[0])
    secret = (
        path[-1] in SECRETS
        or path[0] == "finders"
        or path == ["issuers"]
        or (field is not None and SecretStr in get_args(field.annotation))
    )
    shown = isinstance(first["input"], str | int | float | list) and not secret
    given = f", not {first['input']!r}" if shown else ""
    return f"setting {place}: {first['msg'].removeprefix('Value error, ')}{given}"


def _place(error: Exception) -> str:
    """Say what is wrong with a file and where, without the line itself: it may be a password."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}"
