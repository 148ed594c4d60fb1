"""The bucket of a request: a read-only view of its results, and the S3 key pair that opens it."""

import hashlib
import hmac
import re
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
    """Finds the results of a request by its id. The package ``database`` implements it."""

    @abstractmethod
    async def objects(
        self,
        bucket: str,
        *,
        grant: "Grant | None" = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> list[BucketObject] | None:
        """Return results by ascending name; None if there is no such bucket.

        Parameters
        ----------
        bucket
            The request's id.
        grant
            The grant of the S3 keys that the caller uses. If it is void, the result is None. Give
            None for a caller that may see the request.
        prefix
            Return only names with this prefix.
        after
            Return only names that sort after this one.
        limit
            Return at most this many results.
        """

    @abstractmethod
    async def object(
        self, bucket: str, name: str, *, grant: "Grant | None" = None
    ) -> BucketObject | None:
        """Return one result; None if the bucket or the result does not exist."""

    @abstractmethod
    async def made_again(self, bucket: str, name: str, *, grant: "Grant | None" = None) -> bool:
        """Whether a result of this name was lost, and the service makes it again."""


@dataclass(frozen=True, slots=True)
class BucketKeys:
    """The S3 key pair that opens one request's bucket and nothing else."""

    access_key: str
    secret_key: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The account and time for which the keys of a bucket were issued.

    The keys work only as long as the account, its token and its key epoch are valid.

    Parameters
    ----------
    user
        Number of the account; 0 on a service without sign-in.
    token
        Number of the API token that was used; 0 without a token.
    epoch
        How often the keys of the account had been revoked before.
    issued
        Time of issue in hours since 1970.
    """

    user: int = 0
    token: int = 0
    epoch: int = 0
    issued: int = 0


_ACCESS_KEY = re.compile(
    r"SX([0-9A-F]{8})U([0-9A-F]{1,16})T([0-9A-F]{1,16})R([0-9A-F]{1,8})K[0-9A-F]{12}"
)


def grant_of(text: str) -> Grant | None:
    """Return the grant that an access key in a text names; the signature is not verified here.

    Examples
    --------
    >>> grant = Grant(user=3, token=17, epoch=1, issued=490_000)
    >>> grant_of(f"key={bucket_keys(b'secret', 'request', grant).access_key}&x=y") == grant
    True
    >>> grant_of("AKIAIOSFODNN7EXAMPLE") is None
    True
    """
    found = _ACCESS_KEY.search(text)
    if found is None:
        return None
    issued, user, token, epoch = (int(part, 16) for part in found.groups())
    return Grant(user, token, epoch, issued)


_NOBODY = Grant()


def bucket_keys(service_key: bytes, request_id: str, grant: Grant = _NOBODY) -> BucketKeys:
    """Derive the key pair of a request's bucket for a grant; the pair is not stored.

    The access key contains the grant. The secret key is an HMAC-SHA256 of the request id and the
    grant under the service's own key, so one pair reveals nothing about another.
    """
    claim = f"SX{grant.issued:08X}U{grant.user:X}T{grant.token:X}R{grant.epoch:X}K"

    def derive(label: str) -> str:
        text = f"servicex-bucket/{label}/{request_id}/{claim}".encode()
        return hmac.new(service_key, text, hashlib.sha256).hexdigest()

    return BucketKeys(claim + derive("access")[:12].upper(), derive("secret")[:40])
