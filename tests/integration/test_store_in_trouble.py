"""An object store in trouble costs time, and never a result: a real SeaweedFS, and a full disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from servicex_server.errors import ResultTooLargeError, StoreUnavailableError, UploadError
from servicex_server.worker.upload import upload
from tests.integration.servers import Answer, stand_in
from tests.seaweed import SECRET_KEY, Seaweed
from tests.support import Server, copies, doctor, fill, small_disk, until

FILES = 100
OPEN = "no file starts until the object store works"
CLOSED = "the object store works again"

NewServer = Callable[..., Server]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Seaweed]:
    """Give an S3 server of this test's own."""
    (tmp_path / "seaweed").mkdir()
    server = Seaweed(tmp_path / "seaweed").start()
    yield server
    server.kill()


def serving(new_server: NewServer, store: Seaweed, seconds: str) -> Server:
    """Start a service on a store, whose workers try an upload again for so many seconds."""
    return new_server(
        "--workers",
        "2",
        SERVICEX_SERVER_STORAGE__OBJECTS_URL=store.url("sx"),
        SERVICEX_SERVER_STORAGE__UPLOAD_SECONDS=seconds,
        AWS_SECRET_ACCESS_KEY=SECRET_KEY,
    )


def done(server: Server) -> int:
    """Return how many files are done."""
    (count,) = server.rows("select count(*) from tasks where state = 'done'")[0]
    return int(count)


def struck(server: Server, store: Seaweed, folder: Path) -> str:
    """Submit a request, and kill the store when some of its files are done; return its id."""
    request_id = str(server.submit(file_list=copies(folder, FILES)).json()["request_id"])
    until(lambda: done(server) >= 5, "some files are done")
    store.kill()
    return request_id


def assert_complete(server: Server, store: Seaweed, request_id: str, *, files: int) -> None:
    """Hold the request: each file is done, at its first attempt, and its object is there."""
    status = server.wait(request_id, seconds=180)
    counts = [status[f"files-{name}"] for name in ("completed", "failed", "remaining")]
    assert (status["status"], counts) == ("Complete", [files, 0, 0])
    assert server.rows("select attempts, state, count(*) from tasks group by 1, 2") == [
        (1, "done", files)
    ]
    keys = {key for (key,) in server.rows("select object_key from tasks")}
    assert keys_in(store) == keys
    assert len(keys) == files


def keys_in(store: Seaweed) -> set[str]:
    """Return the keys of all objects of the service."""
    client = store.client()
    found = client.list_objects_v2(Bucket="results", Prefix="sx/").get("Contents", [])
    client.close()
    return {one["Key"].removeprefix("sx/") for one in found}


@contextmanager
def client_of(server: Server, request: dict[str, Any]) -> Iterator[Any]:
    """Give an S3 client with the keys of a request, which does not try again."""
    about = server.get(f"/servicex/transformation/{request['request_id']}").json()
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=about["minio-access-key"],
        aws_secret_access_key=about["minio-secret-key"],
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}),
    )
    yield client
    client.close()


def test_short_absence_of_the_store_costs_time_only(
    new_server: NewServer, store: Seaweed, tmp_path: Path
) -> None:
    """Workers keep what is finished, and try its upload again."""
    server = serving(new_server, store, "120")
    request_id = struck(server, store, tmp_path / "in")
    left = done(server)
    assert left < FILES
    store.start()
    assert_complete(server, store, request_id, files=FILES)
    assert OPEN not in server.output


def test_long_absence_of_the_store_stops_the_start_of_files(
    new_server: NewServer, store: Seaweed, tmp_path: Path
) -> None:
    """No file starts in vain, none loses an attempt, and everybody is told why."""
    server = serving(new_server, store, "1")
    request_id = struck(server, store, tmp_path / "in")
    until(lambda: OPEN in server.output, "the breaker opens")
    ready = server.get("/readyz")
    assert (ready.status_code, "no file starts since" in ready.json()["message"]) == (503, True)
    until(
        lambda: "no file starts since" in server.get("/servicex/workers").json()["reason"],
        "the reason is shown",
    )
    page = server.get(f"/requests/{request_id}", headers={"Accept": "text/html"}).text
    assert "No file starts since" in page
    assert "servicex_store_open 1.0" in server.get("/metrics").text
    assert server.get(f"/servicex/transformation/{request_id}").json()["status"] == "Running"
    until(lambda: not running(server), "all that had started has given up")
    store.start()
    assert_complete(server, store, request_id, files=FILES)
    assert CLOSED in server.output
    assert server.get("/readyz").status_code == 200


def test_results_of_a_store_that_is_away_can_be_deleted_and_asked_for_later(
    new_server: NewServer, store: Seaweed, tmp_path: Path
) -> None:
    """A reader is asked to try again; a deletion is accepted, and carried out when it is back."""
    server = serving(new_server, store, "1")
    kept, doomed = (server.run(file_list=copies(tmp_path / name, 2)) for name in ("a", "b"))
    with client_of(server, kept) as client:
        (found, _) = client.list_objects_v2(Bucket=kept["request_id"])["Contents"]
        store.kill()
        with pytest.raises(ClientError, match="SlowDown") as caught:
            client.get_object(Bucket=kept["request_id"], Key=found["Key"])
        headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
        assert headers["retry-after"] == "5"
        place = f"/servicex/transformation/{doomed['request_id']}"
        assert server.client.delete(place).status_code == 200
        assert server.get(place).status_code == 404
        store.start()
        until(
            lambda: size_of(client, kept["request_id"], found["Key"]) == found["Size"], "it is read"
        )
    until(lambda: server.counts()["requests"] == 1, "the deletion is carried out", seconds=90)
    left = keys_in(store)
    assert left == {key for (key,) in server.rows("select object_key from tasks")}
    assert len(left) == 2


def test_restart_while_the_store_is_away_loses_nothing(
    new_server: NewServer, store: Seaweed, tmp_path: Path
) -> None:
    """The service serves, says why it does not lead, and goes on when the store is back."""
    server = serving(new_server, store, "1")
    request_id = struck(server, store, tmp_path / "in")
    server.stop()
    server.start()
    until(lambda: "this process cannot lead: the object store" in server.output, "it says why")
    assert server.get(f"/servicex/transformation/{request_id}").json()["status"] == "Running"
    store.start()
    status = server.wait(request_id, seconds=180)
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    assert "Traceback" not in server.output


def test_result_that_is_gone_is_made_again(new_server: NewServer, tmp_path: Path) -> None:
    """A later request for the same asks the store, and trusts no row."""
    server = new_server(SERVICEX_SERVER_STORAGE__SHARE_RESULTS="own")
    files = copies(tmp_path / "in", 4)
    first = server.run(file_list=files)
    gone, *_ = server.stored(first["request_id"])
    gone.unlink()
    second = server.run(file_list=files)
    assert second["files-completed"] == 4
    (made,) = server.stored(second["request_id"])
    assert made.stat().st_size > 0
    assert "1 results are gone from the object store" in server.output
    third = server.run(file_list=files)
    assert server.stored(third["request_id"]) == []
    with client_of(server, third) as client:
        for one in client.list_objects_v2(Bucket=third["request_id"])["Contents"]:
            got = client.get_object(Bucket=third["request_id"], Key=one["Key"])
            assert len(got["Body"].read()) == one["Size"]


def test_lost_result_is_made_again_for_its_reader(new_server: NewServer, tmp_path: Path) -> None:
    """A reader of a result whose object is gone is asked to wait, and gets the same content."""
    server = new_server()
    request = server.run(file_list=copies(tmp_path / "in", 4))
    lost, *others = server.stored(request["request_id"])
    content = lost.read_bytes()
    with client_of(server, request) as client:
        bucket = request["request_id"]
        listed = client.list_objects_v2(Bucket=bucket)["Contents"]
        assert len(listed) == 4
        lost.unlink()
        asked = {"Bucket": bucket, "Key": lost.name}
        with pytest.raises(ClientError, match=r"SlowDown.*made again") as caught:
            client.get_object(**asked)
        assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "5"
        until(lambda: size_of(client, bucket, lost.name) == len(content), "it is read again")
        assert client.get_object(**asked)["Body"].read() == content
    ended = server.wait(bucket)
    assert (ended["status"], ended["files-completed"]) == ("Complete", 4)
    assert "is not in the object store any more, and is made again" in server.output
    assert {one.name for one in server.stored(bucket)} == {one.name for one in (lost, *others)}


def test_cancel_is_accepted_while_the_store_is_away(
    new_server: NewServer, store: Seaweed, tmp_path: Path
) -> None:
    """The request ends, although nothing of it can be deleted."""
    server = serving(new_server, store, "1")
    store.kill()
    request_id = server.submit(file_list=copies(tmp_path / "in", 8)).json()["request_id"]
    until(lambda: OPEN in server.output, "the breaker opens")
    answer = server.client.post(f"/servicex/transformation/{request_id}/cancel")
    assert answer.status_code == 200
    assert server.wait(request_id)["status"] == "Canceled"
    assert "Traceback" not in server.output


def test_store_that_cannot_be_used_is_one_line(store: Seaweed, tmp_path: Path) -> None:
    """For `doctor`; and a service says at its start that no file starts, and why."""
    environment = {
        "SERVICEX_SERVER_STORAGE__OBJECTS_URL": store.url("sx"),
        "AWS_SECRET_ACCESS_KEY": "wrong",
    }
    found = doctor("--data-dir", str(tmp_path / "data"), **environment)
    assert found.returncode == 1
    (line,) = [one for one in found.stdout.splitlines() if "the object store" in one]
    assert "the object store answers 403 Forbidden (SignatureDoesNotMatch)" in line
    server = Server(tmp_path / "data", ["--workers", "1"], environment).start()
    until(lambda: OPEN in server.output, "the breaker opens")
    assert "SignatureDoesNotMatch" in server.get("/readyz").json()["message"]
    server.stop()


def size_of(client: Any, bucket: str, name: str) -> int:
    """Return the bytes of a result that is read; 0 while the store asks to wait."""
    try:
        return len(client.get_object(Bucket=bucket, Key=name)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] != "SlowDown":
            raise
        return 0


def running(server: Server) -> int:
    """Return how many files are in the engine."""
    return int(server.rows("select count(*) from tasks where state = 'running'")[0][0])


def test_full_disk_of_results_is_waited_for(tmp_path: Path) -> None:
    """A result on another disk than that of the results is kept until there is room."""
    result = tmp_path / "result"
    result.write_bytes(b"x" * 100_000)
    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "filler")
        target = (disk / "request" / "a").as_uri()
        with pytest.raises(StoreUnavailableError, match="No space left"):
            upload(result, target)
        tries: list[int] = []

        def step() -> None:
            tries.append(1)
            if len(tries) == 2:
                (disk / "filler").unlink()

        upload(result, target, patience=60, step=step)
        assert len(tries) == 2
        assert [one.name for one in (disk / "request").iterdir()] == ["a"]
        assert (disk / "request" / "a").stat().st_size == 100_000


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, StoreUnavailableError),
        (503, StoreUnavailableError),
        (429, StoreUnavailableError),
        (403, UploadError),
        (400, UploadError),
        (413, ResultTooLargeError),
    ],
)
def test_refusal_is_told_from_trouble(
    tmp_path: Path, status: int, error: type[UploadError]
) -> None:
    """What would be refused again is an error of the file; trouble is waited for."""
    result = tmp_path / "result"
    result.write_bytes(b"x")
    with (
        stand_in(lambda _: Answer(b"no", status)) as server,
        pytest.raises(UploadError, match=str(status)) as caught,
    ):
        upload(result, f"{server.url}/bucket/a?secret=x")
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)


def test_result_too_large_for_one_upload_is_an_error_of_the_query(tmp_path: Path) -> None:
    """Amazon S3 answers 400, as it does for other refusals; its code tells."""
    result = tmp_path / "result"
    result.write_bytes(b"x")
    answer = b"<Error><Code>EntityTooLarge</Code></Error>"
    with (
        stand_in(lambda _: Answer(answer, 400)) as server,
        pytest.raises(ResultTooLargeError, match="EntityTooLarge") as caught,
    ):
        upload(result, f"{server.url}/bucket/a")
    assert (caught.value.blame, caught.value.retryable) == ("query", False)
    assert "select fewer columns" in caught.value.hint
