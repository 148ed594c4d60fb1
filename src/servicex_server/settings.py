"""The settings of the service: one typed tree, file < environment < flag.

Every field can be given in a YAML file (``--config``), as environment variable
``SERVICEX_SERVER_<FIELD>``, and by the flag of the same name where the command line has one. What
belongs to ``engine`` is one level down in the file, and ``SERVICEX_SERVER_ENGINE__<FIELD>``.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from servicex_server.engines.options import EngineOptions, LocalOptions, kinds
from servicex_server.errors import StartupError, did_you_mean

PREFIX = "SERVICEX_SERVER_"
NESTED = "__"
SECRETS = ("password", "token")
"""Settings that are never shown."""


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

    allow_anonymous: bool = False
    """Serve other machines although nobody signs in: everybody is then the same user."""

    public_url: str | None = Field(default=None, pattern=r"^https?://[^/]+/?$")
    """URL by which clients reach the service, when it is behind a proxy; ``https://host[:port]``.
    Without it each client is answered with the address that it used itself."""

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Folder for the database, the results and the keys; made if it is not there."""

    engine: EngineOptions = Field(default_factory=LocalOptions)
    """Where the worker processes are: ``kind`` is ``local``, ``address``, ``jobqueue``,
    ``kubernetes`` or ``gateway``, and each has options of its own."""

    workers: int = Field(default_factory=_cores, ge=1, le=10_000)
    """Worker processes. The default is the number of usable cores of this machine."""

    worker_memory: int = Field(default=2 << 30, ge=256 << 20)
    """Bytes of memory a worker may use before it is restarted."""

    chunk_bytes: int = Field(default=32 << 20, ge=1 << 20)
    """Bytes of columns that a worker holds at a time, roughly."""

    part_bytes: int = Field(default=128 << 20, ge=1 << 20)
    """Bytes of columns, uncompressed, from which on a file is done in parts by several workers;
    each part is a result of its own."""

    file_seconds: float = Field(default=3600.0, gt=0)
    """Seconds that the work on one file may take."""

    attempts: int = Field(default=3, ge=1, le=20)
    """Times a file is tried when the failure may pass."""

    fatal_after: int = Field(default=3, ge=1)
    """Files that fail with the same query error, none having succeeded, before a request ends."""

    files_per_request: int = Field(default=100_000, ge=1)
    """Entries a file list may have."""

    selection_bytes: int = Field(default=1 << 20, ge=1024)
    """Bytes a query may have."""

    local_files: bool = True
    """Whether file lists may name paths on the machines of the service."""

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """How much is logged."""

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
        raise StartupError(f"{config} is no YAML: {error}") from None
    except ValidationError as error:
        raise StartupError(_explained(error, given)) from None
    return Settings.model_construct(**dict(settings))


def _explained(error: ValidationError, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    # the second of a place in `engine` is its kind
    path = [str(part) for n, part in enumerate(first["loc"]) if n != 1]
    if first["type"] == "extra_forbidden":
        model = kinds()[str(first["loc"][1])] if len(path) > 1 else Settings
        return (
            f"there is no setting {'.'.join(path)} ({did_you_mean(path[-1], model.model_fields)})"
        )
    if first["type"].startswith("union_tag"):
        path.append("kind")
        first["msg"] = f"one of {', '.join(kinds())} is needed"
    name = ".".join(path)
    variable = PREFIX + NESTED.join(path).upper()
    place = f"--{name.replace('_', '-')}" if name in flags else f"{name} (or {variable})"
    # what is no plain value may have a password in it
    shown = isinstance(first["input"], str | int | float | list) and path[-1] not in SECRETS
    given = f", not {first['input']!r}" if shown else ""
    return f"setting {place}: {first['msg'].removeprefix('Value error, ')}{given}"
