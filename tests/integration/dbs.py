"""A stand-in for DBS, and the rows that it answers with.

DBS cannot be had here, and its data only by members. The stand-in is written from the server's own
code, `dbs2go`: its parameters and their defaults, rows as JSON or a line each, its errors. What it
does not show is that the server at CERN does so.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servicex_server.model import InputFile
from tests.integration.servers import Answer, Asked

NAME = "/DoubleMuon/Run2016H-UL2016_MiniAODv2_NanoAODv9-v1/NANOAOD"
LFN = "/store/data/Run2016H/DoubleMuon/NANOAOD/UL2016_MiniAODv2_NanoAODv9-v1/2510000"


def row(name: str, **more: Any) -> dict[str, Any]:
    """Return a row of ``files`` with details as the server has it."""
    return {
        "logical_file_name": f"{LFN}/{name}.root",
        "is_file_valid": 1,
        "file_size": 2_000_000_000 + len(name),
        "event_count": 1000,
        "check_sum": "1525110204",
        "adler32": "1fa61aca",
        "md5": None,
    } | more


def refused(reason: str, code: int = 118, status: int = 400) -> dict[str, Any]:
    """Return what the server says of an error; today's server puts it into a list."""
    return {
        "error": {"reason": reason, "message": "not valid", "function": "dbs.f", "code": code},
        "http": {"method": "GET", "code": status, "path": "/", "user_agent": ""},
        "exception": status,
        "type": "HTTPError",
        "message": "DBSError Code:118",
    }


@dataclass
class Reader:
    """Datasets with their blocks, answered as DBS answers; a test may have it go wrong.

    Parameters
    ----------
    wrong
        What is answered instead, by the name of the call or by the block whose files are asked for.
    held
        Blocks whose files are not answered before that is set.
    """

    types: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    wrong: dict[str, Answer] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    under_way: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, *blocks: Sequence[dict[str, Any]], kind: str = "VALID") -> list[str]:
        """Add a dataset; return the names of its blocks."""
        self.types[name] = kind
        made = {f"{name}#{n:04d}a-0": list(rows) for n, rows in enumerate(blocks)}
        self.blocks |= made
        return list(made)

    def __call__(self, asked: Asked) -> Answer:
        call = asked.path.rpartition("/")[2]
        query = asked.query
        if answer := self.wrong.get(query.get("block_name", ""), self.wrong.get(call)):
            return answer
        if call == "datasets":
            kind = query.get("dataset_access_type", "VALID")
            found = {n: t for n, t in self.types.items() if n == query["dataset"]}
            rows: list[dict[str, Any]] = [
                {"dataset": name, "dataset_access_type": one}
                for name, one in found.items()
                if kind in ("*", one)
            ]
        elif call == "blocks":
            names = [name for name in self.blocks if name.startswith(f"{query['dataset']}#")]
            rows = [{"block_name": name} for name in reversed(names)]
        elif call == "filesummaries":
            counts = [
                len(self._valid(name, query))
                for name in self.blocks
                if name.startswith(f"{query['dataset']}#")
            ]
            rows = [{"num_file": sum(counts), "num_block": len(counts)}]
        elif call == "files":
            rows = self._files(query)
        else:
            return Answer(json.dumps([refused("no such API")]).encode(), 400)
        return answered(asked, rows)

    def _valid(self, block: str, query: Any) -> list[dict[str, Any]]:
        """Leave invalid files out only if that is asked for, and then those of odd datasets too."""
        if query.get("validFileOnly") != "1":
            return self.blocks[block]
        if self.types[block.partition("#")[0]] not in ("VALID", "PRODUCTION"):
            return []
        return [one for one in self.blocks[block] if one["is_file_valid"] == 1]

    def _files(self, query: Any) -> list[dict[str, Any]]:
        block = query["block_name"]
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        if block in self.held:
            self.held[block].wait(20)
        with self.lock:
            self.under_way -= 1
        rows = self._valid(block, query)[::-1]
        if query.get("detail") not in ("1", "true", "True"):
            return [{"logical_file_name": one["logical_file_name"]} for one in rows]
        return rows


def answered(asked: Asked, rows: Sequence[dict[str, Any]]) -> Answer:
    """Return rows as the server writes them: a line each if that is all that is accepted."""
    lines = [json.dumps(one) + "\n" for one in rows]
    if asked.headers["accept"] == "application/ndjson":
        return Answer("".join(lines).encode(), headers={"Content-Type": "application/ndjson"})
    text = "[\n" + ",".join(lines) + "]\n" if lines else "[]"
    return Answer(text.encode(), headers={"Content-Type": "application/json"})


def lines(*texts: str) -> Answer:
    """Return lines as an answer that began well."""
    return Answer("".join(texts).encode(), headers={"Content-Type": "application/ndjson"})


def names(files: Sequence[InputFile]) -> list[str]:
    """Return the names of files, without folders and endings."""
    return [Path(file.name).stem for file in files]
