"""A worker with a real certificate attacks the service, its scheduler and other workers.

Every attack sends pickles that create a folder when they are opened. The folder never appears,
outcomes of others do not change, and the other worker continues.
"""

import asyncio
import os
import pickle
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed.comm.core import CommClosedError, connect
from distributed.core import Server
from distributed.protocol.serialize import Serialized, ToPickle, to_serialize

from servicex_server import __version__
from servicex_server.clusters.local import LocalProcesses
from servicex_server.clusters.messages import Introduction, pack_introduction, pack_outcome
from servicex_server.clusters.scheduler import EXITS, OUTCOMES
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.model import Outcome
from tests.contract.test_engines import HZZ, endless, question, spec, until_it_runs

pytestmark = pytest.mark.anyio


REPORT: dict[str, Any] = {
    "stimulus_id": "x",
    "run_id": 1,
    "thread": 1,
    "traceback": None,
    "exception_text": "",
    "traceback_text": "",
    "metadata": {},
    "startstops": (),
    "typename": "x",
    "nbytes": 1,
    "status": "OK",
}
"""What a worker reports of any task."""


class Bomb:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._folder),)


class Hostile:
    """A peer that has the certificate of workers, and says that it is one.

    Attributes
    ----------
    answer
        Its answer to a function that it has to run.
    given
        The tasks that it received.
    """

    def __init__(self, cluster: LocalProcesses, folder: Path) -> None:
        self.cluster = cluster
        self.scheduler = cluster.address
        self.security = cluster._security.worker
        self.folder = folder
        self.bomb = Bomb(folder)
        self.bytes = pickle.dumps(self.bomb)
        self.answer: dict[str, Any] = {}
        self.given: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stream: Any = None
        self._server: Any = None
        self._listening: Any = None

    @property
    def address(self) -> str:
        """The address at which it listens."""
        return str(self._server.address)

    async def connect(self, address: str = "", **options: Any) -> Any:
        """Open a connection, to the scheduler by default."""
        arguments = self.security.get_connection_args("worker")
        return await connect(address or self.scheduler, timeout=5, **options, **arguments)

    async def call(self, **message: Any) -> Any:
        """Send one message to the scheduler; return the answer."""
        comm = await self.connect()
        try:
            await comm.write(message)
            return await asyncio.wait_for(comm.read(), 20)
        finally:
            comm.abort()

    async def join(self, name: str = "hostile", **fields: Any) -> None:
        """Register as a worker."""

        async def run(comm: Any, **message: Any) -> dict[str, Any]:
            del comm, message
            return self.answer

        self._server = Server({"run": run})
        await self._server.listen("tls://127.0.0.1:0", **self.security.get_listen_args("worker"))
        self.stream = await self.connect()
        await self.stream.write(self.registration(name) | fields)
        assert (await self.stream.read())["status"] == "OK"
        self._listening = asyncio.create_task(self._listen())

    def registration(self, name: str) -> dict[str, Any]:
        """Return the registration of a worker."""
        return {
            "op": "register-worker",
            "reply": False,
            "address": self.address,
            "status": "running",
            "nthreads": 1,
            "name": name,
            "now": time.time(),
            "resources": {},
            "memory_limit": 1 << 30,
            "local_directory": "/tmp",
            "services": {},
            "nanny": None,
            "pid": 1,
            "versions": {},
            "metrics": {"memory": 1},
            "extra": {},
            "stimulus_id": "x",
            "server_id": "x",
        }

    async def _listen(self) -> None:
        with suppress(CommClosedError):
            while True:
                for message in await self.stream.read():
                    if message.get("op") == "compute-task":
                        self.given.put_nowait(message)

    async def send(self, *messages: dict[str, Any]) -> None:
        """Send something as a registered worker."""
        await self.stream.write(list(messages))

    async def close(self) -> None:
        """Leave."""
        if self._listening is not None:
            self._listening.cancel()
            self.stream.abort()
        if self._server is not None:
            await self._server.close()


@dataclass
class Victim:
    """An engine with one good worker, which all tests attack one after the other."""

    cluster: LocalProcesses
    engine: DaskEngine
    ended: asyncio.Queue[Outcome]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests, and the engine that they share, on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def victim(anyio_backend: str) -> AsyncIterator[Victim]:
    """Run an engine with one good worker."""
    cluster = LocalProcesses(memory=1 << 30)
    engine = DaskEngine(cluster, workers=1)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    yield Victim(cluster, engine, ended)
    await engine.close()


@asynccontextmanager
async def attacked(
    victim: Victim, folder: Path
) -> AsyncIterator[tuple[DaskEngine, asyncio.Queue[Outcome], Hostile]]:
    """Give the engine, its outcomes and a hostile peer; then check that the engine works."""
    engine, ended = victim.engine, victim.ended
    hostile = Hostile(victim.cluster, folder / "executed")
    try:
        yield engine, ended, hostile
        assert not hostile.folder.exists()
        assert engine.restarts == 0
        # the other worker does its work
        engine.submit(spec(folder, "after"))
        outcome = await asyncio.wait_for(ended.get(), 60)
        assert (outcome.request_id, outcome.error) == (f"{folder.name}-after", None)
        assert ended.empty()
    finally:
        await hostile.close()
    async with asyncio.timeout(30):
        while len(engine.workers()) != 1:
            await asyncio.sleep(0.01)


def test_opened_pickle_of_the_attacks_creates_a_folder(tmp_path: Path) -> None:
    """Without this, the other tests would prove nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


async def test_scheduler_rejects_calls_of_the_service_from_a_worker(
    victim: Victim, tmp_path: Path
) -> None:
    """It rejects every call that runs code, reads others' tasks or ends the scheduler."""
    async with attacked(victim, tmp_path) as (_, _, hostile):
        scheduler = hostile.cluster._scheduler
        run = {"function": hostile.bytes, "args": hostile.bytes, "kwargs": hostile.bytes}
        attacks: list[dict[str, Any]] = [
            {"op": op, "plugin": hostile.bytes, "name": "x", "idempotent": True, "msg": {}}
            | run
            | {"setup": hostile.bytes, "teardown": hostile.bytes, "keys": (), "client": "x"}
            for op in scheduler.handlers
            if op
            not in {
                "register-worker",
                "register_nanny",
                "heartbeat_worker",
                "unregister",
                "retire_workers",
                "log_event",
            }
        ]
        assert len(attacks) > 40
        attacks += [
            {"op": "broadcast", "msg": {"op": "run"} | run},
            {"op": "log_event", "topic": "all", "msg": {"action": "remove-worker"}},
            {"op": "log_event", "topic": "warn", "msg": {"message": hostile.bytes}},
            {"op": "log_event", "topic": EXITS, "msg": {"worker": 1}},
            {"op": "retire_workers", "workers": None},
            {"op": ["run_function"]},
            {},
        ]
        for attack in attacks:
            with pytest.raises(CommClosedError):
                await hostile.call(**attack)
        topic = "worker-restart-memory"  # which each nanny of Dask publishes
        await hostile.call(op="log_event", topic=topic, msg={"worker": hostile.bytes})
        assert [event for _, event in scheduler.get_events(topic)] == [{}]
        for message in ([1], "x", None, [{"op": "run_function"} | run]):
            comm = await hostile.connect()
            await comm.write(message)
            with pytest.raises(CommClosedError):
                await asyncio.wait_for(comm.read(), 20)


async def test_scheduler_does_not_open_values_of_a_worker(victim: Victim, tmp_path: Path) -> None:
    """It unpickles nothing in calls, registrations and handshakes."""
    async with attacked(victim, tmp_path) as (_, _, hostile):
        await hostile.join()
        closed = (
            ToPickle(hostile.bomb),
            to_serialize(hostile.bomb),
            Serialized({"serializer": "pickle", "writeable": ()}, [hostile.bytes]),
            Serialized({"serializer": "dask", "type-serialized": hostile.bytes}, [b""]),
        )
        for value in closed:
            beat = {"op": "heartbeat_worker", "address": hostile.address, "now": value}
            with suppress(CommClosedError):
                await hostile.call(**beat, metrics={"memory": value, "servicex": {"x": value}})
            with suppress(CommClosedError):
                await hostile.call(**beat, metrics=value, executing=value, extensions=value)
            with suppress(CommClosedError):
                await hostile.call(op="log_event", topic=EXITS, msg=value)
            for field in hostile.registration(""):
                with suppress(CommClosedError):
                    forged = hostile.registration("other") | {"reply": True, field: value}
                    await hostile.call(**forged)
            with suppress(OSError):
                await hostile.connect(handshake_overrides={"compression": value})


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\xff\xff\xff\xff" * 200,  # lists of 2^32 items in one another
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5_000,
        b"\x81\xa8__Enum__\xc3",
        b"\xc1",
        b"",
    ],
)
async def test_malformed_message_ends_only_its_connection(
    victim: Victim, tmp_path: Path, frame: bytes
) -> None:
    """The scheduler bounds the nesting, and does not allocate the sizes that a frame claims."""
    async with attacked(victim, tmp_path) as (_, _, hostile):
        comm = await hostile.connect()
        size = len(frame)
        head = (1).to_bytes(8, "little") + size.to_bytes(8, "little")
        await comm.stream.write((16 + size).to_bytes(8, "little") + head + frame)
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(comm.read(), 20)
        for claimed in (1 << 40, 1 << 63):
            comm = await hostile.connect()
            await comm.stream.write(claimed.to_bytes(8, "little"))
            with pytest.raises(CommClosedError):
                await asyncio.wait_for(comm.read(), 20)
        comm = await hostile.connect()
        many = (1 << 22).to_bytes(8, "little") + bytes(8 << 10)
        await comm.stream.write(len(many).to_bytes(8, "little") + many)
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(comm.read(), 20)


async def test_worker_cannot_call_another_worker_or_a_nanny(victim: Victim, tmp_path: Path) -> None:
    """They trust only the certificate of the service, and end the connection."""
    async with attacked(victim, tmp_path) as (engine, _, hostile):
        (about,) = (await engine._client.scheduler.identity())["workers"].items()
        for address in (about[0], about[1]["nanny"]):
            assert address.startswith("tls://")
            with pytest.raises(OSError, match=r"certificate|closed|Timed out"):
                await hostile.connect(address)


async def test_registered_worker_can_only_report_its_own_task(
    victim: Victim, tmp_path: Path
) -> None:
    """Forged outcomes and exits of others change nothing, and pickles in reports stay closed."""
    async with attacked(victim, tmp_path) as (engine, ended, hostile):
        task = endless(tmp_path, "long")
        engine.submit(task)
        await until_it_runs(engine, task)
        address = next(worker.address for worker in engine.workers() if worker.task)
        forged = pack_outcome(Outcome(task.request_id, 1, 1, bytes_written=1), task)
        ((key, _),) = engine._assigned.items()
        attacks: list[dict[str, Any]] = [
            {"op": "log-event", "topic": OUTCOMES, "msg": {"key": task.key, "outcome": forged}},
            {"op": "log-event", "topic": OUTCOMES, "msg": {"key": task.key, "outcome": b"x" * 99}},
            {"op": "log-event", "topic": OUTCOMES, "msg": {"key": 1, "outcome": forged}},
            {"op": "log-event", "topic": OUTCOMES, "msg": ToPickle(hostile.bomb)},
            {"op": "log-event", "topic": OUTCOMES, "msg": {"outcome": b"x" * (2 << 20)}},
            {"op": "log-event", "topic": "warn", "msg": {"message": hostile.bytes}},
            {"op": "log-event", "topic": "print", "msg": {"args": ("x",)}},
            {
                "op": "log-event",
                "topic": "all",
                "msg": {"action": "remove-worker", "worker": address},
            },
            {"op": "update-graph", "client": "x", "expr_ser": to_serialize(hostile.bomb)},
            {"op": "subscribe-topic", "topic": OUTCOMES, "client": "x"},
            {"op": "cancel-keys", "keys": [key], "client": engine._client.id},
            {"op": "task-finished", "worker": address, "key": key, "type": hostile.bytes},
            REPORT | {"op": "task-finished", "key": key, "type": hostile.bytes},
            REPORT | {"op": "task-erred", "key": key, "exception": to_serialize(hostile.bytes)},
            REPORT | {"op": "task-erred", "key": key, "exception": hostile.bytes},
            {"op": ToPickle(hostile.bomb)},
            {"op": "close-client", "client": engine._client.id},
        ]
        for number, attack in enumerate(attacks):
            await hostile.join(f"hostile-{number}")
            with suppress(CommClosedError):
                await hostile.send(attack)
            async with asyncio.timeout(20):
                # a call after it is answered when the attack was read, or the worker is forgotten
                while hostile.address in (await engine._client.scheduler.identity())["workers"]:
                    with suppress(CommClosedError):
                        await hostile.send({"op": "close-stream"})
                    await asyncio.sleep(0.01)
            await hostile.close()
        assert [worker.task for worker in engine.workers() if worker.address == address] == [
            task.key
        ]
        assert ended.empty()
        await engine.stop([task.key])


async def test_answers_and_outcomes_of_a_worker_are_not_unpickled(
    victim: Victim, tmp_path: Path
) -> None:
    """The worker answers a task, a dry run and a probe with pickles."""
    async with attacked(victim, tmp_path) as (engine, ended, hostile):
        good = pack_introduction(Introduction(__version__, "evil", 0))
        answers: list[dict[str, Any]] = [
            {"status": "OK", "result": ToPickle(hostile.bomb)},
            {"status": "OK", "result": to_serialize(hostile.bomb)},
            {"status": "OK", "result": Serialized({"serializer": "pickle"}, [hostile.bytes])},
            {"status": "error", "exception": hostile.bytes, "traceback": hostile.bytes},
            {"status": "uncaught-error", "exception": hostile.bytes, "traceback": hostile.bytes},
            {"status": "uncaught-error", "exception": to_serialize(hostile.bomb)},
            {"status": "OK", "result": hostile.bytes},
            {"status": "OK", "result": to_serialize(b"{}")},
            {},
        ]
        for number, answer in enumerate(answers):
            hostile.answer = answer
            await hostile.join(f"hostile-{number}")
            async with asyncio.timeout(20):
                while "as a worker of servicex-server" not in (problem := _problem(engine)):
                    await asyncio.sleep(0.01)
            assert problem
            await hostile.close()
            async with asyncio.timeout(20):
                while len(engine.workers()) > 1:
                    await asyncio.sleep(0.01)
        hostile.answer = {"status": "OK", "result": to_serialize(good)}
        blocking = endless(tmp_path, "blocks")
        engine.submit(blocking)
        await until_it_runs(engine, blocking)
        task = spec(tmp_path, "given")
        lies: list[dict[str, Any]] = [
            {"op": "task-erred", "exception": to_serialize(hostile.bytes), "status": "error"},
            {"op": "task-finished", "type": hostile.bytes, "nbytes": 1, "status": "OK"},
            {"op": "log-event", "topic": OUTCOMES, "outcome": pickle.dumps(hostile.bomb)},
            {"op": "log-event", "topic": OUTCOMES, "outcome": b'{"parts": [[0, 1]]}'},
        ]
        for number, lie in enumerate(lies):
            await hostile.join(f"given-{number}")
            engine.submit(task)
            given = await asyncio.wait_for(hostile.given.get(), 60)
            if "outcome" in lie:
                told = {"key": given["key"], "outcome": lie.pop("outcome")}
                await hostile.send(lie | {"msg": told})
            else:
                await hostile.send(REPORT | lie | {name: given[name] for name in ("key", "run_id")})
            outcome = await asyncio.wait_for(ended.get(), 60)
            assert outcome.error is not None
            assert outcome.error.kind == "WorkerDied"
            assert (outcome.request_id, outcome.attempts[0].url) == (task.request_id, HZZ)
            await hostile.close()
        await engine.stop([blocking.key])
        assert await engine.check(question()) is None


def _problem(engine: DaskEngine) -> str:
    return next((one.problem for one in engine.workers() if "hostile" in one.name), "")
