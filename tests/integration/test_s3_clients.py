"""The S3 gateway with the clients of users: a real server, and real libraries."""

import asyncio
import http.client
import io
import os
import re
import socket
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aioboto3
import aiohttp
import boto3
import httpx
import minio
import numpy as np
import obstore
import pytest
import uproot
import uvicorn
import yarl
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from fastapi import FastAPI
from obstore.store import S3Store
from servicex.minio_adapter import MinioAdapter
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from servicex_server.accounts.signing_keys import SigningKeys
from servicex_server.storage.bucket import (
    BucketKeys,
    BucketObject,
    Buckets,
    Grant,
    bucket_keys,
)
from servicex_server.storage.choose import open_store
from servicex_server.storage.contract import Disk, ObjectInfo, ObjectStore
from servicex_server.storage.obstore_store import PIECE
from servicex_server.web.s3.routes import s3_routes

YEAR = 365 * 24 * 3600
ODD_NAMES = [
    "a b.root",
    "a+b.root",
    "a%20b.root",
    "a:b*c;d.root",
    "é—日本.parquet",
    "💥",
    "(a)'b'~!@$&=,.root",
    "a?b#c",
    "a\\b",
    "<a>&amp;",
    "a/b",
    "tab\tend",
    "line\nend",
    "bell\x07",
]


# boto3 signs links by version 2, and by version 4 for regions that never had another
CONFIGS: list[dict[str, Any]] = [{}, {"region_name": "eu-central-1"}]
both_versions = pytest.mark.parametrize("config", CONFIGS, ids=["version 2", "version 4"])


class Results(Buckets):
    """Results in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, BucketObject]] = {}

    async def objects(
        self,
        bucket: str,
        *,
        grant: Grant | None = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> list[BucketObject] | None:
        """Return results by ascending name; None if there is no such bucket."""
        del grant
        if bucket not in self.kept:
            return None
        names = sorted(n for n in self.kept[bucket] if n.startswith(prefix) and n > after)
        return [self.kept[bucket][name] for name in names[:limit]]

    async def object(
        self, bucket: str, name: str, *, grant: Grant | None = None
    ) -> BucketObject | None:
        """Return one result; None if there is no such bucket or result in it."""
        del grant
        return self.kept.get(bucket, {}).get(name)

    async def made_again(self, bucket: str, name: str, *, grant: Grant | None = None) -> bool:
        """Whether a lost result is made again: never here."""
        del bucket, name, grant
        return False


class Watched(ObjectStore):
    """A store that remembers what was streamed out of it."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.pieces: dict[str, list[int]] = defaultdict(list)

    def upload_url(self, key: str, *, seconds: float) -> str:
        return self._inner.upload_url(key, seconds=seconds)

    def download_url(self, key: str, *, seconds: float) -> str:
        return self._inner.download_url(key, seconds=seconds)

    async def put(self, key: str, content: bytes) -> None:
        await self._inner.put(key, content)

    async def head(self, key: str) -> ObjectInfo | None:
        return await self._inner.head(key)

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        self.asked[key].append((start, stop))
        async for piece in self._inner.stream(key, start, stop):
            self.pieces[key].append(len(piece))
            yield piece

    async def delete(self, keys: Iterable[str]) -> None:
        await self._inner.delete(keys)

    async def probe(self) -> None:
        await self._inner.probe()

    async def disk(self) -> Disk | None:
        return await self._inner.disk()

    async def folders(self) -> list[str]:
        return await self._inner.folders()

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return await self._inner.list(prefix)


class Tolerant:
    """Collapses doubled slashes in the path that is routed, as the application does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("//+", "/", scope["path"])}
        await self._app(scope, receive, send)


@dataclass
class Gate:
    """A running gateway, at the root of a server and once more below ``/s3``."""

    folder: Path
    host: str
    service_key: bytes = field(default_factory=lambda: os.urandom(32))
    results: Results = field(default_factory=Results)
    ahead: timedelta = timedelta()
    makes_again: bool = False
    lost: list[tuple[str, str]] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Watched(open_store(self.folder.as_uri()))

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def app(self) -> ASGIApp:
        def clock() -> datetime:
            return datetime.now(UTC) + self.ahead

        async def make_again(bucket: str, key: str) -> bool:
            self.lost.append((bucket, key))
            return self.makes_again

        app = FastAPI()
        keys = SigningKeys((self.service_key,))
        routes = s3_routes(
            self.results, self.store, keys, make_again, self.used.append, clock=clock
        )
        app.router.routes.extend([*routes, Mount("/s3", routes=routes)])
        app.add_middleware(Tolerant)
        return app

    def bucket(self, contents: dict[str, bytes] | None = None) -> "Bucket":
        """Make a bucket of finished results."""
        bucket = str(uuid.uuid4())
        self.results.kept[bucket] = {}
        for number, (name, content) in enumerate((contents or {}).items()):
            path = self.folder / bucket / str(number)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            self.results.kept[bucket][name] = BucketObject(
                name, f"{bucket}/{number}", len(content), datetime.now(UTC)
            )
        return Bucket(bucket, bucket_keys(self.service_key, bucket), self)

    def bucket_of_names(self, names: Iterable[str]) -> "Bucket":
        """Make a bucket of results that can only be listed."""
        bucket = self.bucket()
        self.results.kept[bucket.name] = {
            name: BucketObject(name, name, 1, datetime.now(UTC)) for name in names
        }
        return bucket


@dataclass
class Bucket:
    """A bucket, and clients with its keys or others."""

    name: str
    keys: BucketKeys
    gate: Gate

    def key(self, name: str) -> str:
        """Return the key in the store of a result."""
        return self.gate.results.kept[self.name][name].key

    def boto(self, keys: BucketKeys | None = None, *, below: str = "", **config: Any) -> Any:
        """Return a boto3 client."""
        keys = keys or self.keys
        region = config.pop("region_name", "us-east-1")
        return boto3.client(
            "s3",
            endpoint_url=self.gate.url + below,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            region_name=region,
            config=Config(retries={"total_max_attempts": 1}, **config),
        )

    def signed_url(
        self, key: str, method: str = "get_object", *, seconds: int = 3600, **config: Any
    ) -> str:
        """Return a URL made by boto3."""
        client = self.boto(**config)
        parameters = {"Bucket": self.name, "Key": key}
        url: str = client.generate_presigned_url(method, Params=parameters, ExpiresIn=seconds)
        return url

    def raw(self, method: str, path: str, query: str = "", **headers: str) -> httpx.Response:
        """Send a request signed by version 4 in the header."""
        credentials = Credentials(self.keys.access_key, self.keys.secret_key)
        target = f"{self.gate.url}{path}" + (f"?{query}" if query else "")
        request = AWSRequest(method=method, url=target, headers=headers)
        S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
        return httpx.request(method, target, headers=dict(request.headers.items()))

    def minio(self, keys: BucketKeys | None = None) -> minio.Minio:
        """Return a client of the package minio."""
        keys = keys or self.keys
        return minio.Minio(
            self.gate.host,
            access_key=keys.access_key,
            secret_key=keys.secret_key,
            secure=False,
        )

    def obstore(self, keys: BucketKeys | None = None, **config: Any) -> S3Store:
        """Return a client of the package obstore."""
        keys = keys or self.keys
        return S3Store(
            self.name,
            endpoint=self.gate.url,
            access_key_id=keys.access_key,
            secret_access_key=keys.secret_key,
            region=config.pop("region", "us-east-1"),
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
            **config,
        )


@pytest.fixture(autouse=True)
def _no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of the clients."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Run a gateway on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listening.getsockname()[1]}"
    made = Gate(tmp_path_factory.mktemp("objects"), host)
    config = uvicorn.Config(
        made.app(), lifespan="off", ws="none", log_level="warning", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield made
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def gate(running: Gate) -> Gate:
    """Give the gateway with a clock that is right; each test makes buckets of its own."""
    running.ahead = timedelta()
    return running


def refused(call: Any, *args: Any, **options: Any) -> tuple[str, int]:
    """Return the code and the status with which a boto3 call is refused."""
    with pytest.raises(ClientError) as caught:
        call(*args, **options)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def code_of(response: httpx.Response) -> str:
    """Return the code of an error in XML."""
    assert response.headers["content-type"] == "application/xml"
    error = ET.fromstring(response.content)
    assert error.tag == "Error"
    assert error.findtext("Message")
    assert error.findtext("Resource")
    assert error.findtext("RequestId") == response.headers["x-amz-request-id"]
    return error.findtext("Code") or ""


class TestListing:
    """The names of all results of a request, page by page."""

    names = tuple(f"result_{number:05}.parquet" for number in range(2500))

    @pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
    def test_boto3_lists_all_pages(self, gate: Gate, operation: str) -> None:
        """2,500 names come as three pages, in order, with either version of the call."""
        bucket = gate.bucket_of_names(self.names)
        pages = list(bucket.boto().get_paginator(operation).paginate(Bucket=bucket.name))
        assert [len(page["Contents"]) for page in pages] == [1000, 1000, 500]
        assert [page["IsTruncated"] for page in pages] == [True, True, False]
        assert [one["Key"] for page in pages for one in page["Contents"]] == list(self.names)
        assert {one["Size"] for page in pages for one in page["Contents"]} == {1}

    def test_minio_lists_all_names(self, gate: Gate) -> None:
        """The package minio lists them with either version of the call."""
        bucket = gate.bucket_of_names(self.names)
        for version_1 in (False, True):
            found = bucket.minio().list_objects(bucket.name, use_api_v1=version_1)
            assert [one.object_name for one in found] == list(self.names)

    def test_obstore_lists_all_names(self, gate: Gate) -> None:
        """The package obstore lists them with and without a delimiter."""
        bucket = gate.bucket_of_names(self.names)
        found = [one["path"] for batch in obstore.list(bucket.obstore()) for one in batch]
        assert found == list(self.names)
        folder = obstore.list_with_delimiter(bucket.obstore())
        assert [one["path"] for one in folder["objects"]] == list(self.names)

    def test_published_client_lists_all_names_and_sizes(self, gate: Gate) -> None:
        """The test uses the adapter of the client."""
        bucket = gate.bucket_of_names(self.names)
        adapter = MinioAdapter(
            gate.host, False, bucket.keys.access_key, bucket.keys.secret_key, bucket.name
        )
        found = asyncio.run(adapter.list_bucket())
        assert [(one.filename, one.size) for one in found] == [(name, 1) for name in self.names]

    def test_client_chooses_the_size_of_a_page(self, gate: Gate) -> None:
        """A client may ask for small pages, or for none. A page has at most 1,000 names."""
        bucket = gate.bucket_of_names("abcde")
        client = bucket.boto()
        pages = list(
            client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket.name, PaginationConfig={"PageSize": 2}
            )
        )
        assert [[one["Key"] for one in page["Contents"]] for page in pages] == [
            ["a", "b"],
            ["c", "d"],
            ["e"],
        ]
        none = client.list_objects_v2(Bucket=bucket.name, MaxKeys=0)
        assert (none["KeyCount"], none["IsTruncated"]) == (0, False)
        many = client.list_objects_v2(Bucket=bucket.name, MaxKeys=10_000)
        assert (many["KeyCount"], many["MaxKeys"]) == (5, 1000)
        exact = client.list_objects_v2(Bucket=bucket.name, MaxKeys=5)
        assert (exact["KeyCount"], exact["IsTruncated"]) == (5, False)

    def test_listing_starts_after_a_name_and_has_a_prefix(self, gate: Gate) -> None:
        """A client can combine both with a continuation token."""
        bucket = gate.bucket_of_names(["a1", "a2", "a3", "b1", "b2"])
        client = bucket.boto()
        after = client.list_objects_v2(Bucket=bucket.name, StartAfter="a2", Delimiter="/")
        assert [one["Key"] for one in after["Contents"]] == ["a3", "b1", "b2"]
        assert (after["StartAfter"], after["Delimiter"]) == ("a2", "/")
        alike = client.list_objects_v2(Bucket=bucket.name, Prefix="a", MaxKeys=1)
        more = client.list_objects_v2(
            Bucket=bucket.name,
            Prefix="a",
            StartAfter="b",
            ContinuationToken=alike["NextContinuationToken"],
        )
        assert [one["Key"] for one in more["Contents"]] == ["a2", "a3"]
        marked = client.list_objects(Bucket=bucket.name, Marker="b1")
        assert [one["Key"] for one in marked["Contents"]] == ["b2"]

    @pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
    def test_odd_names_are_listed_unchanged(self, gate: Gate, operation: str) -> None:
        """Pages may divide them, and a name may be a prefix."""
        bucket = gate.bucket_of_names(ODD_NAMES)
        paginator = bucket.boto().get_paginator(operation)
        pages = paginator.paginate(Bucket=bucket.name, PaginationConfig={"PageSize": 1})
        found = [one["Key"] for page in pages for one in page["Contents"]]
        assert found == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            page = bucket.boto().list_objects_v2(Bucket=bucket.name, Prefix=name)
            assert name in [one["Key"] for one in page["Contents"]]
            assert page["Prefix"] == name

    def test_names_are_encoded_on_request(self, gate: Gate) -> None:
        """The reply states the encoding. Without it, the reply escapes the names."""
        bucket = gate.bucket_of_names(["a +<é>&"])
        plain = bucket.raw("GET", f"/{bucket.name}", "list-type=2").text
        assert "<Key>a +&lt;é&gt;&amp;</Key>" in plain
        assert "EncodingType" not in plain
        encoded = bucket.raw("GET", f"/{bucket.name}", "encoding-type=url&list-type=2").text
        assert "<Key>a%20%2B%3C%C3%A9%3E%26</Key>" in encoded
        assert "<EncodingType>url</EncodingType>" in encoded

    def test_request_without_results_has_an_empty_bucket(self, gate: Gate) -> None:
        """The bucket exists, and has no objects."""
        bucket = gate.bucket()
        assert bucket.boto().list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0
        assert list(bucket.minio().list_objects(bucket.name)) == []

    @pytest.mark.parametrize(
        "query",
        [
            "max-keys=-1",
            "max-keys=x",
            "max-keys=" + "9" * 5000,
            "encoding-type=xml",
            "continuation-token=%C3%A9&list-type=2",
            "continuation-token=AA%3D%3D&list-type=2",
            "continuation-token=_w%3D%3D&list-type=2",
            "prefix=%00",
            "marker=%00",
        ],
    )
    def test_invalid_argument_is_rejected(self, gate: Gate, query: str) -> None:
        """The gateway answers 400 with the code InvalidArgument."""
        bucket = gate.bucket_of_names("abc")
        response = bucket.raw("GET", f"/{bucket.name}", query)
        assert (response.status_code, code_of(response)) == (400, "InvalidArgument")


@pytest.fixture(scope="session")
def content() -> bytes:
    """Return 30 MB that do not repeat."""
    return np.random.default_rng(1).bytes(30_000_000)


class TestDownload:
    """Downloads equal the results, byte for byte."""

    def test_boto3_downloads_ranges_in_parallel(self, gate: Gate, content: bytes) -> None:
        """A large object comes in ranges, five at a time, and is identical."""
        bucket = gate.bucket({"big.root": content})
        got = io.BytesIO()
        transfer = TransferConfig(multipart_chunksize=8 << 20, max_concurrency=5)
        bucket.boto().download_fileobj(bucket.name, "big.root", got, Config=transfer)
        assert got.getvalue() == content
        ranges = [
            (start, min(start + (8 << 20), 30_000_000)) for start in range(0, 30_000_000, 8 << 20)
        ]
        assert sorted(gate.store.asked[bucket.key("big.root")]) == ranges

    def test_published_client_downloads_objects(
        self, gate: Gate, content: bytes, tmp_path: Path
    ) -> None:
        """The downloads are identical, also of an empty object."""
        bucket = gate.bucket({"big.root": content, "empty.root": b"", "one.root": b"1"})
        adapter = MinioAdapter(
            gate.host, False, bucket.keys.access_key, bucket.keys.secret_key, bucket.name
        )

        async def download() -> list[Path]:
            names = ["big.root", "empty.root", "one.root"]
            got: list[Path] = await asyncio.gather(
                *(adapter.download_file(name, str(tmp_path / "got")) for name in names)
            )
            return got

        big, empty, one = asyncio.run(download())
        assert big.read_bytes() == content
        assert empty.read_bytes() == b""
        assert one.read_bytes() == b"1"

    def test_aioboto3_reads_a_whole_object(self, gate: Gate, content: bytes) -> None:
        """The content is identical."""
        bucket = gate.bucket({"big.root": content})

        async def read() -> bytes:
            session = aioboto3.Session(bucket.keys.access_key, bucket.keys.secret_key)
            async with session.client("s3", endpoint_url=gate.url, region_name="eu-west-3") as s3:
                reply = await s3.get_object(Bucket=bucket.name, Key="big.root")
                data: bytes = await reply["Body"].read()
                return data

        assert asyncio.run(read()) == content

    def test_minio_downloads_objects_and_ranges(
        self, gate: Gate, content: bytes, tmp_path: Path
    ) -> None:
        """The client asks for the location of the bucket first."""
        bucket = gate.bucket({"big.root": content})
        client = bucket.minio()
        assert client.bucket_exists(bucket.name)
        assert client.stat_object(bucket.name, "big.root").size == len(content)
        client.fget_object(bucket.name, "big.root", str(tmp_path / "got"))
        assert (tmp_path / "got").read_bytes() == content
        part = client.get_object(bucket.name, "big.root", offset=5, length=7)
        assert part.read() == content[5:12]
        part.close()
        part.release_conn()

    @pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cern"])
    def test_obstore_reads_objects_and_ranges(
        self, gate: Gate, content: bytes, region: str
    ) -> None:
        """The region of the client does not matter."""
        bucket = gate.bucket({"big.root": content})
        store = bucket.obstore(region=region)
        info = obstore.head(store, "big.root")
        assert info["size"] == len(content)
        assert obstore.get(store, "big.root").bytes() == content
        spans = obstore.get_ranges(store, "big.root", starts=[0, 20_000_000], ends=[9, 20_000_009])
        assert [bytes(span) for span in spans] == [content[:9], content[20_000_000:20_000_009]]

    @pytest.mark.parametrize("name", ["plain.root", "a b+é:*;.root"])
    @both_versions
    def test_uproot_reads_a_tree_from_a_link(
        self, gate: Gate, name: str, config: dict[str, Any], tmp_path: Path
    ) -> None:
        """boto3 signs the link, in both versions."""
        values = np.arange(100_000, dtype=np.float64)
        with uproot.recreate(tmp_path / "made.root") as made:
            made.mktree("servicex", {"x": np.float64})
            made["servicex"].extend({"x": values})
        bucket = gate.bucket({name: (tmp_path / "made.root").read_bytes()})
        url = bucket.signed_url(name, seconds=YEAR, **config)
        assert ("AWSAccessKeyId" in url) == (not config)
        with uproot.open({url: "servicex"}) as tree:
            assert np.array_equal(tree["x"].array(library="np"), values)

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_object_with_an_odd_name_can_be_read(self, gate: Gate, name: str) -> None:
        """Clients read it by keys and by links of both versions."""
        bucket = gate.bucket({name: name.encode()})
        client = bucket.boto()
        assert client.head_object(Bucket=bucket.name, Key=name)["ContentLength"]
        reply = client.get_object(Bucket=bucket.name, Key=name)
        assert reply["Body"].read() == name.encode()
        with bucket.minio().get_object(bucket.name, name) as got:
            assert got.read() == name.encode()
        for config in CONFIGS:
            url = bucket.signed_url(name, **config)
            assert httpx.get(url).content == name.encode()

    @both_versions
    def test_link_works_after_a_library_rewrites_it(
        self, gate: Gate, config: dict[str, Any]
    ) -> None:
        """The library undoes percent-encoding that is not needed."""
        name = "a:b*(c)@$.root"
        bucket = gate.bucket({name: b"x"})
        url = bucket.signed_url(name, **config)

        async def read() -> bytes:
            assert str(yarl.URL(url)) != url
            async with aiohttp.ClientSession() as session, session.get(url) as reply:
                return await reply.read()

        assert asyncio.run(read()) == b"x"

    def test_concurrent_downloads_do_not_mix(self, gate: Gate) -> None:
        """Each of twelve threads gets the content of its object."""
        contents = {f"{number}.root": os.urandom(2_000_000) for number in range(12)}
        bucket = gate.bucket(contents)
        client = bucket.boto(max_pool_connections=12)

        def read(name: str) -> bytes:
            data: bytes = client.get_object(Bucket=bucket.name, Key=name)["Body"].read()
            return data

        with ThreadPoolExecutor(12) as threads:
            assert dict(zip(contents, threads.map(read, contents), strict=True)) == contents

    def test_server_streams_an_object_in_pieces(self, gate: Gate, content: bytes) -> None:
        """It waits for a client that does not read, and does not load the whole object."""
        bucket = gate.bucket({"big.root": content})
        url = urlsplit(bucket.signed_url("big.root"))
        pieces = gate.store.pieces[bucket.key("big.root")]
        connection = http.client.HTTPConnection(gate.host)
        connection.request("GET", f"{url.path}?{url.query}")
        reply = connection.getresponse()
        fetched = 0
        while not fetched or fetched != sum(pieces):
            fetched = sum(pieces)
            time.sleep(0.5)  # in which all of it would come, if nothing held the server back
        # what has left the store is in the buffers of the system, of which each has a few MB
        assert PIECE <= fetched <= len(content) // 2
        assert reply.read() == content
        connection.close()
        assert sum(pieces) == len(content)
        assert max(pieces) <= PIECE

    def test_aborted_download_ends(self, gate: Gate, content: bytes) -> None:
        """The server stops reading the object, and answers the next request."""
        bucket = gate.bucket({"big.root": content})
        url = bucket.signed_url("big.root")
        with httpx.stream("GET", url) as reply:
            next(reply.iter_raw())
        assert httpx.get(url, headers={"range": "bytes=0-0"}).status_code == 206
        assert sum(gate.store.pieces[bucket.key("big.root")]) < len(content)


class TestRanges:
    """Ranges of an object (RFC 9110, section 14)."""

    content = bytes(range(256)) * 4

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=1-9", 1, 10),
            ("bytes=1000-", 1000, 1024),
            ("bytes=1023-", 1023, 1024),
            ("bytes=0-", 0, 1024),
            ("bytes=1000-9999", 1000, 1024),
            ("bytes=0-99999999999999999999999999", 0, 1024),
            ("bytes=-1", 1023, 1024),
            ("bytes=-1024", 0, 1024),
            ("bytes=-99999", 0, 1024),
        ],
    )
    def test_one_range_is_returned(self, gate: Gate, asked: str, start: int, stop: int) -> None:
        """The answer has the range only, and states which one it is."""
        bucket = gate.bucket({"a": self.content})
        url = bucket.signed_url("a")
        reply = httpx.get(url, headers={"range": asked})
        assert reply.status_code == 206
        assert reply.content == self.content[start:stop]
        assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/1024"
        assert reply.headers["content-length"] == str(stop - start)
        head = bucket.raw("HEAD", f"/{bucket.name}/a", Range=asked)
        assert (head.status_code, head.headers["content-length"]) == (206, str(stop - start))

    @pytest.mark.parametrize(
        "asked",
        [
            "bytes=0-1,5-6",
            "bytes=9-1",
            "bytes=-",
            "bytes=",
            "bytes",
            "lines=1-2",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0x1-0x2",
        ],
    )
    def test_several_or_invalid_ranges_return_the_whole_object(
        self, gate: Gate, asked: str
    ) -> None:
        """The answer has the status 200, and states no range."""
        url = gate.bucket({"a": self.content}).signed_url("a")
        reply = httpx.get(url, headers={"range": asked})
        assert (reply.status_code, reply.content) == (200, self.content)
        assert "content-range" not in reply.headers

    @pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=1024-2000", "bytes=-0"])
    def test_range_beyond_the_end_is_rejected(self, gate: Gate, asked: str) -> None:
        """The answer has the status 416 and the size."""
        bucket = gate.bucket({"a": self.content})
        reply = httpx.get(bucket.signed_url("a"), headers={"range": asked})
        assert (reply.status_code, code_of(reply)) == (416, "InvalidRange")
        assert reply.headers["content-range"] == "bytes */1024"
        client = bucket.boto()
        assert refused(client.get_object, Bucket=bucket.name, Key="a", Range=asked) == (
            "InvalidRange",
            416,
        )

    def test_empty_object_has_no_range(self, gate: Gate) -> None:
        """A client can read the whole object only."""
        url = gate.bucket({"a": b""}).signed_url("a")
        reply = httpx.get(url)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-length"] == "0"
        assert httpx.get(url, headers={"range": "bytes=0-"}).status_code == 416


class TestHeaders:
    """Headers of objects and buckets."""

    def test_head_and_get_have_the_same_headers(self, gate: Gate) -> None:
        """HEAD sends no content."""
        bucket = gate.bucket({"a": b"content"})
        head = bucket.raw("HEAD", f"/{bucket.name}/a")
        got = bucket.raw("GET", f"/{bucket.name}/a")
        assert (head.status_code, head.content, got.content) == (200, b"", b"content")
        for name in ("content-length", "content-type", "etag", "last-modified", "accept-ranges"):
            assert head.headers[name] == got.headers[name]
        assert got.headers["content-length"] == "7"
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["accept-ranges"] == "bytes"
        assert re.fullmatch('"[^"]+"', got.headers["etag"])
        info = bucket.boto().head_object(Bucket=bucket.name, Key="a")
        assert abs(datetime.now(UTC) - info["LastModified"]) < timedelta(minutes=1)

    def test_new_content_has_a_new_etag(self, gate: Gate) -> None:
        """A client can see that an object was written again."""
        bucket = gate.bucket({"a": b"content"})
        before = bucket.raw("HEAD", f"/{bucket.name}/a").headers["etag"]
        (gate.folder / bucket.key("a")).write_bytes(b"other content")
        reply = bucket.raw("GET", f"/{bucket.name}/a", **{"If-Match": before})
        assert (reply.status_code, code_of(reply)) == (412, "PreconditionFailed")

    def test_conditions_on_the_etag_are_respected(self, gate: Gate) -> None:
        """They are If-Match, If-None-Match and If-Range."""
        bucket = gate.bucket({"a": b"content"})
        url = bucket.signed_url("a")
        etag = httpx.get(url).headers["etag"]

        def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.get(url, headers=named).status_code

        assert status(If_None_Match=etag) == 304
        assert status(If_None_Match=f'"x", W/{etag}') == 304
        assert status(If_None_Match="*") == 304
        assert status(If_None_Match='"x"') == 200
        assert status(If_Match=etag) == 200
        assert status(If_Match="*") == 200
        assert status(If_Match='"x"') == 412
        assert status(If_Range=etag, Range="bytes=0-1") == 206
        assert status(If_Range='"x"', Range="bytes=0-1") == 200
        kept = httpx.get(url, headers={"If-None-Match": etag})
        assert (kept.content, kept.headers["etag"]) == (b"", etag)

    def test_bucket_has_a_head_and_an_empty_location(self, gate: Gate) -> None:
        """A slash after its name is accepted."""
        bucket = gate.bucket()
        client = bucket.boto()
        assert client.head_bucket(Bucket=bucket.name)["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert client.get_bucket_location(Bucket=bucket.name)["LocationConstraint"] is None
        slashed = bucket.raw("GET", f"/{bucket.name}/", "list-type=2")
        assert slashed.status_code == 200


class TestLinks:
    """Presigned URLs, which need no keys."""

    @both_versions
    def test_link_for_a_year_expires_after_a_year(self, gate: Gate, config: dict[str, Any]) -> None:
        """Links of both versions work until then. The error says that the link has expired."""
        bucket = gate.bucket({"a.root": b"content"})
        url = bucket.signed_url("a.root", seconds=YEAR, **config)
        assert ("Expires=31536000" in url) == bool(config)
        gate.ahead = timedelta(days=364)
        assert httpx.get(url).content == b"content"
        gate.ahead = timedelta(days=366)
        reply = httpx.get(url)
        assert (reply.status_code, code_of(reply)) == (403, "AccessDenied")
        assert "Request has expired" in reply.text

    def test_link_of_the_published_client_works(self, gate: Gate) -> None:
        """The adapter of the client signs the link."""
        bucket = gate.bucket({"a.root": b"content"})
        adapter = MinioAdapter(
            gate.host, False, bucket.keys.access_key, bucket.keys.secret_key, bucket.name
        )
        assert httpx.get(asyncio.run(adapter.get_signed_url("a.root"))).content == b"content"

    def test_link_of_minio_works(self, gate: Gate) -> None:
        """The name of the object has a space."""
        bucket = gate.bucket({"a b": b"content"})
        assert httpx.get(bucket.minio().presigned_get_object(bucket.name, "a b")).content == (
            b"content"
        )

    def test_link_of_obstore_works(self, gate: Gate) -> None:
        """The name of the object has a space."""
        bucket = gate.bucket({"a b": b"content"})
        url = obstore.sign(bucket.obstore(), "GET", "a b", timedelta(hours=1))
        assert httpx.get(url).content == b"content"

    @both_versions
    def test_link_for_get_is_rejected_for_head(self, gate: Gate, config: dict[str, Any]) -> None:
        """The refusal has no body. A link for HEAD works."""
        url = gate.bucket({"a": b"content"}).signed_url("a", **config)
        reply = httpx.head(url)
        assert (reply.status_code, reply.content) == (403, b"")
        assert httpx.head(gate.bucket({"a": b"c"}).signed_url("a", "head_object")).is_success

    @both_versions
    def test_a_link_opens_one_object(self, gate: Gate, config: dict[str, Any]) -> None:
        """A link for one object opens no other, and no listing."""
        bucket = gate.bucket({"a": b"content", "b": b"content"})
        url = urlsplit(bucket.signed_url("a", **config))
        for path in (f"/{bucket.name}/b", f"/{bucket.name}", f"/{bucket.name}/"):
            reply = httpx.get(f"{gate.url}{path}?{url.query}")
            assert (reply.status_code, code_of(reply)) == (403, "SignatureDoesNotMatch")


class TestPlaces:
    """Paths of the gateway, its buckets and its objects."""

    @pytest.mark.parametrize("below", ["/s3", "/", "//", "/s3/"])
    @pytest.mark.parametrize("name", ["a", "a b+é:*"])
    def test_gateway_may_be_below_a_path(self, gate: Gate, below: str, name: str) -> None:
        """The endpoint may end with one or two slashes."""
        bucket = gate.bucket({name: b"content"})
        client = bucket.boto(below=below)
        assert client.get_object(Bucket=bucket.name, Key=name)["Body"].read() == b"content"
        assert client.list_objects_v2(Bucket=bucket.name)["Contents"][0]["Key"] == name
        for config in CONFIGS:
            url = bucket.signed_url(name, below=below, **config)
            assert httpx.get(url).content == b"content"

    def test_doubled_slash_is_accepted(self, gate: Gate) -> None:
        """The gateway checks the signature of the path that the client sent."""
        bucket = gate.bucket({"a": b"content"})
        assert bucket.raw("GET", f"//{bucket.name}/a").content == b"content"
        assert bucket.raw("GET", f"/{bucket.name}//a").content == b"content"

    def test_link_opens_no_object_with_the_bucket_in_its_name(self, gate: Gate) -> None:
        """The name of the other object ends like the path of the first one."""
        bucket = gate.bucket({"a": b"content"})
        inner = f"{bucket.name}/a"
        gate.results.kept[bucket.name][inner] = gate.results.kept[bucket.name]["a"]
        query = urlsplit(bucket.signed_url("a")).query
        encoded = "".join(f"%{ord(character):02x}" for character in bucket.name)
        assert httpx.get(f"{gate.url}/{encoded}/a?{query}").content == b"content"
        reply = httpx.get(f"{gate.url}/{encoded}/{inner}?{query}")
        assert (reply.status_code, code_of(reply)) == (403, "SignatureDoesNotMatch")

    @pytest.mark.parametrize(
        "path",
        [
            "/2F4C1F0E-6B5A-4A52-9D0A-0C9B2C1F7A11/a",
            "/2f4c1f0e6b5a4a529d0a0c9b2c1f7a11/a",
            "/2f4c1f0e-6b5a-4a52-9d0a-0c9b2c1f7a11x/a",
            "/servicex",
            "/results/a",
            "/",
        ],
    )
    def test_only_the_id_of_a_request_is_a_bucket(self, gate: Gate, path: str) -> None:
        """The server answers 404 to other paths."""
        reply = httpx.get(gate.url + path)
        assert (reply.status_code, reply.json()) == (404, {"detail": "Not Found"})


class TestRefused:
    """Rejected calls, with the error codes of S3."""

    def test_wrong_secret_is_rejected(self, gate: Gate) -> None:
        """The gateway rejects it in every way to sign."""
        bucket = gate.bucket({"a": b"content"})
        wrong = BucketKeys(bucket.keys.access_key, "x" * 40)
        client = bucket.boto(wrong)
        expected = ("SignatureDoesNotMatch", 403)
        assert refused(client.get_object, Bucket=bucket.name, Key="a") == expected
        assert refused(client.list_objects_v2, Bucket=bucket.name) == expected
        assert refused(client.head_object, Bucket=bucket.name, Key="a") == ("403", 403)
        with pytest.raises(minio.S3Error) as caught:
            bucket.minio(wrong).stat_object(bucket.name, "a")
        assert caught.value.code in ("SignatureDoesNotMatch", "AccessDenied")
        with pytest.raises(obstore.exceptions.PermissionDeniedError):
            obstore.head(bucket.obstore(wrong), "a")
        for config in CONFIGS:
            url = Bucket(bucket.name, wrong, gate).signed_url("a", **config)
            reply = httpx.get(url)
            assert (reply.status_code, code_of(reply)) == expected[::-1]

    def test_keys_of_another_bucket_are_rejected(self, gate: Gate) -> None:
        """The keys of one request open no other."""
        mine, theirs = gate.bucket({"a": b"mine"}), gate.bucket({"a": b"theirs"})
        client = theirs.boto(mine.keys)
        expected = ("InvalidAccessKeyId", 403)
        assert refused(client.get_object, Bucket=theirs.name, Key="a") == expected
        assert refused(client.list_objects_v2, Bucket=theirs.name) == expected
        assert refused(client.head_bucket, Bucket=theirs.name) == ("403", 403)

    def test_anonymous_client_learns_nothing(self, gate: Gate) -> None:
        """The answer does not even show whether a bucket exists."""
        bucket = gate.bucket({"a": b"content"})
        for name in (bucket.name, str(uuid.uuid4())):
            for path in (f"/{name}", f"/{name}/", f"/{name}/a", f"/{name}/b"):
                for method in ("GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"):
                    reply = httpx.request(method, gate.url + path)
                    assert (reply.status_code, code_of(reply)) == (403, "AccessDenied")
                head = httpx.head(gate.url + path)
                assert (head.status_code, head.content) == (403, b"")

    def test_client_with_a_wrong_clock_is_rejected(self, gate: Gate) -> None:
        """The clock is off by more than 15 minutes, and the error code says so."""
        bucket = gate.bucket({"a": b"content"})
        gate.ahead = timedelta(minutes=-16)
        client = bucket.boto()
        assert refused(client.get_object, Bucket=bucket.name, Key="a") == (
            "RequestTimeTooSkewed",
            403,
        )

    def test_missing_object_or_bucket_is_not_found(self, gate: Gate) -> None:
        """The client has the right keys."""
        bucket = gate.bucket({"a": b"content"})
        client = bucket.boto()
        assert refused(client.get_object, Bucket=bucket.name, Key="b") == ("NoSuchKey", 404)
        assert refused(client.get_object, Bucket=bucket.name, Key="\0") == ("NoSuchKey", 404)
        assert refused(client.head_object, Bucket=bucket.name, Key="b") == ("404", 404)
        nowhere = str(uuid.uuid4())
        client = bucket.boto(bucket_keys(gate.service_key, nowhere))
        expected = ("NoSuchBucket", 404)
        assert refused(client.get_object, Bucket=nowhere, Key="a") == expected
        assert refused(client.list_objects_v2, Bucket=nowhere) == expected
        assert refused(client.get_bucket_location, Bucket=nowhere) == expected
        assert refused(client.head_bucket, Bucket=nowhere) == ("404", 404)

    @pytest.mark.parametrize(
        ("possible", "answer"), [(False, ("NoSuchKey", 404)), (True, ("SlowDown", 503))]
    )
    def test_lost_result_is_made_again_where_possible(
        self,
        gate: Gate,
        monkeypatch: pytest.MonkeyPatch,
        *,
        possible: bool,
        answer: tuple[str, int],
    ) -> None:
        """If the object of a result is gone, the gateway asks the service to make it again."""
        bucket = gate.bucket({"a": b"content"})
        key = bucket.key("a")
        (gate.folder / key).unlink()
        monkeypatch.setattr(gate, "makes_again", possible)
        monkeypatch.setattr(gate, "lost", [])
        client = bucket.boto()
        assert refused(client.get_object, Bucket=bucket.name, Key="a") == answer
        assert gate.lost == [(bucket.name, key)]

    def test_lost_result_that_another_reader_has_made_again_is_waited_for(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look-up of a key and the look at its object, the result got another key."""
        bucket = gate.bucket({"a": b"content"})
        (gate.folder / bucket.key("a")).unlink()
        lost = gate.results.kept[bucket.name]["a"]
        looks = iter([lost, replace(lost, key=f"{bucket.name}/again")])

        async def looked_up(*_: object, **__: object) -> BucketObject:
            return next(looks)

        monkeypatch.setattr(gate.results, "object", looked_up)
        answer = refused(bucket.boto().get_object, Bucket=bucket.name, Key="a")
        assert answer == ("SlowDown", 503)

    def test_result_that_is_finished_between_two_looks_is_delivered(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A result that was made again is not there at the first look, and no work is left then."""
        bucket = gate.bucket({"a": b"content"})
        looks = iter([None, gate.results.kept[bucket.name]["a"]])

        async def looked_up(*_: object, **__: object) -> BucketObject | None:
            return next(looks)

        monkeypatch.setattr(gate.results, "object", looked_up)
        answer = bucket.boto().get_object(Bucket=bucket.name, Key="a")
        assert answer["Body"].read() == b"content"

    def test_use_is_noted_of_every_result_that_is_read(self, gate: Gate) -> None:
        """A listing is no use of a result, and neither is a refused read."""
        bucket = gate.bucket({"a": b"content", "b": b"content"})
        client = bucket.boto()
        client.list_objects_v2(Bucket=bucket.name)
        refused(client.get_object, Bucket=bucket.name, Key="c")
        client.get_object(Bucket=bucket.name, Key="b")["Body"].read()
        assert [key for key in gate.used if key.startswith(bucket.name)] == [bucket.key("b")]

    def test_keys_of_a_bucket_cannot_write_or_delete(self, gate: Gate) -> None:
        """The gateway answers 405 to each such call, and to a link for PUT."""
        bucket = gate.bucket({"a": b"content"})
        client = bucket.boto()
        place = {"Bucket": bucket.name, "Key": "a"}
        expected = ("MethodNotAllowed", 405)
        assert refused(client.put_object, **place, Body=b"other") == expected
        assert refused(client.delete_object, **place) == expected
        assert refused(client.create_multipart_upload, **place) == expected
        assert refused(client.copy_object, **place, CopySource=f"{bucket.name}/a") == expected
        assert refused(client.create_bucket, Bucket=bucket.name) == expected
        assert refused(client.delete_bucket, Bucket=bucket.name) == expected
        objects = {"Objects": [{"Key": "a"}]}
        assert refused(client.delete_objects, Bucket=bucket.name, Delete=objects) == expected
        put = httpx.put(bucket.signed_url("a", "put_object"), content=b"other")
        assert (put.status_code, code_of(put)) == expected[::-1]
        assert put.headers["allow"] == "GET, HEAD"
        with pytest.raises(minio.S3Error, match="MethodNotAllowed"):
            bucket.minio().put_object(bucket.name, "a", io.BytesIO(b"other"), 5)
        assert client.get_object(**place)["Body"].read() == b"content"

    def test_unsupported_operation_is_not_implemented(self, gate: Gate) -> None:
        """The gateway answers 501 to the other S3 calls on buckets and objects."""
        bucket = gate.bucket({"a": b"content"})
        client = bucket.boto()
        expected = ("NotImplemented", 501)
        for call in (
            client.get_bucket_acl,
            client.get_bucket_policy,
            client.get_bucket_versioning,
            client.get_bucket_tagging,
            client.list_object_versions,
            client.list_multipart_uploads,
        ):
            assert refused(call, Bucket=bucket.name) == expected
        assert refused(client.get_object_acl, Bucket=bucket.name, Key="a") == expected
        assert refused(client.get_object_tagging, Bucket=bucket.name, Key="a") == expected

    @pytest.mark.parametrize(
        ("query", "headers", "expected"),
        [
            ("%FF", {}, (400, "InvalidURI")),
            ("&".join(["a=b"] * 500), {}, (400, "InvalidURI")),
            ("X-Amz-Signature=a&X-Amz-Signature=b", {}, (400, "AuthorizationQueryParametersError")),
            ("AWSAccessKeyId=a&Expires=soon&Signature=b", {}, (403, "InvalidAccessKeyId")),
            ("", {"authorization": "Basic eDp5"}, (400, "InvalidRequest")),
            ("", {"authorization": "AWS4-HMAC-SHA256"}, (400, "AuthorizationHeaderMalformed")),
            ("Signature=a", {"authorization": "AWS4-HMAC-SHA256"}, (400, "InvalidArgument")),
        ],
    )
    def test_malformed_request_gets_an_error_code(
        self, gate: Gate, query: str, headers: dict[str, str], expected: tuple[int, str]
    ) -> None:
        """Its path, its query or a header is invalid."""
        bucket = gate.bucket({"a": b"content"})
        for path in (f"/{bucket.name}", f"/{bucket.name}/a", f"/{bucket.name}/{quote(chr(7))}"):
            reply = httpx.get(f"{gate.url}{path}?{query}", headers=headers)
            assert (reply.status_code, code_of(reply)) == expected

    @pytest.mark.parametrize("version", ["", "list-type=2"])
    def test_listing_has_the_etag_of_each_object(self, gate: Gate, version: str) -> None:
        """The tag equals that of GET and HEAD, and changes with the content."""
        names = {f"{number}.root": b"x" * number for number in range(1, 4)}
        bucket = gate.bucket(names)
        listing = ET.fromstring(bucket.raw("GET", f"/{bucket.name}", version).text)
        space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
        tags = {
            one.findtext(f"{space}Key"): one.findtext(f"{space}ETag")
            for one in listing.iter(f"{space}Contents")
        }
        heads = {
            name: bucket.raw("HEAD", f"/{bucket.name}/{name}").headers["etag"] for name in names
        }
        assert tags == heads
        assert len(set(tags.values())) == 3
        for name, tag in heads.items():
            kept = bucket.raw("GET", f"/{bucket.name}/{name}", **{"If-None-Match": tag})
            assert (kept.status_code, kept.headers["etag"]) == (304, tag)
        (gate.folder / bucket.key("1.root")).write_bytes(b"other content")
        (first, *_) = bucket.boto().list_objects_v2(Bucket=bucket.name)["Contents"]
        assert first["ETag"] != heads["1.root"]
        assert first["ETag"] == bucket.raw("HEAD", f"/{bucket.name}/1.root").headers["etag"]

    def test_minio_lists_etags(self, gate: Gate) -> None:
        """The client of generation 2 lists a bucket with minio, which needs the element."""
        bucket = gate.bucket({"a": b"content"})
        (found,) = bucket.minio().list_objects(bucket.name)
        assert f'"{found.etag}"' == bucket.raw("HEAD", f"/{bucket.name}/a").headers["etag"]
