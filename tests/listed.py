"""A finder for tests and benchmarks: what a file on this machine lists, with all replicas."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

from servicex_server.finders.contract import Finder
from servicex_server.model import InputFile, Replica


class Listed(Finder):
    """Finds the files of a JSON file, which has the URLs of each in a list of their own."""

    scheme: ClassVar[str] = "listed"

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield each file under a name of its own."""
        text = await asyncio.to_thread(Path(reference).read_text, encoding="utf-8")
        for number, urls in enumerate(json.loads(text)):
            replicas = tuple(Replica(url, f"RSE_{place}") for place, url in enumerate(urls))
            yield InputFile(replicas, name=f"scope:file{number}")
