"""A service in the test process: all of it but its socket and its workers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from servicex_server.app import App
from servicex_server.model import Outcome, TaskSpec
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app


def _done(spec: TaskSpec) -> Outcome:
    return Outcome(spec.request_id, spec.file_id, spec.attempt)


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a service with these settings."""
    async with App(settings, engine=MemoryEngine(_done)) as app:
        web = web_app(app)
        transport = httpx.ASGITransport(web)
        async with (
            web.router.lifespan_context(web),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            yield client
