"""Reading the settings from file, environment and flags, and explaining what is wrong."""

import json
import os
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict, SettingsError

from servicex_server import plugins
from servicex_server.errors import StartupError
from servicex_server.model import Credential
from servicex_server.settings.clusters import kinds
from servicex_server.settings.groups import Group
from servicex_server.settings.issuers import Issuer
from servicex_server.settings.service import NESTED, PREFIX, Settings
from servicex_server.text.hints import did_you_mean

SECRETS = ("password", "token", "client_secret")
"""Settings that are never shown."""

RENAMED = {
    "account_webhook": "accounts.webhook",
    "mail_from": "mail.sender",
    "mail_url": "mail.url",
    "race_replicas": "reading.speculative_reads",
    "report_file": "reports.file",
    "report_to_catalogue": "reports.to_catalogue",
    "report_webhook": "reports.webhook",
}
"""Former names of settings with their new ones. Names of settings that were only put into a group
are found by `_grouped`."""

_AS_IN = 'as in ["one", "two"]'

_KUBERNETES = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+")
"""Variables that Kubernetes sets for a Service with the name ``servicex-server``."""


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
        _refuse_unknown(config)
        settings = chosen(**given)
    except yaml.YAMLError as error:
        raise StartupError(f"{config} is no YAML: {_place(error)}") from None
    except ValidationError as error:
        raise StartupError(_explained(error, given)) from None
    except SettingsError as error:
        found = re.search(r'field "(\w+)"', str(error))
        name = _no_json(found[1] if found else "?")
        raise StartupError(
            f"setting {name} ({_variable(name.split('.'))}): the variable is no JSON",
            hint=_AS_IN,
        ) from None
    return Settings.model_construct(**dict(settings))


def _refuse_unknown(config: Path | None) -> None:
    """Refuse names that are no settings, also former names, wherever they were given.

    Raises
    ------
    StartupError
        Names the setting, and what to write instead.
    """
    import yaml

    variables = {
        name.removeprefix(PREFIX).split(NESTED)[0].lower()
        for name in os.environ
        if name.startswith(PREFIX) and not _KUBERNETES.fullmatch(name.removeprefix(PREFIX))
    }
    found: Any = None
    if config is not None:
        found = yaml.safe_load(config.read_text(encoding="utf-8", errors="replace"))
    written = set(found) if isinstance(found, dict) else set()
    for name in sorted(map(str, variables | written)):
        if name in Settings.model_fields:
            continue
        where = "" if name in written else f" (variable {PREFIX}{name.upper()})"
        if new := RENAMED.get(name) or _grouped(name):
            raise StartupError(
                f"there is no setting {name} any more{where}",
                hint=f"it is called {new} now, and {_variable(new.split('.'))} as a variable",
            )
        raise StartupError(
            f"there is no setting {name}{where} ({did_you_mean(name, Settings.model_fields)})"
        )


def _groups() -> dict[str, type[Group]]:
    fields = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: kind
        for name, kind in fields.items()
        if isinstance(kind, type) and issubclass(kind, Group)
    }


def _grouped(name: str) -> str | None:
    """Return the name of a setting with its group, if a group has it."""
    found = [f"{group}.{name}" for group, kind in _groups().items() if name in kind.model_fields]
    return found[0] if found else None


def _variable(path: list[str]) -> str:
    """Return the environment variable of a setting, or the one that holds it as JSON."""
    nested = path[0] in (*_groups(), "engine", "finders")
    return PREFIX + NESTED.join(path[:2] if nested else path[:1]).upper()


def _no_json(name: str) -> str:
    """Return which setting, below one of the top, has a variable that is no JSON."""
    for variable in sorted(os.environ):
        path = variable.removeprefix(PREFIX).lower().split(NESTED)
        if not variable.startswith(PREFIX) or path[0] != name:
            continue
        if group := _groups().get(name):
            field = group.model_fields.get(path[-1])
            if len(path) > 1 and (field is None or not _is_complex(field.annotation)):
                continue
        try:
            json.loads(os.environ[variable])
        except ValueError:
            return ".".join(path)
    return name


def _is_complex(annotation: Any) -> bool:
    """Whether a variable of this type is written in JSON."""
    return any(
        getattr(kind, "__origin__", kind) in (tuple, dict)
        for kind in (annotation, *get_args(annotation))
    )


def _explained(error: ValidationError, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    # the second of a place in `engine` is its kind
    in_engine = first["loc"][0] == "engine"
    path = [str(part) for n, part in enumerate(first["loc"]) if n != 1 or not in_engine]
    group = _groups().get(path[0])
    if first["type"] == "unexpected_keyword_argument":
        known = did_you_mean(path[-1], Credential.__dataclass_fields__)
        return f"there is no setting {'.'.join(path)} ({known})"
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = Issuer
        if in_engine:
            model = kinds()[str(first["loc"][1])]
        elif group is not None and len(path) == 2:  # noqa: PLR2004  # the group and its setting
            model = group
        return (
            f"there is no setting {'.'.join(path)} ({did_you_mean(path[-1], model.model_fields)})"
        )
    if first["type"].startswith("union_tag"):
        path.append("kind")
        first["msg"] = f"one of {', '.join(_kinds())} is needed"
    if first["type"] == "tuple_type":
        first["msg"] = f"a list is needed, {_AS_IN}"
    if first["type"] in ("model_type", "model_attributes_type") and group is not None:
        first["msg"] = f"a group is needed, with {', '.join(group.model_fields)}"
    name = ".".join(path)
    place = f"--{name.replace('_', '-')}" if name in flags else f"{name} (or {_variable(path)})"
    shown = isinstance(first["input"], str | int | float | list) and not _is_secret(path)
    given = f", not {first['input']!r}" if shown else ""
    return f"setting {place}: {first['msg'].removeprefix('Value error, ')}{given}"


def _kinds() -> list[str]:
    """Return the kinds of engines: those built in first, then those of plug-ins."""
    return [*kinds(), *sorted(plugins.available("clusters").keys() - kinds().keys())]


def _is_secret(path: list[str]) -> bool:
    """Whether the value of a setting, or something in it, may be a password."""
    if (
        path[-1] in SECRETS
        or path[0] == "finders"
        or path in (["accounts"], ["accounts", "issuers"])
    ):
        return True
    model: type[BaseModel] = _groups().get(path[0], Settings)
    field = model.model_fields.get(path[1] if model is not Settings and len(path) > 1 else path[0])
    if field is None:
        return len(path) == 1 and path[0] in _groups()
    kinds_of = (field.annotation, *get_args(field.annotation))
    return any(kind is SecretStr for kind in kinds_of)


def _place(error: Exception) -> str:
    """Say what is wrong with a file and where, without the line itself: it may be a password."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}"
