"""The service rejects queries that never end, exhaust memory or crash, and serves others.

The language ``hostile`` does what its text says, in a compiler process or on a worker. It stands
for any fault of a parser.
"""

import base64
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.test_accounts import People
from tests.support import HALTS, Server, command_of, copies, let_go, plug_in, sample, until

ZMUMU = str(sample("uproot-Zmumu.root"))
HOSTILE = """
import ctypes, os, tempfile, time
from dataclasses import dataclass

from servicex_server.columnar.plan import Query
from servicex_server.languages.uproot_raw import UprootRaw


def misbehave(how):
    kept = []
    if how == "crash":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(0)
    if how == "raise":
        raise LookupError("a mistake of a plug-in")
    if how == "recurse":
        return misbehave(how)
    if how == "loud":
        os.write(1, b"LOUD " * 1000), os.write(2, b"LOUD " * 1000)
    if how == "write":
        with tempfile.TemporaryFile() as file:
            while True:
                file.write(bytes(1 << 20))
    while how == "spin":
        pass
    while how == "sleep":
        time.sleep(1)
    while how == "allocate":
        kept.append(bytearray(1 << 20))
    if how == "once":
        raise LookupError(str(sorted(os.environ)))


def write_pid(path):
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid()))
    return file.name


@dataclass(frozen=True)
class Late:
    inner: object
    how: str
    tree: str
    output: str
    required: bool | None = None

    def bind(self, tree):
        misbehave(self.how)
        return self.inner.bind(tree)


class Hostile(UprootRaw):
    name = "hostile"

    def compile(self, selection, result_format):
        when, how, *flag = selection.split()
        if how == "announce":
            os.replace(write_pid(flag[0]), flag[0])
            how = "sleep"
        elif flag and not os.path.exists(flag[0]):
            how = "nothing"
        if when == "compile":
            misbehave(how)
        query = super().compile('[{"treename": "events", "filter_name": "E1"}]', result_format)
        late = [Late(one, how, one.tree, one.output) for one in query.extractions]
        return Query(tuple(late)) if when == "bind" else query
"""
"""A query language whose texts are ``compile HOW`` and ``bind HOW``.

With the path of a file behind it a text is harmless until this file is there; ``announce`` writes
the process id of the helper to the file.
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a service with the hostile language, an attacker and another user."""
    folder = tmp_path_factory.mktemp("hostile")
    environment = plug_in(folder / "plugins", "hostile", "Hostile", HOSTILE, group="languages")
    config = folder / "config.yaml"
    config.write_text(
        json.dumps({"sign_in": True, "reading": {"local_folders": ["/"]}, "workers": 1})
    )
    secrets = {"AWS_SECRET_ACCESS_KEY": "not-for-helpers", "PGPASSWORD": "not-for-helpers"}
    server = Server(folder / "data", ["--config", str(config)], environment | secrets).start()
    found = People(server)
    for who in ("attacker", "owner"):
        found.add(who)
    yield found
    server.stop()


def post(people: People, who: str, selection: str, codegen: str = "hostile") -> httpx.Response:
    """Submit a query."""
    body = {
        "file-list": [ZMUMU],
        "selection": selection,
        "codegen": codegen,
        "result-destination": "object-store",
        "result-format": "parquet",
    }
    return people.ask(who, "POST", "/servicex/transformation", json=body)


def helpers(server: Server) -> list[psutil.Process]:
    """Return the helper processes of the service itself, and their fork server last."""
    assert server.process is not None
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.Error):  # it has just ended
            if "query_processes.fork_server" in command_of(child):
                found += [*child.children(), child]
    return found


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("spin", "compiling this query takes more than 2 s of processor time"),
        ("sleep", "compiling this query takes more than 10 s"),
        ("allocate", "compiling this query needs more than 256 MiB of memory"),
        ("crash", "cannot be compiled: twice the process that compiled it was ended by signal 11"),
        ("exit", "cannot be compiled: twice the process that compiled it ended with exit code 0"),
        ("raise", "cannot be compiled: LookupError: a mistake of a plug-in"),
        ("recurse", "cannot be compiled: RecursionError"),
        ("write", "cannot be compiled: OSError"),
    ],
)
def test_misbehaving_query_is_rejected(people: People, how: str, words: str) -> None:
    """The server answers 400 with the field and the limit, stores nothing, and continues."""
    before = people.server.counts()
    answer = post(people, "attacker", f"compile {how}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"].startswith("selection: ")
    assert words in answer.json()["message"]
    assert people.server.counts() == before
    assert people.ended(people.submit())["status"] == "Complete"


def test_fault_of_a_language_plug_in_is_logged(people: People) -> None:
    """The operator sees the place of the fault, because the user is not to blame."""
    post(people, "attacker", "compile raise")
    assert "query language hostile failed to compile a query" in people.server.output
    assert "in misbehave" in people.server.output


def test_helper_process_prints_nothing_and_has_no_secrets(people: People) -> None:
    """Output of a library may contain text of a user. A helper does not know the secrets."""
    post(people, "attacker", "compile loud")
    assert "LOUD" not in people.server.output
    message = post(people, "attacker", "compile once").json()["message"]
    assert "PATH" in message
    assert not any(name in message for name in ("AWS_", "PGPASSWORD", "SERVICEX_SERVER_"))
    for one in helpers(people.server):
        assert one.cwd() == "/"
        opened = [file.path for file in one.open_files()]
        assert not any(path.startswith(f"{people.server.data_dir}/") for path in opened)


def hostile_queries() -> list[tuple[str, str]]:
    """Return eight texts, with their languages, that have held a service for minutes."""
    deep = "(call Select (call EventDataset 'b' 'events') (lambda (list e) {}))"
    source = "def run_query(f): pass\nx = [" + "{a: (b, [c])}," * 50_000 + "]"
    return [
        ("uproot-raw", json.dumps([{"treename": "e", "cut": f"max({','.join(['x'] * 300_000)})"}])),
        (
            "uproot-raw",
            json.dumps([{"treename": "e", "expressions": [f"x{n}" for n in range(60_000)]}]),
        ),
        ("uproot", deep.format("(- " * 150_000 + "1" + ")" * 150_000)),
        ("uproot", deep.format(f"(list {'(nope) ' * 100_000})")),
        ("python", base64.b64encode(source.encode()).decode()),
        ("hostile", "compile spin"),
        ("hostile", "compile sleep"),
        ("hostile", "compile allocate"),
    ]


def test_eight_hostile_queries_do_not_delay_other_users(people: People) -> None:
    """Three requests of another user complete before the last hostile query has an answer."""
    assert people.server.process is not None
    service = psutil.Process(people.server.process.pid)
    queries = hostile_queries()
    with ThreadPoolExecutor(len(queries)) as threads:
        answers = [
            threads.submit(post, people, "attacker", text, language) for language, text in queries
        ]
        ended = [people.ended(people.submit())["status"] for _ in range(3)]
        under_way = [one for one in answers if not one.done()]
        memory = service.memory_info().rss
    assert ended == ["Complete"] * 3
    assert under_way
    assert memory < 600 << 20
    # too many names, or a text of another kind, may also be found to be wrong by then
    statuses = [one.result().status_code for one in answers]
    assert set(statuses) <= {200, 400}
    assert statuses[-3:] == [400, 400, 400]


@pytest.mark.parametrize("forks_others", [False, True])
def test_a_helper_that_is_killed_is_replaced(
    people: People, tmp_path: Path, *, forks_others: bool
) -> None:
    """The test kills a busy helper or the fork server. The query still gets an answer."""
    announced = tmp_path / "announced"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(post, people, "attacker", f"compile announce {announced}")
        until(announced.exists, "a helper is in the middle of it")
        busy = psutil.Process(int(announced.read_text()))
        chosen = busy.parent() if forks_others else busy
        assert chosen is not None
        announced.unlink()
        os.kill(chosen.pid, signal.SIGKILL)
        until(announced.exists, "another one is in the middle of it")
        assert psutil.wait_procs([busy], timeout=5)[1] == []
        assert people.ended(people.submit())["status"] == "Complete"
        assert answer.result().status_code == 400
        assert "takes more than 10 s" in answer.result().json()["message"]


def test_helpers_that_are_killed_while_idle_are_replaced(people: People) -> None:
    """The test kills all helpers and the fork server."""
    until(lambda: len(helpers(people.server)) > 1, "helpers are ready")
    for one in helpers(people.server):
        one.kill()
    assert people.ended(people.submit())["status"] == "Complete"


def test_a_signal_ends_the_service_while_queries_are_compiled(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The service does not wait for the queries, and leaves no process behind."""
    environment = plug_in(tmp_path / "plugins", "hostile", "Hostile", HOSTILE, group="languages")
    # nobody comes to work before a query has been compiled
    server = new_server("--workers", "1", **environment, SERVICEX_SERVER_SCALING__LEAST_WORKERS="0")
    texts = [f"compile announce {tmp_path / 'announced'}", *["compile sleep"] * 7]
    with ThreadPoolExecutor(len(texts)) as threads:
        asked = [threads.submit(server.submit, codegen="hostile", selection=one) for one in texts]
        until((tmp_path / "announced").exists, "a helper works")
        below = server.descendants()
        waiting = [one for one in asked if not one.done()]
        server.stop()
    assert server.process is not None
    assert server.process.returncode == 0
    assert psutil.wait_procs(below, timeout=5)[1] == []
    # two at a time, each for ten seconds: only those whose time was up anyway are answered
    answers = [one.result().text for one in waiting if one.exception() is None]
    assert sum("takes more than" in answer for answer in answers) <= 2


def test_helpers_end_with_a_service_that_is_killed(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """A busy helper ends, too."""
    environment = plug_in(tmp_path / "plugins", "hostile", "Hostile", HOSTILE, group="languages")
    server = new_server("--workers", "1", **environment, SERVICEX_SERVER_SCALING__LEAST_WORKERS="0")
    with ThreadPoolExecutor(1) as threads:
        text = f"compile announce {tmp_path / 'announced'}"
        asked = threads.submit(server.submit, codegen="hostile", selection=text)
        until((tmp_path / "announced").exists, "a helper works")
        below = helpers(server)
        server.stop(signal.SIGKILL)
        assert psutil.wait_procs(below, timeout=5)[1] == []
        assert isinstance(asked.exception(), httpx.HTTPError)


def working(people: People, folder: Path) -> str:
    """Have the only worker work for the owner until `let_go` is called; return the request."""
    last = copies(folder, 3)[2:]
    source = base64.b64encode(HALTS.encode()).decode()
    changes: dict[str, Any] = {"file-list": last, "selection": source, "codegen": "python"}
    request_id = people.submit("owner", **changes)
    running = "select count(*) from tasks where state = 'running' and request_id = ?"
    until(lambda: people.server.rows(running, request_id) == [(1,)], "the file is worked on")
    return request_id


def test_hostile_dry_run_fails_no_task(people: People, tmp_path: Path) -> None:
    """The worker of the dry run also runs a task of another user, which ends well at once."""
    request_id = working(people, tmp_path / "files")
    worker = people.server.dask_processes()
    for how in ("spin", "sleep", "allocate", "crash", "crash"):
        answer = post(people, "attacker", f"bind {how}")
        # what a dry run that is killed would have said is not known: the request waits for workers
        assert answer.status_code == 200, answer.text
        key = answer.json()["request_id"]
        people.ask("attacker", "POST", f"/servicex/transformation/{key}/cancel")
    let_go(tmp_path / "files")
    assert people.ended(request_id)["status"] == "Complete"
    assert people.server.dask_processes() == worker
    attempts = "select max(attempts) from tasks where request_id = ?"
    assert people.server.rows(attempts, request_id) == [(1,)]


def test_query_that_is_hostile_on_the_worker_fails_alone(people: People, tmp_path: Path) -> None:
    """The server may have accepted it under other limits. Its files fail, and the worker stays."""
    others = working(people, tmp_path / "files")
    texts = [f"compile {how} {tmp_path / 'flag'}" for how in ("spin", "allocate", "crash")]
    answers = [post(people, "attacker", text) for text in texts]
    assert [answer.status_code for answer in answers] == [200] * 3
    worker = people.server.dask_processes()
    (tmp_path / "flag").touch()
    let_go(tmp_path / "files")
    assert people.ended(others)["status"] == "Complete"
    for answer in answers:
        key = answer.json()["request_id"]
        assert people.ended(key, "attacker")["status"] == "Fatal"
        errors = people.ask("attacker", "GET", f"/servicex/transformation/{key}/errors").json()
        assert [error["class"] for error in errors["errors"]] == ["Query"]
        assert "this query" in errors["errors"][0]["message"]
    assert people.server.dask_processes() == worker
