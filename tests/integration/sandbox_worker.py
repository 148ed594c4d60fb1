"""A worker that runs functions in the sandbox: ``sandbox_worker.py``, fed by lines of JSON.

It has what an attacker would want: a secret in its environment and in a file that it holds open.
"""

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

import psutil

from servicex_server.errors import ServiceXError
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import Limits, ResultFormat
from servicex_server.worker.program import run_program


def answer(question: dict[str, str]) -> dict[str, str]:
    """Run one function, and return what became of it and of the processes that it started."""
    source = base64.b64encode(question["source"].encode()).decode()
    program = PythonFunction().compile(source, ResultFormat.PARQUET)
    with tempfile.TemporaryDirectory(prefix="servicex-") as folder:
        output = Path(folder, "out.parquet")
        told = {"kind": "", "message": ""}
        try:
            ran = run_program(
                program,
                question["input"],
                output,
                ResultFormat.PARQUET,
                Limits(seconds=float(question["seconds"])),
                Path(folder),
                sandboxed=question["sandboxed"] == "yes",
            )
            log = ran.log_tail
        except ServiceXError as error:
            told = {"kind": type(error).__name__, "message": str(error)}
            log = vars(error).get("log_tail", "")
        left = psutil.Process().children(recursive=True)
        files = [path.name for path in Path(folder).iterdir()]
    return told | {"log": log, "left": str(left), "files": " ".join(files)}


if __name__ == "__main__":
    os.set_inheritable(os.open(os.environ["SECRET_FILE"], os.O_RDONLY), True)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
