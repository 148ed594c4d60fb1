"""Logs: one line per event, with the request, file and worker it belongs to."""

import logging
import os
from typing import Any

_EXTRAS = ("request_id", "file_id", "dataset_id", "worker", "error_id")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extra = [
            f"{key}={value}" for key in _EXTRAS if (value := getattr(record, key, None)) is not None
        ]
        return f"{text} [{' '.join(extra)}]" if extra else text


def configure(level: str) -> None:
    """Send the logs of this package to standard error; others' only from warnings up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("servicex_server").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # distributed sets its own levels when it is imported, here and in the workers
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "info" if level == "DEBUG" else "error")


def uvicorn_log_config() -> dict[str, Any]:
    """Return a logging set-up for uvicorn that leaves ours as it is."""
    return {"version": 1, "disable_existing_loggers": False}
