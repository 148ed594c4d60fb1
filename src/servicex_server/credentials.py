"""Grid credentials: where a proxy is, and when it ends."""

import os
from datetime import datetime
from pathlib import Path


def proxy_file() -> Path:
    """Return where the proxy is that nobody has named: as ``voms-proxy-init`` has it."""
    return Path(os.environ.get("X509_USER_PROXY", f"/tmp/x509up_u{os.getuid()}"))  # noqa: S108


def end_of(path: Path) -> datetime:
    """Return when a file of certificates ends to be good: when the first of them does.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or is none.
    """
    from cryptography.x509 import load_pem_x509_certificates

    return min(one.not_valid_after_utc for one in load_pem_x509_certificates(path.read_bytes()))
