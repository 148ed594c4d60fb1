"""Verification of AWS signatures, by signing a request again with botocore's own signers.

Three kinds are in use: version 4 in the ``Authorization`` header (every library), version 4 in
the query of a URL, and version 2 in the query of a URL, which is what boto3 makes for most
regions when the endpoint is not Amazon's. Any region and any lifetime is accepted: the published
client signs for a year, and for the region in the user's environment.

References: "Authenticating Requests (AWS Signature Version 4)" and "Signing and authenticating
REST requests (AWS signature version 2)" in the Amazon S3 API reference.
"""

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from botocore.auth import UNSIGNED_PAYLOAD, HmacV1QueryAuth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from servicex_server.storage.bucket import BucketKeys

MAX_SKEW = timedelta(minutes=15)
"""Largest accepted difference between the time of a signature and the server's clock."""

_ALGORITHM = "AWS4-HMAC-SHA256"
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_V4_QUERY = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)
_V2_QUERY = ("AWSAccessKeyId", "Signature", "Expires")
_MAX_FIELDS = 100
_WIRE_PATH = re.compile(r"/[!-\"$->@-~]*")  # printable ASCII without the space, "#" and "?"
_WIRE_QUERY = re.compile(r"[!-~]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SECONDS = re.compile(r"[0-9]{1,15}")  # so that the sum with a date is still a number of seconds


class S3Error(Exception):
    """An error response of S3.

    Parameters
    ----------
    code
        Error code of S3.
    message
        What is wrong, in a sentence.
    status
        HTTP status.
    headers
        Additional headers of the response.
    """

    def __init__(
        self, code: str, message: str, status: int, *, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.headers = dict(headers)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The parts of a request that a signature covers, as they arrived.

    ``raw_path`` is the whole path, percent-encoded. ``resource`` is its part from the bucket on,
    which version 2 signs. ``headers`` have lower-case names.
    """

    method: str
    raw_path: bytes
    raw_query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    resource: bytes


def query_fields(raw_query: bytes) -> list[tuple[str, str]]:
    """Return the fields of a query, decoded, in order.

    Raises
    ------
    S3Error
        ``InvalidURI``: it is not ASCII, does not decode to UTF-8, or has too many fields.
    """
    try:
        text = raw_query.decode("ascii")
        if not _WIRE_QUERY.fullmatch(text):
            raise _bad_uri()
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise _bad_uri() from None


def verify(request: SignedRequest, accepted: Sequence[BucketKeys], now: datetime) -> None:
    """Verify that a request was signed with one of the accepted pairs of keys.

    Parameters
    ----------
    request
        The request.
    accepted
        The accepted pairs: one for each signing key of the service.
    now
        The time at the server.

    Raises
    ------
    S3Error
        The request is not signed, its signature is wrong, expired or malformed, or its key does not
        open the bucket.
    """
    wire = _Wire(request)
    authorization = wire.headers.get_all("authorization", [])
    in_query = {name for name, _ in wire.fields}
    version_4 = not in_query.isdisjoint(n for n in _V4_QUERY if n != "X-Amz-Date")
    version_2 = not in_query.isdisjoint(n for n in _V2_QUERY if n != "Expires")
    ways = len(authorization) + version_4 + version_2
    if ways == 0:
        raise S3Error("AccessDenied", "Access Denied: the request is not signed", 403)
    if ways > 1:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed", 400)
    if version_2:
        _verify_query_2(wire, accepted, now)
    elif version_4:
        _verify_query_4(wire, accepted, now)
    else:
        _verify_header_4(wire, authorization[0], accepted, now)


def presigned_query(path: str, keys: BucketKeys, expires: int) -> str:
    """Return the query of a presigned URL (version 2), which anybody can GET until it expires.

    Parameters
    ----------
    path
        ``/bucket/name``, not encoded.
    keys
        The keys of the bucket.
    expires
        Seconds since the epoch.
    """
    resource = quote(path, safe="/~")
    signer = _Signer2(Credentials(keys.access_key, keys.secret_key), str(expires))
    split = urlsplit(f"https://gate{resource}")
    signature = signer.get_signature("GET", split, _mapping(HTTPHeaders()))
    fields = {"AWSAccessKeyId": keys.access_key, "Signature": signature, "Expires": expires}
    return urlencode(fields)


class _Wire:
    """A request, decoded as far as verification needs it."""

    def __init__(self, request: SignedRequest) -> None:
        self.method = request.method
        self.fields = query_fields(request.raw_query)
        self.raw_query = request.raw_query.decode("ascii")
        self.paths = _spellings(request.raw_path)
        # boto3 leaves out the endpoint's path before the bucket; signing all of it is correct too
        self.resources = [*_spellings(request.resource), *self.paths]
        self.headers: HTTPMessage = HTTPHeaders()
        for name, value in request.headers:
            text = name.decode("latin-1").lower()
            if _TOKEN.fullmatch(text):
                self.headers[text] = value.decode("utf-8", "replace")

    def single(self, names: Sequence[str], error: S3Error) -> dict[str, str]:
        """Return the fields of these names; raise ``error`` unless each occurs exactly once."""
        found = [(name, value) for name, value in self.fields if name in names]
        if len(found) != len(names) or len(dict(found)) != len(names):
            raise error
        return dict(found)


def _spellings(raw: bytes) -> list[str]:
    """Return a path as it arrived and as botocore encodes it.

    HTTP libraries (yarl, which aiohttp and fsspec use) remove unnecessary percent-encoding from a
    signed URL before they send it. Both spellings name the same object.
    """
    text = raw.decode("latin-1")
    if not _WIRE_PATH.fullmatch(text):
        raise _bad_uri()
    return list(dict.fromkeys([text, quote(unquote_to_bytes(raw), safe="/~")]))


@dataclass(frozen=True, slots=True)
class _Claim:
    """The parameters of a version 4 signature in a request."""

    access_key: str
    region: str
    timestamp: str
    signed_headers: str
    signature: str


def _verify_header_4(
    wire: _Wire, authorization: str, accepted: Sequence[BucketKeys], now: datetime
) -> None:
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme != _ALGORITHM:
        raise S3Error(
            "InvalidRequest",
            f"The authorization mechanism is not supported. Please use {_ALGORITHM}.",
            400,
        )
    malformed = S3Error(
        "AuthorizationHeaderMalformed", "The authorization header is malformed", 400
    )
    pairs = [piece.strip().partition("=") for piece in rest.split(",")]
    parts = {name: value for name, _, value in pairs}
    if len(pairs) != len(parts) or parts.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise malformed
    timestamp = _header_time(wire)
    payload = wire.headers.get_all("x-amz-content-sha256", [])
    if len(payload) != 1:
        raise S3Error("MissingSecurityHeader", "Missing required header x-amz-content-sha256", 400)
    claim = _claim(
        parts["Credential"], timestamp, parts["SignedHeaders"], parts["Signature"], malformed
    )
    keys = _named(claim.access_key, accepted)
    if abs(now - _parsed(timestamp, malformed)) > MAX_SKEW:
        raise S3Error(
            "RequestTimeTooSkewed",
            "The difference between the request time and the server's time is too large",
            403,
        )
    _check_signature_4(wire, claim, wire.fields, payload[0], keys)


def _header_time(wire: _Wire) -> str:
    """Return the signing time in the headers of a request, in the format of version 4."""
    stamps = wire.headers.get_all("x-amz-date", [])
    if len(stamps) == 1:
        return stamps[0].strip()
    dates = wire.headers.get_all("date", [])
    if stamps or len(dates) != 1:
        raise S3Error("MissingSecurityHeader", "Missing required header x-amz-date", 400)
    try:
        moment = parsedate_to_datetime(dates[0])
        return moment.astimezone(UTC).strftime(_TIMESTAMP)
    except (ValueError, OverflowError):
        raise S3Error("MissingSecurityHeader", "The header date is not a date", 400) from None


def _verify_query_4(wire: _Wire, accepted: Sequence[BucketKeys], now: datetime) -> None:
    parts = wire.single(
        _V4_QUERY,
        _bad_query(f"version 4 needs each of {', '.join(_V4_QUERY)} once"),
    )
    if parts["X-Amz-Algorithm"] != _ALGORITHM:
        raise _bad_query(f"X-Amz-Algorithm only supports {_ALGORITHM}")
    if not _SECONDS.fullmatch(parts["X-Amz-Expires"]):
        raise _bad_query("X-Amz-Expires should be a number of seconds")
    claim = _claim(
        parts["X-Amz-Credential"],
        parts["X-Amz-Date"],
        parts["X-Amz-SignedHeaders"],
        parts["X-Amz-Signature"],
        _bad_query("X-Amz-Credential or X-Amz-SignedHeaders is malformed"),
    )
    keys = _named(claim.access_key, accepted)
    signed = _parsed(claim.timestamp, _bad_query("X-Amz-Date is not a date"))
    if signed - now > MAX_SKEW:
        raise S3Error("AccessDenied", "Request is not yet valid", 403)
    if now.timestamp() > signed.timestamp() + int(parts["X-Amz-Expires"]):
        raise _expired()
    fields = [(name, value) for name, value in wire.fields if name != "X-Amz-Signature"]
    payload = UNSIGNED_PAYLOAD
    if "x-amz-content-sha256" in claim.signed_headers.split(";"):
        payload = wire.headers.get("x-amz-content-sha256", "")
    _check_signature_4(wire, claim, fields, payload, keys)


def _claim(
    credential: str, timestamp: str, signed_headers: str, signature: str, malformed: S3Error
) -> _Claim:
    """Parse ``key/date/region/s3/aws4_request``, and check what needs no secret."""
    scope = credential.rsplit("/", 4)
    names = signed_headers.split(";")
    if len(scope) != 5 or scope[3:] != ["s3", "aws4_request"]:  # noqa: PLR2004
        raise malformed
    if scope[1] != timestamp[:8] or not all(_TOKEN.fullmatch(name) for name in names):
        raise malformed
    if "host" not in names:
        raise S3Error("AccessDenied", "The header host has to be signed", 403)
    return _Claim(scope[0], scope[2], timestamp, signed_headers, signature)


def _parsed(timestamp: str, malformed: S3Error) -> datetime:
    try:
        # strptime alone would accept one digit in place of two
        if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", timestamp):
            raise malformed
        return datetime.strptime(timestamp, _TIMESTAMP).replace(tzinfo=UTC)
    except ValueError:
        raise malformed from None


class _Signer4(S3SigV4Auth):
    """botocore's signer, for the headers that the client has signed."""

    def __init__(self, credentials: Credentials, claim: _Claim) -> None:
        super().__init__(credentials, "s3", claim.region)
        self._names = set(claim.signed_headers.split(";"))

    def headers_to_sign(self, request: AWSRequest) -> HTTPMessage:
        named: HTTPMessage = HTTPHeaders()
        for name, value in request.headers.items():
            if name.lower() in self._names:
                named[name.lower()] = value
        return named


def _check_signature_4(
    wire: _Wire,
    claim: _Claim,
    fields: list[tuple[str, str]],
    payload: str,
    keys: BucketKeys,
) -> None:
    signer = _Signer4(Credentials(keys.access_key, keys.secret_key), claim)
    right = []
    for path in wire.paths:
        # the signature covers the header host, not the host of this URL
        request = AWSRequest(
            method=wire.method,
            url=f"https://gate{path}",
            headers=_mapping(wire.headers),
            # a list, because a field may occur twice
            params=_mapping(fields),
        )
        del request.headers["x-amz-content-sha256"]
        request.headers["x-amz-content-sha256"] = payload
        request.context["timestamp"] = claim.timestamp
        text = signer.string_to_sign(request, signer.canonical_request(request))
        right.append(signer.signature(text, request))
    _check_signature(claim.signature, right)


class _Signer2(HmacV1QueryAuth):
    """botocore's signer, for the expiry time that the client has signed."""

    def __init__(self, credentials: Credentials, expires: str) -> None:
        super().__init__(credentials)
        self._given = expires

    def _get_date(self) -> str:
        return self._given


def _verify_query_2(wire: _Wire, accepted: Sequence[BucketKeys], now: datetime) -> None:
    parts = wire.single(
        _V2_QUERY,
        S3Error(
            "AccessDenied",
            "Query-string authentication requires the Signature, Expires and AWSAccessKeyId "
            "parameters, once each",
            403,
        ),
    )
    keys = _named(parts["AWSAccessKeyId"], accepted)
    expires = parts["Expires"]
    if not _SECONDS.fullmatch(expires):
        raise S3Error("AccessDenied", "Invalid date (should be seconds since epoch)", 403)
    if now.timestamp() > int(expires):
        raise _expired()
    signer = _Signer2(Credentials(keys.access_key, keys.secret_key), expires)
    right = []
    for resource in wire.resources:
        split = urlsplit(f"https://gate{resource}?{wire.raw_query}")
        headers = _mapping(_headers_2(wire))
        right.append(signer.get_signature(wire.method, split, headers, auth_path=resource))
    # "+" in a query means a space, but some programs do not encode the "+" of a signature
    _check_signature(parts["Signature"].replace(" ", "+"), right)


def _headers_2(wire: _Wire) -> HTTPMessage:
    """Return the headers that version 2 signs; a URL may have them as query fields."""
    headers: HTTPMessage = HTTPHeaders()
    given = list(wire.headers.items())
    given += [(name, value) for name, value in wire.fields if name not in wire.headers]
    for name, value in given:
        low = name.lower()
        if low in ("content-md5", "content-type") or low.startswith("x-amz-"):
            headers[low] = value
    return headers


def _mapping(argument: object) -> Mapping[str, Any]:
    """Return an argument of botocore with the type that its stubs expect."""
    return cast("Mapping[str, Any]", argument)


def _named(given: str, accepted: Sequence[BucketKeys]) -> BucketKeys:
    for keys in accepted:
        if hmac.compare_digest(given.encode(), keys.access_key.encode()):
            return keys
    raise S3Error("InvalidAccessKeyId", "The access key does not open this bucket", 403)


def _check_signature(given: str, right: Sequence[str]) -> None:
    matches = [hmac.compare_digest(given.encode(), one.encode()) for one in right]
    if not any(matches):
        raise S3Error(
            "SignatureDoesNotMatch",
            "The calculated signature differs from the one in the request. Check the secret key.",
            403,
        )


def _bad_uri() -> S3Error:
    return S3Error("InvalidURI", "Couldn't parse the specified URI.", 400)


def _bad_query(message: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", message, 400)


def _expired() -> S3Error:
    return S3Error("AccessDenied", "Request has expired", 403)
