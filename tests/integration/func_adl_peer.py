"""func-adl-uproot, asked from the tests; and how its results are held against ours."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any, Self

import awkward as ak
import numpy as np
import pytest

from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import open_root
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.model import ResultFormat
from tests.samples import CACHE
from tests.support import missing
from tools.environments import FUNC_ADL_UPROOT, interpreter

PROGRAM = Path(__file__).with_name("func_adl_peer_program.py")
NEAR, FAR = 1e-6, 1e-4
"""How far results of the same computation may be from each other, and of one in 64 bits."""

LOST = 0.3
"""GeV by which a mass may be off that is computed of momenta of some 100 GeV in 32 bits."""


class RaisedError(Exception):
    """func-adl-uproot does not run a query."""


class Peer:
    """A process of func-adl-uproot.

    Parameters
    ----------
    scratch
        A folder for its results.
    """

    def __init__(self, scratch: Path) -> None:
        try:
            python = interpreter(CACHE / FUNC_ADL_UPROOT[0].replace("==", "-"), FUNC_ADL_UPROOT)
        except (LookupError, OSError) as error:
            missing(str(error))
        self._target = scratch / "result.npz"
        self._errors = scratch / "errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-W", "ignore", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # which closes its input, and so it ends

    def columns(self, query: str, path: Path) -> dict[str, Any]:
        """Return the columns of a query on a file, named as ours are.

        Raises
        ------
        RaisedError
            It does not run it; says what it says.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"query": query, "path": str(path), "target": str(self._target)}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"func-adl-uproot has ended: {self._errors.read_text()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RaisedError(answer["error"])
        with np.load(self._target, allow_pickle=False) as stored:
            buffers = dict(zip(answer["names"], stored.values(), strict=True))
            array = ak.from_buffers(answer["form"], answer["length"], buffers)
        return {name: array[name] for name in array.fields} or {"branch": array}


def ours(query: str, path: Path) -> dict[str, Any]:
    """Return the columns of a query on a file, as the service computes them."""
    (extraction,) = FuncAdl().compile(query, ResultFormat.PARQUET).extractions
    with open_root(str(path)) as file:
        tree = file.tree(extraction.tree or file.trees[0])
        pieces = [found for _, _, found in chunks(extraction.bind(tree), tree, budget=1 << 20)]
    there = [one for one in pieces if one]
    return {name: ak.concatenate([one[name] for one in there]) for name in there[0]}


def difference(
    one: dict[str, Any], other: dict[str, Any], *, exact: bool = True, momenta: bool = False
) -> str:
    """Say how two results differ, or nothing.

    Whole numbers may differ in width, and a type may tell that values can be missing. Without
    ``exact`` types are not compared, and floats as far as 32 bits hold them. With ``momenta`` the
    other one has 64 bits where the one has 32, in which a mass may be lost beside its momentum.
    """
    if list(one) != list(other):
        return f"columns {list(one)} and {list(other)}"
    for name in one:
        types = [_described(array[name].layout) for array in (one, other)]
        if momenta:
            types = [one.replace("float32", "float64") for one in types]
        if exact and types[0] != types[1]:
            return f"types {types[0]} and {types[1]} of {name}"
        values = [array[name].to_list() for array in (one, other)]
        if len(values[0]) != len(values[1]):
            return f"{len(values[0])} and {len(values[1])} rows"
        for row, (left, right) in enumerate(zip(*values, strict=True)):
            near = FAR if momenta or not exact else NEAR
            if not _same(left, right, near, LOST if momenta else 0):
                return f"{left} and {right} in row {row} of {name}"
    return ""


def _described(layout: Any) -> str:
    """Return a type without the widths of whole numbers, and whether values may be missing."""
    while layout.is_option or layout.is_indexed:
        layout = layout.content
    if layout.is_record:
        parts = [f"{name}: {_described(layout.content(name))}" for name in layout.fields]
        return f"({', '.join(parts)})" if layout.is_tuple else f"{{{', '.join(parts)}}}"
    if layout.parameter("__array__") == "string":
        return "text"
    if layout.is_list:
        return f"list of {_described(layout.content)}"
    if layout.is_numpy:
        return "whole number" if layout.dtype.kind in "iu" else str(layout.dtype)
    return str(layout.form.type)


def _same(left: Any, right: Any, near: float, lost: float) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        parts = zip(left.values(), right.values(), strict=True)
        return list(left) == list(right) and all(_same(*pair, near, lost) for pair in parts)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(_same(*pair, near, lost) for pair in pairs)
    if any(isinstance(one, float) for one in (left, right)):
        if not all(isinstance(one, float | int) for one in (left, right)):
            return False
        both_none = math.isnan(left) and math.isnan(right)
        return both_none or math.isclose(left, right, rel_tol=near, abs_tol=lost)
    return bool(left == right) and type(left) is type(right)
