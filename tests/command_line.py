"""Runs the command ``servicex-server`` in the test process, which saves the start of another."""

import io
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout

import pytest

from servicex_server.cli.main import main


def invoke(
    *arguments: str, environment: Mapping[str, str] | None = None, given: str = ""
) -> tuple[int, str]:
    """Run the command with arguments, variables and typed text; return its exit code and output.

    The command has a thread of its own: it starts an event loop, and the thread of a test with
    Playwright has one already.
    """
    said = io.StringIO()

    def run() -> int:
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", ["servicex-server", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(given))
        patch.setenv("COLUMNS", "80")  # as without a terminal
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        umask = os.umask(0o077)
        try:
            with ThreadPoolExecutor(1) as pool:
                code = pool.submit(run).result(60)
        finally:
            os.umask(umask)
    return code, said.getvalue()
