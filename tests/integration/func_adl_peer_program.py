"""Runs queries by func-adl-uproot, in an environment of its own, one after the other.

Takes jobs as lines of JSON: ``query``, ``path``, and ``target``, a file for the result's buffers.
Answers with the result's form and length, or with the error. Imports nothing of the project.
"""

import json
import os
import sys
from typing import Any

import awkward as ak
import dask
import numpy as np
import uproot
from func_adl_uproot import generate_function

_opened: dict[tuple[str, str], Any] = {}
_dask = uproot.dask


def _open(files: dict[str, str], filter_branch: Any) -> Any:
    """Describe a tree once: of a thousand branches that takes seconds, for every query the same."""
    ((path, tree),) = files.items()
    if (path, tree) not in _opened:
        _opened[path, tree] = _dask(files, filter_branch=filter_branch)
    return _opened[path, tree]


def _run(job: dict[str, Any]) -> dict[str, Any]:
    result = generate_function(job["query"])([job["path"]])
    if not isinstance(result, ak.Array):
        raise TypeError(f"the result is no array but {type(result)}")
    form, length, buffers = ak.to_buffers(ak.to_packed(result))
    np.savez(job["target"], *buffers.values())
    return {"form": form.to_json(), "length": length, "names": list(buffers)}


def main() -> None:
    """Take jobs until the input ends; whatever the libraries print goes to the errors."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    dask.config.set(scheduler="sync")
    uproot.dask = _open
    for line in sys.stdin:
        try:
            answer = _run(json.loads(line))
        except Exception as error:  # noqa: BLE001  # it is told to who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # to take apart what was described takes seconds


if __name__ == "__main__":
    main()
