"""The bucket of a request: a read-only view that names its results and where they are kept."""

import hashlib
import hmac
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class BucketObject:
    """One result: its name in the bucket, its key in the store, its size in bytes."""

    name: str
    key: str
    size: int
    modified: datetime


class Buckets(ABC):
    """Finds the results of a request by the request's id. The database room implements it."""

    @abstractmethod
    async def objects(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[BucketObject] | None:
        """Return results by ascending name; None if there is no such bucket.

        Parameters
        ----------
        bucket
            The request's id.
        prefix
            Only names that begin so.
        after
            Only names that sort after this one.
        limit
            At most so many.
        """

    @abstractmethod
    async def object(self, bucket: str, name: str) -> BucketObject | None:
        """Return one result; None if there is no such bucket or result in it."""


@dataclass(frozen=True, slots=True)
class BucketKeys:
    """The S3 key pair that opens one request's bucket and nothing else."""

    access_key: str
    secret_key: str


def bucket_keys(service_key: bytes, request_id: str) -> BucketKeys:
    """Derive the key pair of a request's bucket; nothing about it is stored.

    Both halves are HMAC-SHA256 of the request id under the service's own key, so one bucket's
    keys tell nothing about another's.
    """

    def derive(label: str) -> str:
        text = f"servicex-bucket/{label}/{request_id}".encode()
        return hmac.new(service_key, text, hashlib.sha256).hexdigest()

    return BucketKeys("SX" + derive("access")[:18].upper(), derive("secret")[:40])
