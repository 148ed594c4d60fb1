"""A small grid on loopback addresses: an authority, servers that want credentials, and a cache."""

import base64
import contextlib
import json
import os
import pwd
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.integration.servers import (
    XRootD,
    daemon,
    free_port,
    preloadable,
    prepare,
    until_it_answers,
)
from tests.support import missing, needed

VO = "tests.invalid"
"""The virtual organization whose attributes are given out."""

ADDRESSES = ("127.0.0.1", "127.0.0.2")


@contextlib.contextmanager
def home(prefix: str = "sx-") -> Iterator[Path]:
    """Give a new folder that everybody may look into: the servers are another user."""
    with tempfile.TemporaryDirectory(prefix=prefix) as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


def private(path: Path, content: bytes, *, server: bool = False) -> Path:
    """Write a file that only its owner may read: this user, or the one that servers change to."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(0o400)
    if server:
        given(path)
    return path


def given(path: Path) -> None:
    """Make a file or folder that of the user that servers change to."""
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(path, user.pw_uid, user.pw_gid)


# --- X.509 ---------------------------------------------------------------------------------

Pair = tuple[x509.Certificate, rsa.RSAPrivateKey]

_RFC_3820 = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), bytes.fromhex("300c300a06082b06010505071501")
)
"""The extension that makes a certificate a proxy: of any length, with all rights of its user."""


def _pem(*parts: x509.Certificate | rsa.RSAPrivateKey) -> bytes:
    """Return certificates and keys as one text."""
    return b"".join(
        one.public_bytes(serialization.Encoding.PEM)
        if isinstance(one, x509.Certificate)
        else one.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        for one in parts
    )


def _certificate(
    issuer: Pair | None,
    *names: str,
    seconds: float = 86400,
    extensions: Mapping[x509.ExtensionType, bool],
) -> Pair:
    """Make a certificate, and its key, with common names below that of the issuer's folder."""
    key = rsa.generate_private_key(65537, 2048)
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "servicex-server tests")]
    attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
    subject = x509.Name(attributes)
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), end) - timedelta(days=1))
        .not_valid_after(end)
    )
    signing = issuer[1] if issuer else key
    identities = {
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()): False,
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()): False,
    }
    for extension, critical in (identities | dict(extensions)).items():
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing, hashes.SHA256()), key


def _usage(*kinds: str) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{kind: kind in kinds for kind in every.split()})


@dataclass(frozen=True)
class Authority:
    """An authority, and those it vouches for: the servers, and one user.

    Attributes
    ----------
    certificates
        A folder as in ``X509_CERT_DIR``, in which no other authority is.
    voms
        A folder as in ``X509_VOMS_DIR``, with the host that signs attributes of the `VO`.
    host
        The certificate and the key of all servers, for ``127.0.0.1``, ``127.0.0.2`` and
        ``localhost``.
    """

    folder: Path
    user: Pair

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def voms(self) -> Path:
        return self.folder / "vomsdir"

    @property
    def host(self) -> tuple[Path, Path]:
        return self.folder / "host.pem", self.folder / "host-key.pem"

    @property
    def bundle(self) -> Path:
        """The certificate of the authority itself."""
        return self.folder / "authority.pem"

    def context(self) -> ssl.SSLContext:
        """Return what a client by HTTPS needs to trust the servers."""
        return ssl.create_default_context(cafile=str(self.bundle))

    def proxy(self, name: str = "proxy", *, seconds: float = 3600) -> Path:
        """Write a proxy of the user that is good for so long; with less than none it has expired.

        One of the same name is replaced.
        """
        certificate = self.user[0]
        names = [str(one.value) for one in certificate.subject][1:]
        extensions = {_RFC_3820: True, _usage("digital_signature", "key_encipherment"): True}
        number = str(time.time_ns() % 10**9)
        made, own = _certificate(self.user, *names, number, seconds=seconds, extensions=extensions)
        path = self.folder / f"{name}.pem"
        path.unlink(missing_ok=True)
        return private(path, _pem(made, own, certificate))

    def voms_proxy(self, name: str = "voms-proxy") -> Path:
        """Write a proxy with an attribute that says that the user is of the `VO`."""
        path = self.folder / f"{name}.pem"
        command = [needed("voms-proxy-fake", "apt-get install voms-clients"), "-rfc"]
        options = {
            "cert": self.folder / "user.pem",
            "key": self.folder / "user-key.pem",
            "certdir": self.certificates,
            "hostcert": self.host[0],
            "hostkey": self.host[1],
            "voms": VO,
            "fqan": f"/{VO}/Role=NULL/Capability=NULL",
            "uri": "localhost:15000",
            "out": path,
        }
        for option, value in options.items():
            command += [f"-{option}", str(value)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return path


@contextlib.contextmanager
def authority(name: str = "authority") -> Iterator[Authority]:
    """Make an authority, a certificate for servers, and a user."""
    with home() as folder:
        ca = _certificate(
            None,
            name,
            extensions={
                x509.BasicConstraints(ca=True, path_length=None): True,
                _usage("key_cert_sign", "crl_sign"): True,
            },
        )
        # XrdCl knows names only: by TLS of the URL, by GSI of the socket, which is of IPv6
        texts = ["localhost", *ADDRESSES, *(f"[::ffff:{one}]" for one in ADDRESSES)]
        names = [x509.DNSName(text) for text in texts]
        places = [x509.IPAddress(ip_address(one)) for one in ADDRESSES]
        host = _certificate(
            ca,
            "localhost",
            extensions={
                x509.SubjectAlternativeName([*names, *places]): False,
                _usage("digital_signature", "key_encipherment"): True,
            },
        )
        user = _certificate(
            ca, "A User", extensions={_usage("digital_signature", "key_encipherment"): True}
        )
        made = Authority(folder, user)
        made.bundle.write_bytes(_pem(ca[0]))
        made.certificates.mkdir()
        (made.voms / VO).mkdir(parents=True)
        command = ["openssl", "x509", "-noout", "-hash", "-in", str(made.bundle)]
        asked = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        stem = made.certificates / asked.stdout.strip()
        stem.with_suffix(".0").write_bytes(_pem(ca[0]))
        stem.with_suffix(".signing_policy").write_text(
            f"access_id_CA X509 '{_dn(ca[0])}'\n"
            "pos_rights globus CA:sign\n"
            "cond_subjects globus '\"/O=servicex-server tests/*\"'\n"
        )
        (made.voms / VO / "localhost.lsc").write_text(f"{_dn(host[0])}\n{_dn(ca[0])}\n")
        made.host[0].write_bytes(_pem(host[0]))
        private(made.host[1], _pem(host[1]), server=True)
        (folder / "user.pem").write_bytes(_pem(user[0]))
        private(folder / "user-key.pem", _pem(user[1]))
        yield made


def _dn(certificate: x509.Certificate) -> str:
    """Return the name of whom a certificate is for, as the grid writes it."""
    short = {NameOID.ORGANIZATION_NAME: "O", NameOID.COMMON_NAME: "CN"}
    return "".join(f"/{short[one.oid]}={one.value!s}" for one in certificate.subject)


# --- tokens --------------------------------------------------------------------------------

AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"


@dataclass(frozen=True)
class Issuer:
    """Who signs tokens."""

    url: str = "https://issuer.invalid"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def token(self, scope: str = "storage.read:/", *, seconds: float = 3600) -> str:
        """Return a token that is good for so long; with less than none it has expired."""
        now = int(time.time())
        begin = min(now, int(now + seconds)) - 60
        claims = {
            "iss": self.url,
            "sub": "a-user",
            "aud": AUDIENCE,
            "iat": begin,
            "nbf": begin,
            "exp": int(now + seconds),
            "jti": str(time.time_ns()),
            "wlcg.ver": "1.0",
            "scope": scope,
        }
        head = {"alg": "ES256", "typ": "JWT", "kid": "key"}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def told_to(self, cache: Path) -> None:
        """Write the key where libSciTokens keeps what it has fetched of issuers."""
        numbers = self.key.public_key().public_numbers()
        point = {name: _encoded(getattr(numbers, name).to_bytes(32, "big")) for name in "xy"}
        key = {"kty": "EC", "crv": "P-256", "kid": "key", "alg": "ES256", "use": "sig", **point}
        later = int(time.time()) + 86400
        known = {"jwks": {"keys": [key]}, "expires": 2 * later, "next_update": later}
        folder = cache / "scitokens"
        folder.mkdir(parents=True)
        path = folder / "scitokens_cpp.sqllite"
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "create table keycache (issuer text unique primary key not null, "
                "keys text not null)"
            )
            row = (self.url, json.dumps(known))
            database.execute("insert into keycache values (?, ?)", row)
        for one in (cache, folder, path):
            given(one)


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


# --- servers -------------------------------------------------------------------------------


def _plug_ins(**packages: str) -> None:
    """Skip where a plug-in of XRootD is not installed: its library, and the package it is in."""
    for library, package in packages.items():
        if not any(any(Path("/usr").glob(f"{lib}/{library}-*.so")) for lib in ("lib64", "lib/*")):
            missing(f"there is no {library} here: apt-get install {package}")


@contextlib.contextmanager
def _running(
    place: Path,
    config: str,
    address: str,
    port: int,
    environment: Mapping[str, str],
    *,
    writes: bool = False,
) -> Iterator[XRootD]:
    prepare(place, f"xrd.port {port}\nxrd.network nodnr\n{config}")
    if writes:
        given(place / "files")
    library = preloadable("loopback_bind", place)
    with daemon("xrootd", place, address, library, environment) as process:
        until_it_answers(address, port, process, place / "xrootd.log")
        yield XRootD(place / "files", address, port, process)


@contextlib.contextmanager
def gsi_xrootd(known: Authority, address: str = "127.0.0.1") -> Iterator[XRootD]:
    """Run a server that reads for those with a proxy.

    What is in its folder ``vo`` is for those of the `VO` only.
    """
    _plug_ins(libXrdSecgsi="xrootd-plugins", libXrdVoms="xrootd-voms-plugins")
    with home() as place:
        # of the paths of one line the first that fits holds, and privileges of lines add up
        (place / "authdb").write_text(f"u * /vo/ k / lr\no {VO} /vo/ lr\n")
        certificate, key = known.host
        voms = f"-vomsfun:libXrdVoms.so -vomsfunparms:certfmt=pem|vos={VO}"
        config = (
            "all.export / readonly\n"
            "xrootd.seclib libXrdSec.so\n"
            f"sec.protocol gsi -certdir:{known.certificates} -cert:{certificate} -key:{key} -crl:0 "
            f"-gmapopt:10 -vomsat:1 {voms}\n"
            "sec.protbind * only gsi\n"
            f"acc.authdb {place}/authdb\n"
            "ofs.authorize\n"
        )
        told = {"X509_CERT_DIR": str(known.certificates), "X509_VOMS_DIR": str(known.voms)}
        with _running(place, config, address, free_port(address), told) as door:
            (door.folder / "vo").mkdir()
            yield door


@dataclass
class TokenXRootD(XRootD):
    """A running ``xrootd`` that wants tokens, by its own protocol and by HTTPS."""

    http_port: int

    def https(self, name: str) -> str:
        """Return the HTTPS URL of a file by its name in the folder."""
        return f"https://{self.address}:{self.http_port}/{quote(name)}"


@contextlib.contextmanager
def token_xrootd(
    known: Authority, issuer: Issuer, address: str = "127.0.0.1"
) -> Iterator[TokenXRootD]:
    """Run a server that reads for those with a token, by ``root://`` with TLS and by HTTPS."""
    _plug_ins(libXrdAccSciTokens="xrootd-scitokens-plugins", libXrdHttp="xrootd-server-plugins")
    with home() as place:
        (place / "scitokens.cfg").write_text(
            f"[Global]\naudience = {AUDIENCE}\n"
            f"[Issuer tests]\nissuer = {issuer.url}\nbase_path = /\nmap_subject = True\n"
        )
        issuer.told_to(place / "cache")
        certificate, key = known.host
        port, http_port = free_port(address), free_port(address)
        config = (
            "all.export / readonly\n"
            "xrootd.seclib libXrdSec.so\n"
            "sec.protocol ztn\nsec.protbind * only ztn\n"
            f"xrd.tls {certificate} {key}\nxrd.tlsca certdir {known.certificates}\n"
            "xrootd.tls all\n"
            "ofs.authorize 1\n"
            f"ofs.authlib libXrdAccSciTokens.so config={place}/scitokens.cfg\n"
            f"xrd.protocol http:{http_port} libXrdHttp.so\n"
            "http.header2cgi Authorization authz\n"
        )
        told = {"XDG_CACHE_HOME": str(place / "cache")}
        with _running(place, config, address, port, told) as door:
            yield TokenXRootD(door.folder, address, port, door.process, http_port)


@dataclass
class Cache(XRootD):
    """A running cache; what it has read is below ``folder``."""

    def of(self, url: str) -> str:
        """Return the URL that reads a ``root://`` URL through the cache."""
        return self.url(url)


@contextlib.contextmanager
def cache(address: str = "127.0.0.2", *, allowed: str = "127.0.0.1") -> Iterator[Cache]:
    """Run a cache of whatever server it is asked for, that goes to one address only."""
    _plug_ins(libXrdPfc="xrootd-server-plugins", libXrdPss="xrootd-server-plugins")
    with home() as place:
        config = (
            "all.export /root:/\nall.export /xroot:/\n"
            "ofs.osslib libXrdPss.so\n"
            "pss.origin =\n"
            f"pss.permit {allowed}\n"
            "pss.cachelib libXrdPfc.so\n"
            "pfc.ram 1g\npfc.blocksize 128k\n"
        )
        with _running(place, config, address, free_port(address), {}, writes=True) as door:
            yield Cache(door.folder, address, door.port, door.process)
