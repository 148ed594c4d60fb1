"""The service accepts a request only if the keys of the bucket signed it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPMessage
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from servicex_server.storage.bucket import BucketKeys, bucket_keys
from servicex_server.web.s3.signatures import S3Error, SignedRequest, presigned_query, verify

SERVICE_KEY = b"the service's own key"
BUCKET = "2f4c1f0e-6b5a-4a52-9d0a-0c9b2c1f7a11"
OTHER = "2f4c1f0e-6b5a-4a52-9d0a-0c9b2c1f7a12"
KEYS = bucket_keys(SERVICE_KEY, BUCKET)
YEAR = 365 * 24 * 3600
HOST = "gate.example.org:5000"

Sign = Callable[..., SignedRequest]


def _now() -> datetime:
    return datetime.now(UTC)


def _wire(method: str, url: str | None, headers: Mapping[str, str]) -> SignedRequest:
    parts = urlsplit(url or "")
    path = parts.path.encode()
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if "host" not in {name.lower() for name in headers}:
        pairs.append((b"host", HOST.encode()))
    start = max(path.find(f"/{BUCKET}".encode()), 0)
    return SignedRequest(method, path, parts.query.encode(), pairs, path[start:])


def _request(method: str, target: str, headers: dict[str, str] | None) -> AWSRequest:
    return AWSRequest(method=method, url=f"http://{HOST}{target}", headers=headers)


def header_4(
    target: str,
    keys: BucketKeys = KEYS,
    *,
    method: str = "GET",
    region: str = "us-east-1",
    headers: dict[str, str] | None = None,
) -> SignedRequest:
    """Sign as every library does for a request of its own."""
    request = _request(method, target, headers)
    S3SigV4Auth(Credentials(keys.access_key, keys.secret_key), "s3", region).add_auth(request)
    return _wire(method, request.url, dict(request.headers.items()))


def query_4(
    target: str,
    keys: BucketKeys = KEYS,
    *,
    method: str = "GET",
    region: str = "us-east-1",
    expires: int = 3600,
) -> SignedRequest:
    """Make a URL as boto3 does for regions that are younger than version 2."""
    request = _request(method, target, None)
    credentials = Credentials(keys.access_key, keys.secret_key)
    S3SigV4QueryAuth(credentials, "s3", region, expires=expires).add_auth(request)
    return _wire(method, request.url, {})


def query_2(
    target: str,
    keys: BucketKeys = KEYS,
    *,
    method: str = "GET",
    expires: int = 3600,
    headers: dict[str, str] | None = None,
) -> SignedRequest:
    """Make a URL as boto3 does by default."""
    request = _request(method, target, headers)
    credentials = Credentials(keys.access_key, keys.secret_key)
    HmacV1QueryAuth(credentials, expires=expires).add_auth(request)
    return _wire(method, request.url, {})


WAYS: list[Sign] = [header_4, query_4, query_2]
every_way = pytest.mark.parametrize("sign", WAYS)


def refusal(request: SignedRequest, *, now: datetime | None = None) -> S3Error:
    """Return why a request is refused."""
    with pytest.raises(S3Error) as caught:
        verify(request, [KEYS], now or _now())
    return caught.value


def code(request: SignedRequest, *, now: datetime | None = None) -> tuple[str, int]:
    error = refusal(request, now=now)
    return error.code, error.status


def with_query(request: SignedRequest, **changes: str | None) -> SignedRequest:
    """Return a request with other fields in its query; None takes one away."""
    fields = dict(parse_qsl(request.raw_query.decode(), keep_blank_values=True))
    for name, value in changes.items():
        field = name.replace("_", "-")
        fields.pop(field, None)
        if value is not None:
            fields[field] = value
    return replace(request, raw_query=urlencode(fields).encode())


def with_header(request: SignedRequest, name: str, value: str | None) -> SignedRequest:
    """Return a request with another header; None takes it away."""
    kept = [pair for pair in request.headers if pair[0] != name.encode()]
    return replace(
        request, headers=kept + ([] if value is None else [(name.encode(), value.encode())])
    )


def header(request: SignedRequest, name: str) -> str:
    return dict(request.headers)[name.encode()].decode()


class _Streaming(S3SigV4Auth):
    """The signature of botocore for a body in chunks, each of which it signs with this."""

    def payload(self, request: AWSRequest) -> str:
        return "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


def chunked_4(target: str, keys: BucketKeys = KEYS) -> SignedRequest:
    """Sign a body that is sent in chunks."""
    request = _request("PUT", target, {"x-amz-decoded-content-length": "3"})
    credentials = Credentials(keys.access_key, keys.secret_key)
    _Streaming(credentials, "s3", "us-east-1").add_auth(request)
    return _wire("PUT", request.url, dict(request.headers.items()))


class TestKnownVectors:
    """The examples in Amazon's own documentation, which are independent of botocore."""

    keys = BucketKeys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    empty = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    midnight = datetime(2013, 5, 24, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("path", "query", "ranged", "signature"),
        [
            (
                b"/test.txt",
                b"",
                True,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                b"/",
                b"lifecycle",
                False,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                b"/",
                b"prefix=J&max-keys=2",
                False,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ],
    )
    def test_documented_header_of_version_4_is_accepted(
        self, path: bytes, query: bytes, *, ranged: bool, signature: str
    ) -> None:
        """Amazon documents three requests with version 4 in the header."""
        names = "host;range;" if ranged else "host;"
        authorization = (
            "AWS4-HMAC-SHA256 "
            "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            f"SignedHeaders={names}x-amz-content-sha256;x-amz-date,Signature={signature}"
        )
        headers = [
            (b"host", b"examplebucket.s3.amazonaws.com"),
            (b"authorization", authorization.encode()),
            (b"x-amz-content-sha256", self.empty),
            (b"x-amz-date", b"20130524T000000Z"),
        ]
        if ranged:
            headers.append((b"range", b"bytes=0-9"))
        verify(SignedRequest("GET", path, query, headers, path), [self.keys], self.midnight)

    def test_documented_url_of_version_4_is_accepted(self) -> None:
        """Amazon documents a presigned URL of version 4."""
        query = (
            b"X-Amz-Algorithm=AWS4-HMAC-SHA256"
            b"&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
            b"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
            b"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        )
        headers = [(b"host", b"examplebucket.s3.amazonaws.com")]
        request = SignedRequest("GET", b"/test.txt", query, headers, b"/test.txt")
        verify(request, [self.keys], self.midnight)

    def test_documented_url_of_version_2_is_accepted(self) -> None:
        """Amazon documents a presigned URL of version 2."""
        query = (
            b"AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE"
            b"&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
        )
        resource = b"/johnsmith/photos/puppy.jpg"
        request = SignedRequest("GET", resource, query, [(b"host", b"s3")], resource)
        verify(request, [self.keys], datetime(2007, 3, 28, tzinfo=UTC))


class TestAccepted:
    """Requests that the keys of the bucket signed."""

    @every_way
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
    def test_every_method_is_accepted(self, sign: Sign, method: str) -> None:
        """The service accepts a request with the method for which it was signed."""
        verify(sign(f"/{BUCKET}/a.root", method=method), [KEYS], _now())

    @pytest.mark.parametrize("sign", [header_4, query_4])
    @pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "aws-global", "CERN", "x"])
    def test_every_region_is_accepted(self, sign: Sign, region: str) -> None:
        """The environment of the client sets the region."""
        verify(sign(f"/{BUCKET}/a.root", region=region), [KEYS], _now())

    @pytest.mark.parametrize("sign", [query_4, query_2])
    def test_url_is_accepted_for_a_year(self, sign: Sign) -> None:
        """A URL may be valid for a year, and is so until its last day."""
        request = sign(f"/{BUCKET}/a.root", expires=YEAR)
        verify(request, [KEYS], _now() + timedelta(days=364))
        late = _now() + timedelta(days=366)
        assert code(request, now=late) == ("AccessDenied", 403)
        assert refusal(request, now=late).message == "Request has expired"

    @pytest.mark.parametrize("sign", [*WAYS, chunked_4])
    def test_keys_of_an_older_signing_key_are_accepted(self, sign: Sign) -> None:
        """Each access key needs its own secret; the keys of a dropped signing key are refused."""
        older, dropped = (bucket_keys(key, BUCKET) for key in (b"older", b"dropped"))
        for pair in (KEYS, older):
            verify(sign(f"/{BUCKET}/a.root", pair), [KEYS, older], _now())
        with pytest.raises(S3Error, match="does not open this bucket"):
            verify(sign(f"/{BUCKET}/a.root", dropped), [KEYS, older], _now())
        mixed = BucketKeys(KEYS.access_key, older.secret_key)
        with pytest.raises(S3Error, match="Check the secret key"):
            verify(sign(f"/{BUCKET}/a.root", mixed), [KEYS, older], _now())

    @every_way
    def test_path_with_a_prefix_is_accepted(self, sign: Sign) -> None:
        """The signature covers a path in front of the bucket; in version 2 it may leave it out."""
        verify(sign(f"/s3/{BUCKET}/a.root"), [KEYS], _now())
        if sign is query_2:
            request = sign(f"/{BUCKET}/a.root")
            verify(replace(request, raw_path=b"/s3" + request.raw_path), [KEYS], _now())

    @every_way
    def test_doubled_slash_is_accepted(self, sign: Sign) -> None:
        """The client signs the path as it sends it, also with a slash too many."""
        verify(sign(f"//{BUCKET}/a.root"), [KEYS], _now())

    @every_way
    def test_fields_of_a_listing_are_accepted(self, sign: Sign) -> None:
        """The signature covers the fields of a listing, in any order and encoding."""
        verify(sign(f"/{BUCKET}?prefix=a%2Fb%20c%2B&list-type=2&encoding-type=url"), [KEYS], _now())

    @pytest.mark.parametrize("sign", [header_4, query_4])
    def test_field_without_a_value_is_accepted(self, sign: Sign) -> None:
        """The client may send only the name of a field that it signed with an empty value."""
        request = sign(f"/{BUCKET}?location=")
        raw = request.raw_query.replace(b"location=", b"location")
        assert raw != request.raw_query
        verify(replace(request, raw_query=raw), [KEYS], _now())

    @every_way
    @settings(deadline=None)
    @given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
    def test_every_object_name_is_accepted(self, sign: Sign, name: str) -> None:
        """An object name is any Unicode text."""
        verify(sign(f"/{BUCKET}/{quote(name, safe='~')}"), [KEYS], _now())

    @every_way
    def test_undone_percent_encoding_is_accepted(self, sign: Sign) -> None:
        """A library may undo needless percent-encoding after it has signed."""
        request = sign(f"/{BUCKET}/a%3Ab%2A%28c%29%40.root")
        path = f"/{BUCKET}/a:b*(c)@.root".encode()
        verify(replace(request, raw_path=path, resource=path), [KEYS], _now())

    @pytest.mark.parametrize("name", ["user-agent", "expect", "accept", "range", "x-amz-meta-é"])
    def test_only_headers_that_the_client_names_are_signed(self, name: str) -> None:
        """The client may also name headers that botocore leaves out."""
        name = quote(name)

        class Everything(S3SigV4Auth):
            def headers_to_sign(self, request: AWSRequest) -> HTTPMessage:
                headers = super().headers_to_sign(request)
                if name not in headers:
                    headers[name] = request.headers[name]
                return headers

        request = _request("GET", f"/{BUCKET}/a", {name: "  a   b é "})
        Everything(Credentials(KEYS.access_key, KEYS.secret_key), "s3", "x").add_auth(request)
        wire = _wire("GET", request.url, dict(request.headers.items()))
        assert name.lower() in header(wire, "authorization")
        verify(wire, [KEYS], _now())
        assert code(with_header(wire, name.lower(), "other")) == ("SignatureDoesNotMatch", 403)

    @every_way
    def test_unsigned_headers_are_ignored(self, sign: Sign) -> None:
        """A proxy may add headers."""
        request = sign(f"/{BUCKET}/a")
        verify(with_header(request, "x-forwarded-for", "10.0.0.1"), [KEYS], _now())

    def test_date_header_is_accepted(self) -> None:
        """The time of version 4 in the header may be in ``Date``."""
        request = header_4(f"/{BUCKET}/a", headers={"Date": "some day"})
        assert b"x-amz-date" not in dict(request.headers)
        verify(request, [KEYS], _now())
        assert code(with_header(request, "date", "some day")) == ("MissingSecurityHeader", 400)

    def test_amz_fields_that_version_2_signs_are_accepted(self) -> None:
        """Version 2 signs ``x-amz-`` headers, which a URL carries in its query."""
        request = query_2(f"/{BUCKET}/a", headers={"x-amz-checksum-mode": "ENABLED"})
        assert b"checksum" in request.raw_query
        verify(request, [KEYS], _now())

    def test_plus_sign_in_a_signature_is_accepted(self) -> None:
        """A client may leave a plus sign in a signature of version 2 unencoded."""
        for number in range(1000):
            request = query_2(f"/{BUCKET}/{number}")
            if b"%2B" in request.raw_query:
                break
        raw = request.raw_query.replace(b"%2B", b"+")
        assert raw != request.raw_query
        verify(replace(request, raw_query=raw), [KEYS], _now())

    @pytest.mark.parametrize("name", ["a.root", "a b+é:*.root"])
    def test_presigned_query_is_accepted_until_it_expires(self, name: str) -> None:
        """`presigned_query` makes the URLs of the service."""
        path = f"/{BUCKET}/{name}"
        expires = int(_now().timestamp()) + 60
        request = _wire(
            "GET", f"http://{HOST}{quote(path)}?{presigned_query(path, KEYS, expires)}", {}
        )
        verify(request, [KEYS], _now())
        assert code(request, now=_now() + timedelta(seconds=62)) == ("AccessDenied", 403)


class TestRefused:
    """Requests that other keys signed, or that are not signed."""

    @every_way
    def test_wrong_secret_is_refused(self, sign: Sign) -> None:
        """The right access key with a wrong secret does not match."""
        request = sign(f"/{BUCKET}/a", BucketKeys(KEYS.access_key, "x" * 40))
        assert code(request) == ("SignatureDoesNotMatch", 403)

    @every_way
    def test_keys_of_another_bucket_are_refused(self, sign: Sign) -> None:
        """A bucket does not know the keys of another one."""
        request = sign(f"/{BUCKET}/a", bucket_keys(SERVICE_KEY, OTHER))
        assert code(request) == ("InvalidAccessKeyId", 403)

    @every_way
    def test_other_path_is_refused(self, sign: Sign) -> None:
        """A signature for one object does not open another."""
        request = sign(f"/{BUCKET}/a")
        path = f"/{BUCKET}/b".encode()
        assert code(replace(request, raw_path=path, resource=path)) == (
            "SignatureDoesNotMatch",
            403,
        )

    @every_way
    def test_other_method_is_refused(self, sign: Sign) -> None:
        """A signature for GET is not valid for HEAD."""
        request = sign(f"/{BUCKET}/a")
        assert code(replace(request, method="HEAD")) == ("SignatureDoesNotMatch", 403)

    @pytest.mark.parametrize("sign", [header_4, query_4])
    def test_other_query_is_refused(self, sign: Sign) -> None:
        """A client cannot change a query that version 4 signed."""
        request = with_query(sign(f"/{BUCKET}?prefix=a"), prefix="b")
        assert code(request) == ("SignatureDoesNotMatch", 403)

    @pytest.mark.parametrize("sign", [header_4, query_4])
    def test_other_host_is_refused(self, sign: Sign) -> None:
        """Version 4 covers the host."""
        request = with_header(sign(f"/{BUCKET}/a"), "host", "elsewhere.example.org")
        assert code(request) == ("SignatureDoesNotMatch", 403)

    def test_later_expiry_is_refused(self) -> None:
        """A client cannot make a URL valid for longer than it was signed for."""
        assert code(with_query(query_4(f"/{BUCKET}/a"), X_Amz_Expires=str(YEAR))) == (
            "SignatureDoesNotMatch",
            403,
        )
        later = str(int(_now().timestamp()) + YEAR)
        assert code(with_query(query_2(f"/{BUCKET}/a"), Expires=later)) == (
            "SignatureDoesNotMatch",
            403,
        )

    @pytest.mark.parametrize("sign", [query_4, query_2])
    def test_expired_url_is_refused(self, sign: Sign) -> None:
        """The error says that the URL has expired."""
        request = sign(f"/{BUCKET}/a", expires=60)
        error = refusal(request, now=_now() + timedelta(seconds=62))
        assert (error.code, error.message, error.status) == (
            "AccessDenied",
            "Request has expired",
            403,
        )

    def test_url_from_the_future_is_refused(self) -> None:
        """A URL that was signed more than 15 minutes ahead is not valid yet."""
        request = query_4(f"/{BUCKET}/a")
        verify(request, [KEYS], _now() - timedelta(minutes=14))
        error = refusal(request, now=_now() - timedelta(minutes=16))
        assert (error.code, error.message) == ("AccessDenied", "Request is not yet valid")

    @pytest.mark.parametrize("minutes", [-16, 16, 60 * 24 * 365])
    def test_request_of_a_skewed_clock_is_refused(self, minutes: int) -> None:
        """The service refuses a request that was signed more than 15 minutes from now."""
        request = header_4(f"/{BUCKET}/a")
        verify(request, [KEYS], _now() + timedelta(minutes=14))
        assert code(request, now=_now() + timedelta(minutes=minutes)) == (
            "RequestTimeTooSkewed",
            403,
        )

    def test_unsigned_request_is_refused(self) -> None:
        """The request has neither a header nor fields with a signature."""
        request = _wire("GET", f"http://{HOST}/{BUCKET}/a", {})
        assert code(request) == ("AccessDenied", 403)

    @pytest.mark.parametrize("sign", [header_4, query_4])
    def test_unsigned_host_is_refused(self, sign: Sign) -> None:
        """Version 4 needs the host among the signed headers."""
        request = sign(f"/{BUCKET}/a")
        if sign is query_4:
            request = with_query(request, X_Amz_SignedHeaders="range")
        else:
            text = header(request, "authorization").replace("=host;", "=")
            request = with_header(request, "authorization", text)
        assert code(request) == ("AccessDenied", 403)


class TestMalformed:
    """The service refuses malformed requests with a code, and does not crash."""

    @pytest.mark.parametrize(
        ("authorization", "expected"),
        [
            ("Bearer x.y.z", "InvalidRequest"),
            ("AWS AKIA:c2lnbmF0dXJl", "InvalidRequest"),
            ("", "InvalidRequest"),
            ("AWS4-HMAC-SHA256", "AuthorizationHeaderMalformed"),
            ("AWS4-HMAC-SHA256 x", "AuthorizationHeaderMalformed"),
            ("AWS4-HMAC-SHA256 Credential=a,Credential=b", "AuthorizationHeaderMalformed"),
            (
                "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=b",
                "AuthorizationHeaderMalformed",
            ),
            (
                (
                    "AWS4-HMAC-SHA256 Credential=a/20200101/r/ec2/aws4_request, "
                    "SignedHeaders=host, Signature=b"
                ),
                "AuthorizationHeaderMalformed",
            ),
            (
                (
                    "AWS4-HMAC-SHA256 Credential=a/2/r/s3/aws4_request, "
                    "SignedHeaders=a b;, Signature=b, Signature=c"
                ),
                "AuthorizationHeaderMalformed",
            ),
        ],
    )
    def test_malformed_authorization_is_refused(self, authorization: str, expected: str) -> None:
        """The service cannot read the header."""
        request = with_header(header_4(f"/{BUCKET}/a"), "authorization", authorization)
        assert code(request) == (expected, 400)

    @pytest.mark.parametrize("names", ["", ";", "host;", "host;a b", "host;é", "host;a:b"])
    def test_malformed_names_of_signed_headers_are_refused(self, names: str) -> None:
        """The texts cannot be names of headers."""
        request = header_4(f"/{BUCKET}/a")
        text = header(request, "authorization")
        old = text.partition("SignedHeaders=")[2].partition(",")[0]
        request = with_header(request, "authorization", text.replace(old, names))
        assert code(request) == ("AuthorizationHeaderMalformed", 400)

    @pytest.mark.parametrize("name", ["x-amz-date", "x-amz-content-sha256"])
    def test_missing_security_header_is_refused(self, name: str) -> None:
        """Version 4 in the header needs the date and the hash of the content."""
        request = with_header(header_4(f"/{BUCKET}/a"), name, None)
        assert code(request) == ("MissingSecurityHeader", 400)

    @pytest.mark.parametrize(
        "date",
        [
            "20201301T000000Z",
            "2020-01-01",
            "",
            "99999999T999999Z",
            "\u0662\u0660\u0662\u0660\u0660\u0661\u0660\u0661T000000Z",
        ],
    )
    def test_malformed_date_is_refused(self, date: str) -> None:
        """The service checks dates in the header and in the query."""
        assert code(with_header(header_4(f"/{BUCKET}/a"), "x-amz-date", date)) == (
            "AuthorizationHeaderMalformed",
            400,
        )
        scope = f"{KEYS.access_key}/{date[:8]}/r/s3/aws4_request"
        request = with_query(query_4(f"/{BUCKET}/a"), X_Amz_Date=date, X_Amz_Credential=scope)
        assert code(request) == ("AuthorizationQueryParametersError", 400)

    @pytest.mark.parametrize(
        "expires", ["", "soon", "-1", "1.5", "1e9", "9" * 5000, "\u0663", " 1"]
    )
    def test_malformed_expiry_is_refused(self, expires: str) -> None:
        """An expiry has to be a number of seconds."""
        request = with_query(query_4(f"/{BUCKET}/a"), X_Amz_Expires=expires)
        assert code(request) == ("AuthorizationQueryParametersError", 400)
        request = with_query(query_2(f"/{BUCKET}/a"), Expires=expires)
        assert code(request) == ("AccessDenied", 403)

    @pytest.mark.parametrize(
        "missing",
        ["X_Amz_Algorithm", "X_Amz_Credential", "X_Amz_Expires", "X_Amz_SignedHeaders"],
    )
    def test_missing_fields_are_refused(self, missing: str) -> None:
        """Version 4 in the query needs all its fields."""
        request = with_query(query_4(f"/{BUCKET}/a"), **{missing: None})
        assert code(request) == ("AuthorizationQueryParametersError", 400)

    def test_other_algorithm_is_refused(self) -> None:
        """The service knows one algorithm of version 4."""
        request = with_query(query_4(f"/{BUCKET}/a"), X_Amz_Algorithm="AWS4-ECDSA-P256-SHA256")
        assert code(request) == ("AuthorizationQueryParametersError", 400)

    @pytest.mark.parametrize(
        ("sign", "field", "expected"),
        [
            (query_4, b"X-Amz-Signature=0", ("AuthorizationQueryParametersError", 400)),
            (query_4, b"X-Amz-Expires=9", ("AuthorizationQueryParametersError", 400)),
            (query_4, b"Signature=x", ("InvalidArgument", 400)),
            (query_2, b"Signature=x", ("AccessDenied", 403)),
            (query_2, b"Expires=9", ("AccessDenied", 403)),
            (query_2, b"AWSAccessKeyId=x", ("AccessDenied", 403)),
        ],
    )
    def test_doubled_field_is_refused(
        self, sign: Sign, field: bytes, expected: tuple[str, int]
    ) -> None:
        """The service does not choose between two values of a field."""
        request = sign(f"/{BUCKET}/a")
        assert code(replace(request, raw_query=request.raw_query + b"&" + field)) == expected

    def test_two_signatures_at_once_are_refused(self) -> None:
        """A client signs a request in one way."""
        request = query_2(f"/{BUCKET}/a")
        signed = header(header_4(f"/{BUCKET}/a"), "authorization")
        assert code(with_header(request, "authorization", signed)) == ("InvalidArgument", 400)
        twice = header_4(f"/{BUCKET}/a")
        again = replace(twice, headers=[*twice.headers, *twice.headers])
        assert code(again) == ("InvalidArgument", 400)

    @pytest.mark.parametrize("raw", [b"prefix=%FF", b"prefix=\xff", b"a&" * 200, b"a b", b"a\nb"])
    def test_malformed_query_is_refused(self, raw: bytes) -> None:
        """The query is not UTF-8, has forbidden characters, or is far too long."""
        assert code(replace(header_4(f"/{BUCKET}"), raw_query=raw)) == ("InvalidURI", 400)

    @pytest.mark.parametrize("raw", [b"", b"a", b"/\xff", b"/a b", b"/a#b", b"/a?b", b"/\n"])
    def test_malformed_path_is_refused(self, raw: bytes) -> None:
        """No client sends such a path."""
        request = header_4(f"/{BUCKET}/a")
        assert code(replace(request, raw_path=raw, resource=raw)) == ("InvalidURI", 400)

    @every_way
    @settings(deadline=None)
    @given(data=st.data())
    def test_request_with_a_replaced_part_is_refused(self, sign: Sign, data: st.DataObject) -> None:
        """Any replacement of a signed part breaks the signature."""
        request = sign(f"/{BUCKET}/a")
        some = st.binary(max_size=40) | st.text(max_size=20).map(str.encode)
        part = data.draw(st.sampled_from(["path", "query", "field", "header"]))
        if part == "path":
            raw = b"/" + data.draw(some)
            changed = replace(request, raw_path=raw, resource=raw)
        elif part == "query":
            changed = replace(request, raw_query=data.draw(some), headers=[])
        elif part == "field":
            pairs = parse_qsl(request.raw_query) or [(b"a", b"b")]
            name, _ = data.draw(st.sampled_from(pairs))
            text = b"&".join(
                quote(n).encode() + b"=" + (data.draw(some) if n == name else quote(v).encode())
                for n, v in pairs
            )
            changed = replace(request, raw_query=text)
        else:
            name, _ = data.draw(st.sampled_from(list(request.headers)))
            kept = [pair for pair in request.headers if pair[0] != name]
            changed = replace(request, headers=[*kept, (name, data.draw(some))])
        if sign is query_2 and part == "header":
            # version 2 does not sign the host, the only header there is
            verify(changed, [KEYS], _now())
        else:
            refusal(changed)

    @settings(deadline=None)
    @given(
        path=st.binary(max_size=30),
        query=st.binary(max_size=60),
        authorization=st.binary(max_size=80),
    )
    def test_arbitrary_bytes_are_refused(
        self, path: bytes, query: bytes, authorization: bytes
    ) -> None:
        """The service refuses any bytes with a code."""
        headers = [(b"authorization", authorization)]
        refusal(SignedRequest("GET", path, query, headers, path))
        refusal(SignedRequest("GET", path, query, [], path))
