"""The TLS certificates of the service, its scheduler and its workers.

There are two certificates, so that a worker has fewer rights than the service. A worker and its
nanny accept calls only with the certificate of the service. A scheduler also accepts the
certificate of workers, but only for what a worker does. Thus a worker cannot control another one.
"""

import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Security

from servicex_server.model import now

_BEFORE = timedelta(days=1)
"""The validity begins in the past, as clocks differ and may be set back. The certificates that Dask
makes are valid from the moment of their creation only."""

_AFTER = timedelta(days=365)


@dataclass(frozen=True)
class ClusterSecurity:
    """The keys and certificates of a cluster, in memory only.

    Attributes
    ----------
    service
        For the client and the scheduler.
    worker
        For workers and nannies.
    """

    service: Security
    worker: Security


def cluster_security() -> ClusterSecurity:
    """Return new keys and certificates."""
    service, service_key = _made("servicex-server")
    worker, worker_key = _made("servicex-server worker")
    return ClusterSecurity(
        service=Security(
            require_encryption=True,
            tls_ca_file=service + worker,
            **{f"tls_{part}_cert": service for part in ("client", "scheduler")},
            **{f"tls_{part}_key": service_key for part in ("client", "scheduler")},
        ),
        worker=Security(
            require_encryption=True,
            tls_ca_file=service,
            tls_worker_cert=worker,
            tls_worker_key=worker_key,
        ),
    )


def own_certificate(security: Any) -> bytes:
    """Return the certificate of a scheduler in DER; empty if it has none."""
    given = security.tls_scheduler_cert or ""
    text = given if not given or "\n" in given else Path(given).read_text(encoding="ascii")
    return ssl.PEM_cert_to_DER_cert(text) if text else b""


def _made(name: str) -> tuple[str, str]:
    """Return a new self-signed certificate and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now() - _BEFORE)
        .not_valid_after(now() + _AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
