"""A user's program: calls what its argument names of the published client's own classes, in order.

It runs in a process of its own, because the client leaves event loops and sockets open.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from servicex.minio_adapter import MinioAdapter
from servicex.models import TransformRequest
from servicex.servicex_adapter import ServiceXAdapter


def plain(value: Any) -> Any:
    """Return what the client gave as plain data."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return json.loads(json.dumps(dataclasses.asdict(value), default=str))
    return str(value) if isinstance(value, Path) else value


async def call(adapter: ServiceXAdapter, name: str, given: list[Any]) -> Any:
    """Call a method of the adapter, or of a bucket's, whose keys are then what is given first."""
    if name.startswith("bucket."):
        keys, *given = given
        method = getattr(MinioAdapter(**keys), name.removeprefix("bucket."))
    else:
        method = getattr(adapter, name)
    if name == "submit_transform":
        given = [TransformRequest(**given[0])]
    return await method(*given)


async def main() -> None:
    """Do ``{"url", "token", "steps": [[method, argument, ...]]}``; an error is a text."""
    order = json.loads(sys.argv[1])
    adapter = ServiceXAdapter(order["url"], order["token"])
    answers: list[dict[str, Any]] = []
    for name, *given in order["steps"]:
        try:
            answers.append({"gave": plain(await call(adapter, name, given))})
        except Exception as error:  # noqa: BLE001  # the test looks at the text
            answers.append({"failed": f"{type(error).__name__}: {error}"})
    sys.stdout.write(f"\nANSWERS {json.dumps(answers)}\n")


if __name__ == "__main__":
    asyncio.run(main())
