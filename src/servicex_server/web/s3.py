"""The S3 gateway: the bucket of each request, read-only, for any S3 client.

A bucket is named by its request's id and opened by the keys that are derived from that id
(`bucket_keys`). It is a view: its objects are named by the database and kept in the object store
under other names. Every request is checked for its signature before anything is looked up, so an
answer about a bucket tells only its owner whether it exists.

Wire names and codes are those of the Amazon S3 API reference, path-style.
"""

import base64
import logging
import re
import uuid
from collections.abc import Callable, Mapping
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

from servicex_server.keys import Keys
from servicex_server.objects.bucket import BucketObject, Buckets, bucket_keys
from servicex_server.objects.contract import ObjectInfo, ObjectStore
from servicex_server.web.signatures import S3Error, SignedRequest, query_fields, verify

log = logging.getLogger(__name__)

MAX_KEYS = 1000
"""Names of a page of a listing; S3 has the same limit."""

_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
_RANGE = re.compile(r"bytes\s*=\s*([0-9]*)-([0-9]*)\s*")
# XML 1.0 has no way to write control characters; S3 writes them like this all the same
_CONTROL = {chr(code): f"&#{code};" for code in range(32)}
# what else a GET of a bucket or an object can ask for, by the name of a field in the query
_SUBRESOURCES = frozenset(
    """
    accelerate acl analytics attributes cors encryption intelligent-tiering inventory legal-hold
    lifecycle logging metrics notification object-lock ownershipControls partNumber policy
    policyStatus publicAccessBlock replication requestPayment restore retention select session
    tagging torrent uploadId uploads versionId versioning versions website
    """.split()  # a list would be 33 lines
)


class _BucketName(Convertor[str]):
    """The id of a request: a UUID as Python writes it, so that no other path is taken."""

    regex = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _ObjectName(_BucketName):
    """Any name, also one with line ends, which Starlette's own ``path`` does not take."""

    regex = "(?s:.*)"


register_url_convertor("s3bucket", _BucketName())
register_url_convertor("s3object", _ObjectName())


def _utc_now() -> datetime:
    return datetime.now(UTC)


def s3_routes(
    buckets: Buckets,
    store: ObjectStore,
    keys: Keys,
    *,
    clock: Callable[[], datetime] = _utc_now,
) -> list[Route]:
    """Return the routes ``/{bucket}``, ``/{bucket}/`` and ``/{bucket}/{name}``.

    Parameters
    ----------
    buckets
        Finds the results of a request.
    store
        Keeps them.
    keys
        What the keys of a bucket are derived from: with each of them there is a pair that opens it.
    clock
        Tells the time, with its zone.
    """
    gate = _Gate(buckets, store, keys, clock)
    return [
        Route("/{bucket:s3bucket}", gate, name="s3-bucket", include_in_schema=False),
        Route(
            "/{bucket:s3bucket}/{name:s3object}", gate, name="s3-object", include_in_schema=False
        ),
    ]


class _Gate:
    """An ASGI application rather than a function, because only those are given every method."""

    def __init__(
        self,
        buckets: Buckets,
        store: ObjectStore,
        keys: Keys,
        clock: Callable[[], datetime],
    ) -> None:
        self._buckets = buckets
        self._store = store
        self._keys = keys
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        try:
            response = await self._answer(Request(scope, receive))
        except S3Error as error:
            response = _refusal(error, scope, request_id)
        except OperationalError as error:
            log.warning("a result cannot be looked up: the database is away: %s", error)
            away = S3Error("ServiceUnavailable", "The database does not answer. Try again.", 503)
            response = _refusal(away, scope, request_id)
        response.headers["x-amz-request-id"] = request_id
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        bucket: str = request.path_params["bucket"]
        name: str = request.path_params.get("name", "")
        ring = [bucket_keys(key, bucket) for key in self._keys.ring]
        verify(_signed(request.scope, bucket), ring, self._clock())
        if request.method not in ("GET", "HEAD"):
            raise S3Error("MethodNotAllowed", "Results can only be read", 405, headers=_ALLOW)
        fields = dict(reversed(query_fields(request.scope["query_string"])))
        if asked := _SUBRESOURCES & fields.keys():
            raise S3Error("NotImplemented", f"There is no {min(asked)} here", 501)
        if name:
            return await self._object(request, bucket, name)
        if request.method == "GET" and "location" not in fields:
            return await self._listing(bucket, fields)
        await self._must_exist(bucket)
        if request.method == "HEAD":
            return Response(headers={"x-amz-bucket-region": "us-east-1"})
        return _xml(f'<LocationConstraint xmlns="{_XMLNS}"/>')

    async def _must_exist(self, bucket: str) -> None:
        if await self._buckets.objects(bucket, limit=1) is None:
            raise _no_bucket()

    async def _listing(self, bucket: str, fields: Mapping[str, str]) -> Response:
        page = _Page(fields)
        found = await self._buckets.objects(
            bucket, prefix=page.prefix, after=page.after, limit=page.limit + 1
        )
        if found is None:
            raise _no_bucket()
        return _xml(page.render(bucket, found))

    async def _object(self, request: Request, bucket: str, name: str) -> Response:
        # databases refuse the character, and no result has it
        found = None if "\0" in name else await self._buckets.object(bucket, name)
        if found is None:
            await self._must_exist(bucket)
            raise _no_key()
        info = await self._store.head(found.key)
        if info is None:
            log.error(
                "result %s is not in the object store", found.key, extra={"request_id": bucket}
            )
            raise _no_key()
        etag = f'"{info.etag}"'
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
        return StreamingResponse(content, status_code=status, headers=headers)


_ALLOW = [("allow", "GET, HEAD")]


def _signed(scope: Scope, bucket: str) -> SignedRequest:
    # servers need not give the path as it came; the one they decoded is then the best there is
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    raw = raw.partition(b"?")[0]
    start = max(raw.find(f"/{bucket}".encode()), 0)
    # only where the gateway is mounted may be left out of a signature, never a part of a name
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
    """One page of a listing, of version 2 or of version 1.

    Names are flat, so a delimiter changes nothing and is only sent back.
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
            raise S3Error("InvalidArgument", "No name holds the character 0", 400)
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

    def render(self, bucket: str, found: list[BucketObject]) -> str:
        """Return the page as XML; one object more than the limit says that there are more."""
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
        parts += [self._entry(one) for one in shown]
        return "".join([*parts, "</ListBucketResult>"])

    def _entry(self, one: BucketObject) -> str:
        # no ETag: the store would have to be asked for each object
        modified = one.modified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return (
            f"<Contents><Key>{self._text(one.name)}</Key><LastModified>{modified}</LastModified>"
            f"<Size>{one.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )


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
    """Return from where to where to send, and the status that says so; RFC 9110, section 14.

    A range that is malformed, or one of several, is answered by the whole object.
    """
    whole = 0, info.size, 200
    match = _RANGE.fullmatch(asked.get("range", ""))
    unchanged = headers["etag"], headers["last-modified"]
    if match is None or asked.get("if-range", headers["etag"]) not in unchanged:
        return whole
    # a number that is too long for int() is beyond any object as well
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
        # a client that sent "Expect: 100-continue" now keeps its body back, and the server would
        # take the next request on the connection for that body
        response.headers["connection"] = "close"
    return response


def _no_bucket() -> S3Error:
    return S3Error("NoSuchBucket", "The specified bucket does not exist", 404)


def _no_key() -> S3Error:
    return S3Error("NoSuchKey", "The specified key does not exist.", 404)
