"""Several real processes on one PostgreSQL: one dispatches, and any of them may die."""

import base64
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest

from servicex_server.database.advisory_locks import SPACE, Lock
from tests.postgres import Postgres, postgres
from tests.support import Server, copies, sample, until

HZZ = sample("uproot-HZZ.root")
QUERY = '[{"treename": "events", "filter_name": ["E1"]}]'
TAKEOVER_SECONDS = 10


class Facility:
    """Processes that share a PostgreSQL server and a data folder.

    One does everything, one only dispatches, and one only answers (`api`).
    """

    def __init__(self, folder: Path, server: Postgres) -> None:
        self.postgres = server
        at = {"SERVICEX_SERVER_STORAGE__DATABASE_URL": server.url()}
        workers = ["--workers", "1"]
        self.everything = Server(folder / "data", workers, at, name="-everything")
        self.dispatcher = Server(folder / "data", workers, at, name="-dispatch")
        self.api = Server(folder / "data", ["--no-dispatch"], at, name="-api")
        self.processes = [self.everything, self.dispatcher, self.api]

    def complete(self) -> None:
        """Start the processes that do not run, and wait until one leads and one waits."""
        for one in self.processes:
            if one.process is not None and one.process.poll() is None:
                continue
            if one is self.dispatcher:
                one.launch("dispatch")
                assert one.says(r"is ready and (leads|waits)") == "waits"
            else:
                one.start()
        until(lambda: len(self.leaders()) == 1, "one leads")
        until(lambda: "this process leads" in self.terms()[-1], "it says so")

    def terms(self) -> list[str]:
        """Return the lines of the logs that say when a process began to lead, or ceased to."""
        lines = [line for one in self.processes for line in one.output.splitlines()]
        return sorted(line for line in lines if "this process leads" in line or "has lost" in line)

    def leaders(self) -> list[int]:
        """Return the sessions that hold the lock."""
        found = self.postgres.run(
            "select pid from pg_locks where granted and locktype = 'advisory' "
            "and classid = %s and objid = %s",
            SPACE,
            int(Lock.LEAD),
        )
        return [pid for (pid,) in found]

    def leader(self) -> Server:
        """Return the process that leads, as its log says: the last one that began to."""
        (at, process) = max(
            (line[:23], index)
            for index, one in enumerate(self.processes)
            for line in one.output.splitlines()
            if "this process leads" in line
        )
        assert at
        return self.processes[process]

    def stop(self) -> None:
        """End all processes that still run."""
        for one in self.processes:
            if one.process is not None and one.process.poll() is None:
                one.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """Give a facility with a PostgreSQL server of its own, which a test may break."""
    with postgres() as server:
        made = Facility(tmp_path_factory.mktemp("facility"), server)
        yield made
        made.stop()


@pytest.fixture
def facility(shared: Facility) -> Facility:
    """Give the facility with all of its processes."""
    shared.complete()
    return shared


def submit(api: Server, count: int) -> str:
    """Ask for so many files, copies of one."""
    files = copies(api.data_dir.parent / f"files-{secrets.token_hex(4)}", count)
    answer = api.submit(file_list=files, selection=QUERY)
    assert answer.status_code == 200, answer.text
    request_id: str = answer.json()["request_id"]
    return request_id


def some_done(api: Server, request_id: str, count: int = 1) -> None:
    """Wait until so many files of a request have ended."""
    deadline = time.monotonic() + 60
    while len(api.results(request_id)) < count:
        assert time.monotonic() < deadline, api.output
        time.sleep(0.02)


def every_file_once(api: Server, request_id: str, count: int) -> None:
    """Wait for the end, and look at the answer, the rows and the objects."""
    status = api.wait(request_id, seconds=90)
    assert (status["status"], status["files"]) == ("Complete", count)
    assert (status["files-completed"], status["files-failed"]) == (count, 0)
    rows = api.rows("select file_id, state from tasks where request_id = ?", request_id)
    assert Counter(state for _, state in rows) == {"done": count}
    assert len({file_id for file_id, _ in rows}) == count
    names = [result["s3-object-name"] for result in api.results(request_id)]
    assert len(set(names)) == len(names) == count
    # a worker that outlived its leader may have left an object that no row names
    stored = {path.name for path in api.stored(request_id)}
    assert stored == set(names)
    # all files are copies of one, and so are the results, bit for bit
    assert len({path.read_bytes() for path in api.stored(request_id)}) == 1


def test_another_process_takes_over_from_a_killed_leader(facility: Facility) -> None:
    """One process accepts a request, and the leader runs it until the test kills the leader.

    The next process leads within ten seconds. No file is lost, or delivered twice. A process that
    has no workers can cancel a request.
    """
    api = facility.api
    assert api.get("/readyz").json() == {"status": "ready", "leads": False}
    assert api.descendants(helpers=False) == []
    every_file_once(api, submit(api, 3), 3)

    request_id = submit(api, 60)
    some_done(api, request_id)
    (session,) = facility.leaders()
    leader = facility.leader()
    workers = leader.descendants(helpers=False)
    assert leader.process is not None
    leader.process.kill()
    began = time.monotonic()
    while facility.leaders() in ([], [session]):
        assert time.monotonic() - began < TAKEOVER_SECONDS
        time.sleep(0.05)
    every_file_once(api, request_id, 60)
    assert facility.leader() is not leader
    psutil.wait_procs(workers, timeout=20)
    assert not any(process.is_running() for process in workers)

    slow = "def run_query(path):\n    import time\n    time.sleep(600)\n"
    answer = api.submit(codegen="python", selection=base64.b64encode(slow.encode()).decode())
    hanging = answer.json()["request_id"]
    while api.rows("select count(*) from tasks where state = 'running'") != [(1,)]:
        time.sleep(0.02)
    api.client.post(f"/servicex/transformation/{hanging}/cancel").raise_for_status()
    # the only worker was busy with it and is free again
    assert api.run(selection=QUERY)["status"] == "Complete"
    assert api.get(f"/servicex/transformation/{hanging}").json()["status"] == "Canceled"


def test_restart_of_the_database_loses_no_file(facility: Facility) -> None:
    """The database stops twice during work, once as in a crash. All files end once.

    Meanwhile, no answer is an unexpected error.
    """
    api = facility.api
    request_id = submit(api, 60)
    ways: tuple[Literal["fast", "immediate"], ...] = ("fast", "immediate")
    for how in ways:
        some_done(api, request_id, len(api.results(request_id)) + 2)
        facility.postgres.stop(how)
        assert api.get("/readyz").status_code == 503
        answer = api.get(f"/servicex/transformation/{request_id}")
        assert (answer.status_code, list(answer.json())) == (503, ["message"])
        facility.postgres.start()
        later = submit(api, 1)
    every_file_once(api, request_id, 60)
    every_file_once(api, later, 1)
    assert len(facility.leaders()) == 1
    assert "Traceback" not in api.output
    assert not any(facility.postgres.password in one.output for one in facility.processes)


def test_only_one_of_two_processes_leads(facility: Facility) -> None:
    """`serve` on PostgreSQL takes part in the leader election, and serves while it does not lead.

    A leader that loses its connection, and lives, stops leading and ends its workers, even if it
    believes that it has the lock.
    """
    one = facility.everything
    assert one.get("/readyz").json()["leads"] == (facility.leader() is one)
    before = len(facility.terms())
    request_id = submit(one, 40)
    servers = itertools.cycle((one, facility.api))
    for done in (5, 10):
        some_done(next(servers), request_id, done)
        (session,) = facility.leaders()
        facility.postgres.run("select pg_terminate_backend(%s)", session)
        deadline = time.monotonic() + TAKEOVER_SECONDS
        while (found := facility.leaders()) in ([], [session]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(found) == 1
    every_file_once(one, request_id, 40)

    # the last leader may still start its workers: the files may have ended before
    until(lambda: len(facility.terms()) == before + 4, "each term is in the log")
    # a log line is written after what it tells, so two terms may touch but never overlap
    found = ["leads" in line for line in facility.terms()[before - 1 :]]
    assert found == [True, False, True, False, True]
