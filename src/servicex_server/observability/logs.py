"""Logging, with one line per event that names its request, file and worker."""

import logging
import os
from typing import Any

from servicex_server.observability.log_throttling import Throttle
from servicex_server.text.escaping import escaped, redacted

_EXTRAS = ("request_id", "file_id", "dataset_id", "worker", "error_id")


_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


_CONTINUED = "  | "
"""Prefix of each line of a traceback, so that its text cannot look like a log record."""


class _Formatter(logging.Formatter):
    """Formats a record as one line, and its traceback below.

    It escapes foreign texts, so that they cannot forge a record, and redacts secrets in URLs.
    """

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord(vars(record) | _NO_TRACEBACK)
        extra = [
            f"{key}={value}" for key in _EXTRAS if (value := getattr(record, key, None)) is not None
        ]
        text = super().format(plain)
        lines = [_shown(f"{text} [{' '.join(extra)}]" if extra else text)]
        if record.exc_info:
            lines += self._continued(self.formatException(record.exc_info))
        if record.stack_info:
            lines += self._continued(self.formatStack(record.stack_info))
        return "\n".join(lines)

    @staticmethod
    def _continued(text: str) -> list[str]:
        return [f"{_CONTINUED}{_shown(line)}" for line in text.split("\n")]


def _shown(text: str) -> str:
    return escaped(redacted(text))


_NO_TRACEBACK = {"exc_info": None, "exc_text": None, "stack_info": None}


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(Throttle())
    return handler


def configure_worker() -> None:
    """Configure the logs of a worker process in the same way as those of the service."""
    logging.basicConfig(level=logging.WARNING, handlers=[_handler()])
    logging.captureWarnings(capture=True)
    escape_all()


def escape_all() -> None:
    """Have the log handlers of libraries escape foreign texts.

    distributed adds handlers when it is imported. Handlers of the root logger belong to the program
    and are not changed.
    """
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if not isinstance(handler.formatter, _Formatter):
                handler.setFormatter(_Formatter())


def configure(level: str) -> None:
    """Write the logs of this package to standard error, and those of libraries from warnings up."""
    logging.basicConfig(level=logging.WARNING, handlers=[_handler()], force=True)
    # a warning may quote the query that is compiled
    logging.captureWarnings(capture=True)
    logging.getLogger("servicex_server").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # at DEBUG it logs the code_verifier of each sign-in, with which a code yields a token
    logging.getLogger("authlib").setLevel(logging.WARNING)
    configure_distributed(level)


def configure_distributed(level: str = "INFO") -> None:
    """Have distributed log errors only, or more at DEBUG; call this before the first import of it.

    It sets its own levels when it is imported, here and in the workers.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "info" if level == "DEBUG" else "error")


def uvicorn_log_config() -> dict[str, Any]:
    """Return a logging configuration for uvicorn that does not change ours."""
    return {"version": 1, "disable_existing_loggers": False}
