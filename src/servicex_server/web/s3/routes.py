"""The S3 gateway: the bucket of each request, read-only, for any S3 client.

The name of a bucket is the id of its request; its keys are derived from that id (`bucket_keys`). A
bucket is a view: the database has the names of its objects, and the object store has the objects
under other names. The signature of every request is verified before anything is looked up. So only
a client with the right keys learns whether a bucket exists.

Element names and error codes are those of the Amazon S3 API reference, with path-style URLs.
"""

import asyncio
import base64
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from sqlalchemy.exc import OperationalError
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from servicex_server.accounts.signing_keys import SigningKeys
from servicex_server.errors import InternalError, StoreUnavailableError
from servicex_server.model import REQUEST_ID
from servicex_server.storage.bucket import BucketObject, Buckets, Grant, bucket_keys, grant_of
from servicex_server.storage.contract import ObjectInfo, ObjectStore
from servicex_server.web.s3.signatures import S3Error, SignedRequest, query_fields, verify

log = logging.getLogger(__name__)

MAX_KEYS = 1000
"""Most names on one page of a listing, as in S3."""

RETRY_AFTER = 5
"""Seconds after which a client may try again, if a result cannot be read now."""

HEADS_AT_ONCE = 64
"""Objects of a page whose ETags are read concurrently."""

_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
_RANGE = re.compile(r"bytes\s*=\s*([0-9]*)-([0-9]*)\s*")
# XML 1.0 cannot represent control characters; S3 writes them in this way nevertheless
_CONTROL = {chr(code): f"&#{code};" for code in range(32)}
_QUOTES = {'"': "&quot;"}
# subresources of buckets and objects that S3 has, by the name of their query field
_SUBRESOURCES = frozenset(
    """
    accelerate acl analytics attributes cors encryption intelligent-tiering inventory legal-hold
    lifecycle logging metrics notification object-lock ownershipControls partNumber policy
    policyStatus publicAccessBlock replication requestPayment restore retention select session
    tagging torrent uploadId uploads versionId versioning versions website
    """.split()  # a list would be 33 lines
)


class _BucketName(Convertor[str]):
    """The id of a request; the route matches no other path."""

    regex = REQUEST_ID

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _ObjectName(_BucketName):
    """Any name, including one with line breaks, which Starlette's own ``path`` does not match."""

    regex = "(?s:.*)"


register_url_convertor("s3bucket", _BucketName())
register_url_convertor("s3object", _ObjectName())


def _utc_now() -> datetime:
    return datetime.now(UTC)


def s3_routes(
    buckets: Buckets,
    store: ObjectStore,
    keys: SigningKeys,
    make_again: Callable[[str, str], Awaitable[bool]],
    used: Callable[[str], None],
    *,
    clock: Callable[[], datetime] = _utc_now,
) -> list[Route]:
    """Return the routes ``/{bucket}``, ``/{bucket}/`` and ``/{bucket}/{name}``.

    Parameters
    ----------
    buckets
        Finds the results of a request.
    store
        Stores the results.
    keys
        The signing keys of the service. Each gives one pair of keys that opens a bucket.
    make_again
        Makes a result again whose object is gone, by the id of its request and its key; returns
        whether this is possible.
    used
        Called with the key of a result that is read.
    clock
        Returns the current time, with its zone.
    """
    gate = _Gate(buckets, store, keys, make_again, used, clock)
    return [
        Route("/{bucket:s3bucket}", gate, name="s3-bucket", include_in_schema=False),
        Route(
            "/{bucket:s3bucket}/{name:s3object}", gate, name="s3-object", include_in_schema=False
        ),
    ]


class _Gate:
    """The S3 gateway. It is an ASGI application, because Starlette passes these every method."""

    def __init__(
        self,
        buckets: Buckets,
        store: ObjectStore,
        keys: SigningKeys,
        make_again: Callable[[str, str], Awaitable[bool]],
        used: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._buckets = buckets
        self._store = store
        self._keys = keys
        self._make_again = make_again
        self._used = used
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        try:
            response = await self._answer(Request(scope, receive))
        except S3Error as error:
            response = _refusal(error, scope, request_id)
        except StoreUnavailableError as error:
            log.warning("a result cannot be read: %s", error)
            away = _slow_down("The object store does not answer. Try again.")
            response = _refusal(away, scope, request_id)
        except OperationalError as error:
            log.warning("a result cannot be looked up, the database does not answer: %s", error)
            away = S3Error("ServiceUnavailable", "The database does not answer. Try again.", 503)
            response = _refusal(away, scope, request_id)
        response.headers["x-amz-request-id"] = request_id
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        bucket: str = request.path_params["bucket"]
        name: str = request.path_params.get("name", "")
        signed = _signed(request.scope, bucket)
        grant = grant_of(
            signed.raw_query.decode("latin-1") + request.headers.get("authorization", "")
        )
        accepted = [bucket_keys(key, bucket, grant) for key in self._keys.all] if grant else []
        verify(signed, accepted, self._clock())
        assert grant is not None  # noqa: S101  # `verify` raises without a grant
        if request.method not in ("GET", "HEAD"):
            raise S3Error("MethodNotAllowed", "Results can only be read", 405, headers=_ALLOW)
        fields = dict(reversed(query_fields(request.scope["query_string"])))
        if asked := _SUBRESOURCES & fields.keys():
            raise S3Error("NotImplemented", f"{min(asked)} is not supported", 501)
        if name:
            return await self._object(request, bucket, name, grant)
        if request.method == "GET" and "location" not in fields:
            return await self._listing(bucket, fields, grant)
        await self._must_exist(bucket, grant)
        if request.method == "HEAD":
            return Response(headers={"x-amz-bucket-region": "us-east-1"})
        return _xml(f'<LocationConstraint xmlns="{_XMLNS}"/>')

    async def _must_exist(self, bucket: str, grant: Grant) -> None:
        if await self._buckets.objects(bucket, grant=grant, limit=1) is None:
            raise _no_bucket()

    async def _listing(self, bucket: str, fields: Mapping[str, str], grant: Grant) -> Response:
        page = _Page(fields)
        found = await self._buckets.objects(
            bucket, grant=grant, prefix=page.prefix, after=page.after, limit=page.limit + 1
        )
        if found is None:
            raise _no_bucket()
        etags = await self._etags(found[: page.limit])
        return _xml(page.render(bucket, found, etags))

    async def _etags(self, found: Sequence[BucketObject]) -> dict[str, str]:
        """Return the ETags of objects by key, the same as in responses to GET and HEAD."""
        turn = asyncio.Semaphore(HEADS_AT_ONCE)

        async def head(key: str) -> ObjectInfo | None:
            async with turn:
                try:
                    return await self._store.head(key)
                except InternalError:  # a store cannot hold such a key, so there is no object
                    return None

        heads = await asyncio.gather(*(head(one.key) for one in found))
        return {one.key: _etag(info) for one, info in zip(found, heads, strict=True) if info}

    async def _object(self, request: Request, bucket: str, name: str, grant: Grant) -> Response:
        # databases do not accept NUL characters, and the name of a result never has one
        found = None if "\0" in name else await self._buckets.object(bucket, name, grant=grant)
        if found is None:
            await self._must_exist(bucket, grant)
            if "\0" in name:
                raise _no_key()
            if await self._buckets.made_again(bucket, name, grant=grant):
                raise _being_made()
            # it may have been finished between the two questions
            found = await self._buckets.object(bucket, name, grant=grant)
            if found is None:
                raise _no_key()
        info = await self._store.head(found.key)
        if info is None:
            if not await self._make_again(bucket, found.key) and found == (
                await self._buckets.object(bucket, name, grant=grant)
            ):
                log.error(
                    "result %s is not in the object store", found.key, extra={"request_id": bucket}
                )
                raise _no_key()
            # made again for this reader, or for another one in the meantime
            raise _being_made()
        self._used(found.key)
        etag = _etag(info)
        headers = {
            "accept-ranges": "bytes",
            "etag": etag,
            "last-modified": format_datetime(info.modified.astimezone(UTC), usegmt=True),
        }
        if "if-match" in request.headers:
            if not _names(request.headers["if-match"], etag):
                raise S3Error("PreconditionFailed", "The result has another ETag by now", 412)
        elif _names(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        start, stop, status = _wanted(request.headers, info, headers)
        if status == 206:  # noqa: PLR2004
            headers["content-range"] = f"bytes {start}-{stop - 1}/{info.size}"
        headers["content-length"] = str(stop - start)
        headers["content-type"] = "application/octet-stream"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        content = self._store.stream(found.key, start, stop)
        # before the headers are sent, so that a store in trouble is answered as one
        first = await anext(content, b"")
        return StreamingResponse(_after(first, content), status_code=status, headers=headers)


_ALLOW = [("allow", "GET, HEAD")]


def _slow_down(message: str) -> S3Error:
    return S3Error("SlowDown", message, 503, headers=[("retry-after", str(RETRY_AFTER))])


def _being_made() -> S3Error:
    return _slow_down("The result is not in the object store, and is made again. Try again.")


async def _after(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the first piece of a stream, and then the others."""
    yield first
    async for piece in others:
        yield piece


def _signed(scope: Scope, bucket: str) -> SignedRequest:
    # an ASGI server may omit the raw path; the decoded one is then the best approximation
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    raw = raw.partition(b"?")[0]
    start = max(raw.find(f"/{bucket}".encode()), 0)
    # a signature may leave out the mount path of the gateway, but never a part of a name
    if unquote(raw[:start]).strip("/") != scope.get("root_path", "").strip("/"):
        start = 0
    return SignedRequest(
        method=scope["method"],
        raw_path=raw,
        raw_query=scope["query_string"],
        headers=scope["headers"],
        resource=raw[start:],
    )


class _Page:
    """One page of a listing, in version 1 or 2 of ListObjects.

    Names have no folders, so a delimiter has no effect and is only echoed.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.prefix = fields.get("prefix", "")
        self.limit = _limit(fields.get("max-keys", ""))
        self._fields = fields
        self._version_2 = fields.get("list-type") == "2"
        if self._version_2:
            self.after = fields.get("start-after", "")
            if "continuation-token" in fields:
                self.after = _name_of(fields["continuation-token"])
        else:
            self.after = fields.get("marker", "")
        if "\0" in self.prefix + self.after:
            raise S3Error("InvalidArgument", "Names cannot contain a NUL character", 400)
        if fields.get("encoding-type", "url") != "url":
            raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request", 400)

    def _text(self, value: str) -> str:
        if "encoding-type" in self._fields:
            return quote(value, safe="/")
        return escape(value, _CONTROL)

    def _echo(self, field: str, element: str) -> str:
        if field not in self._fields:
            return ""
        return f"<{element}>{self._text(self._fields[field])}</{element}>"

    def render(self, bucket: str, found: Sequence[BucketObject], etags: Mapping[str, str]) -> str:
        """Return the page as XML.

        Parameters
        ----------
        bucket
            Name of the bucket.
        found
            The objects; one more than the limit means that another page follows.
        etags
            ETags by key. An object that is missing from the store has none.
        """
        shown = found[: self.limit]
        more = len(found) > self.limit > 0
        parts = [
            f'<ListBucketResult xmlns="{_XMLNS}"><Name>{bucket}</Name>',
            f"<Prefix>{self._text(self.prefix)}</Prefix>",
            f"<MaxKeys>{self.limit}</MaxKeys>",
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>",
            self._echo("delimiter", "Delimiter"),
            self._echo("encoding-type", "EncodingType"),
        ]
        if self._version_2:
            parts += [
                f"<KeyCount>{len(shown)}</KeyCount>",
                self._echo("start-after", "StartAfter"),
            ]
            if "continuation-token" in self._fields:
                token = escape(self._fields["continuation-token"], _CONTROL)
                parts.append(f"<ContinuationToken>{token}</ContinuationToken>")
            if more:
                token = _token_of(shown[-1].name)
                parts.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        else:
            parts.append(f"<Marker>{self._text(self.after)}</Marker>")
            if more:
                parts.append(f"<NextMarker>{self._text(shown[-1].name)}</NextMarker>")
        parts += [self._entry(one, etags.get(one.key, "")) for one in shown]
        return "".join([*parts, "</ListBucketResult>"])

    def _entry(self, one: BucketObject, etag: str) -> str:
        modified = one.modified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return (
            f"<Contents><Key>{self._text(one.name)}</Key><LastModified>{modified}</LastModified>"
            f"<ETag>{escape(etag, _QUOTES)}</ETag><Size>{one.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


def _etag(info: ObjectInfo) -> str:
    """Return the entity tag of an object: a strong one, because objects are never overwritten."""
    return f'"{info.etag}"'


def _limit(text: str) -> int:
    if not text:
        return MAX_KEYS
    if not re.fullmatch("[0-9]{1,10}", text):
        raise S3Error("InvalidArgument", "Argument max-keys must be an integer from 0", 400)
    return min(int(text), MAX_KEYS)


def _token_of(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name_of(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise S3Error("InvalidArgument", "The continuation token is incorrect", 400) from None


def _names(condition: str, etag: str) -> bool:
    """Whether the list of a conditional header names this tag."""
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or etag in tags or etag.strip('"') in tags


def _wanted(
    asked: Mapping[str, str], info: ObjectInfo, headers: Mapping[str, str]
) -> tuple[int, int, int]:
    """Return the first byte to send, the byte after the last, and the status.

    As in RFC 9110, section 14. A malformed range, or a list of several, is answered with the whole
    object.
    """
    whole = 0, info.size, 200
    match = _RANGE.fullmatch(asked.get("range", ""))
    unchanged = headers["etag"], headers["last-modified"]
    if match is None or asked.get("if-range", headers["etag"]) not in unchanged:
        return whole
    # 18 digits are beyond the size of any object
    first, last = (int(text[:18]) if text else None for text in match.groups())
    if first is None:
        if last is None:
            return whole
        start, stop = max(info.size - last, 0), info.size
    elif last is not None and last < first:
        return whole
    else:
        start = first
        stop = info.size if last is None else min(last + 1, info.size)
    if start >= stop:
        raise S3Error(
            "InvalidRange",
            "The requested range is not satisfiable",
            416,
            headers=[("content-range", f"bytes */{info.size}")],
        )
    return start, stop, 206


def _xml(text: str, *, status: int = 200) -> Response:
    return Response(
        f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', status, media_type="application/xml"
    )


def _refusal(error: S3Error, scope: Scope, request_id: str) -> Response:
    if scope["method"] == "HEAD":
        response = Response(status_code=error.status)
    else:
        # encoded, because XML cannot write every character of a path
        resource = escape(quote(scope["path"]))
        response = _xml(
            f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
            f"<Resource>{resource}</Resource><RequestId>{request_id}</RequestId></Error>",
            status=error.status,
        )
    response.headers.update(error.headers)
    if scope["method"] not in ("GET", "HEAD"):
        # a client that sent "Expect: 100-continue" does not send its body now, and the server would
        # mistake the next request on the connection for that body
        response.headers["connection"] = "close"
    return response


def _no_bucket() -> S3Error:
    return S3Error(
        "NoSuchBucket", "The specified bucket does not exist, or the keys were revoked", 404
    )


def _no_key() -> S3Error:
    return S3Error("NoSuchKey", "The specified key does not exist.", 404)
