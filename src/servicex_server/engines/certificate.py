"""The certificate by which a scheduler that we start and its workers know each other."""

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Security

from servicex_server.model import now

_BEFORE = timedelta(days=1)
"""Clocks differ, and may be set back: Dask's own certificates hold from this moment only."""

_AFTER = timedelta(days=365)


def temporary_security() -> Security:
    """Return a new key and certificate for all parts of a cluster, in memory only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "servicex-server")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now() - _BEFORE)
        .not_valid_after(now() + _AFTER)
        .sign(key, hashes.SHA256())
    )
    certificate = made.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    parts = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{f"tls_{part}_cert": certificate for part in parts},
        **{f"tls_{part}_key": private for part in parts},
    )
