"""The client of Rucio: what an operator chooses of it, and how it signs in.

It is held to what was chosen: no configuration, token or retry of the machine has a part in it.
"""

import re
import sys
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SecretStr

from servicex_server.credentials import check_proxy, find_token, proxy_file, read_token
from servicex_server.errors import CatalogueDeniedError, CatalogueError, ExpiredError, StartupError
from servicex_server.finders.contract import FinderOptions

log = getLogger(__name__)


Scheme = Literal["root", "https", "davs", "http"]


class RucioOptions(FinderOptions):
    """Which server is asked, as whom, and which copies of files are wanted."""

    # a password may be what YAML takes for a number
    model_config = ConfigDict(coerce_numbers_to_str=True)

    setting: ClassVar[str] = "finders.rucio"
    """Where an operator chooses it."""

    url: str = ""
    """Address of the server, such as ``https://rucio.example.org``. Without it nothing is found."""

    auth_url: str = ""
    """Address of its authentication server, where that is another one."""

    account: str = ""
    """Account to ask as; the default account of the credential if there is none."""

    vo: str = "def"
    """Virtual organisation, on a server that has several."""

    auth: Literal["x509_proxy", "userpass", "oidc"] = "x509_proxy"
    """How the service says who it is: with a proxy, a password, or a token."""

    username: str = ""
    """For ``userpass``."""

    password: SecretStr = SecretStr("")
    """For ``userpass``."""

    proxy_file: Path | None = None
    """For ``x509_proxy``; else ``$X509_USER_PROXY``, or where ``voms-proxy-init`` puts it."""

    token_file: Path | None = None
    """For ``oidc``: read at each look-up; else where WLCG tokens are looked for."""

    ca_cert: Path | None = None
    """A file or a folder of certificates that vouch for the server; else ``$X509_CERT_DIR``, or
    those that Python has."""

    site: str = ""
    """Site of the workers: the server then names the nearest copies first, by the local door."""

    schemes: tuple[Scheme, ...] = Field(default=("root", "https"), min_length=1)
    """Protocols that are used, the best first; ``davs`` is read as ``https``."""

    rse_expression: str = r"*\istape=True"
    """The RSEs that may be read, as an RSE expression; empty for all. Tapes never are."""

    sort: Literal["", "geoip", "custom_table", "random"] = ""
    """How the server orders copies; its own default, ``geoip``, if empty. A server that has no
    tables for that is slow at it, and ``random`` is not."""

    exclude: tuple[str, ...] = ()
    """RSEs that are never read: names, or patterns such as ``*_LOCALGROUPDISK``."""

    prefer: tuple[str, ...] = ()
    """RSEs or sites that are read first, the best first; of RSEs also patterns."""

    report_as: Literal["suspicious", "bad"] = "suspicious"
    """What bad replicas are declared: ``suspicious``, as any account may, or ``bad``, for which it
    has to be a privileged one."""

    seconds: float = Field(default=60.0, gt=0)
    """For how long an answer, or the next piece of it, is waited for."""


def check_options(options: RucioOptions) -> None:
    """Refuse options that cannot be right together.

    Raises
    ------
    StartupError
        Names the setting.
    """
    if not options.url.startswith(("http://", "https://")):
        raise StartupError(f"setting {options.setting}.url: an address with https:// is needed")
    if options.auth_url and not options.auth_url.startswith(("http://", "https://")):
        raise StartupError(
            f"setting {options.setting}.auth_url: an address with https:// is needed"
        )
    for name in ("username", "password") if options.auth == "userpass" else ():
        if not getattr(options, name):
            raise StartupError(
                f"setting {options.setting}.{name}: it is needed to sign in by userpass"
            )
    if find_spec("rucio") is None:
        raise StartupError(
            f"{options.setting} needs the package rucio-clients",
            hint="pip install 'servicex-server[rucio]'",
        )


def said(error: Exception) -> str:
    """Return what an error says, without what Rucio and requests put around it."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    text = str(reason or error).removeprefix("An unknown exception occurred.")
    text = text.replace("Details:", "").rpartition("CannotAuthenticate: ")[2]
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(text.split()))
    return text[:300] or type(error).__name__


def connected(options: RucioOptions, folder: Path) -> Any:
    """Return a client that has signed in, and shares nothing with others on this machine.

    Parameters
    ----------
    folder
        Where it keeps its token; others may be of another server or account.
    """
    from rucio.client.didclient import DIDClient
    from rucio.client.replicaclient import ReplicaClient
    from rucio.client.rseclient import RSEClient

    class Client(DIDClient, ReplicaClient, RSEClient):  # type: ignore[misc]  # it ships no types
        AUTH_RETRIES, REQUEST_RETRIES = 1, 0  # a look-up as a whole is tried again

        answer: Any = None

        def _get_auth_tokens(self) -> tuple[None, str, str, str]:
            self.account = options.account or None
            return None, str(folder / "expires"), str(folder / "token"), str(folder)

        def forget(self) -> None:
            """Close the last answer: nobody reads it any more, be it at its end or not."""
            if self.answer is not None:
                self.answer.close()

        def _send_request(self, url: str, method: Any, **given: Any) -> Any:
            signs_in = given.get("get_token", False)
            if options.auth == "oidc":
                given["get_token"] = True  # or it asks a person at a terminal for a new one
            self.forget()
            self.answer = answer = super()._send_request(url, method, **given)
            # it takes any answer but success for a refusal when it signs in
            if answer.status_code >= 500 and (signs_in or "ExceptionClass" not in answer.headers):  # noqa: PLR2004  # statuses of servers
                raise CatalogueError(f"Rucio at {url} answers with status {answer.status_code}")
            return answer

    secret = _credential(options)
    if options.auth == "oidc":
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(secret["token"], encoding="utf-8")
    program = sys.argv[0]
    try:
        client = Client(
            rucio_host=options.url,
            auth_host=options.auth_url or options.url,
            account=options.account,
            ca_cert=str(options.ca_cert) if options.ca_cert else None,
            auth_type=options.auth,
            creds=secret,
            timeout=options.seconds,
            user_agent="servicex-server",
            vo=options.vo,
            logger=log,
        )
    finally:
        sys.argv[0] = program  # it cuts the folder off
    client.request_retries = 0
    if options.auth == "oidc":
        client.auth_token = secret["token"]  # it would prefer one of the environment
    return client


def _credential(options: RucioOptions) -> dict[str, str]:
    if options.auth == "userpass":
        return {
            "username": options.username,
            "password": options.password.get_secret_value(),
        }
    setting = f"see the setting {options.setting}"
    try:
        if options.auth == "x509_proxy":
            path = options.proxy_file or proxy_file()
            check_proxy(path)
            return {"client_proxy": str(path)}
        file = options.token_file
        token = read_token(file) if file else find_token()[0]
    except ExpiredError as error:
        raise CatalogueDeniedError(error.message, hint=error.hint or setting) from None
    if not token:
        raise CatalogueDeniedError(
            "there is no token for Rucio",
            hint=f"set {options.setting}.token_file, or BEARER_TOKEN_FILE",
        )
    return {"token": token}
