"""The client of Rucio: its options, and how it signs in.

The client uses only its options. It ignores the Rucio configuration and the tokens of the machine,
and does not retry by itself.
"""

import re
import sys
from functools import cache
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SecretStr

from servicex_server.credentials import check_proxy, find_token, proxy_file, read_token
from servicex_server.errors import CatalogueDeniedError, CatalogueError, ExpiredError, StartupError
from servicex_server.finders.contract import FinderOptions
from servicex_server.text.hints import install

log = getLogger(__name__)


Scheme = Literal["root", "https", "davs", "http"]


class RucioOptions(FinderOptions):
    """Which server is asked, as whom, and which copies of files are wanted."""

    # a password may be what YAML takes for a number
    model_config = ConfigDict(coerce_numbers_to_str=True)

    setting: ClassVar[str] = "finders.rucio"
    """Where an operator chooses it."""

    url: str = ""
    """Address of the server. Without it, the service rejects Rucio datasets."""

    auth_url: str = ""
    """Address of the authentication server, if it differs from ``url``."""

    account: str = ""
    """Rucio account of the service. The default is the account of the credential."""

    vo: str = "def"
    """Virtual organisation, on a server that has several."""

    auth: Literal["x509_proxy", "userpass", "oidc"] = "x509_proxy"
    """Authentication method: ``x509_proxy``, ``userpass`` or ``oidc`` (a token)."""

    username: str = ""
    """For ``userpass``."""

    password: SecretStr = SecretStr("")
    """For ``userpass``."""

    proxy_file: Path | None = None
    """For ``x509_proxy``. The default is ``$X509_USER_PROXY``, or the file that ``voms-proxy-init``
    writes."""

    token_file: Path | None = None
    """For ``oidc``; read at each look-up. The default is the standard discovery of WLCG tokens:
    ``$BEARER_TOKEN``, ``$BEARER_TOKEN_FILE`` and so on."""

    ca_cert: Path | None = None
    """File or folder of CA certificates with which the server's certificate is verified. The
    default is ``$X509_CERT_DIR``, or the certificates that Python trusts."""

    site: str = ""
    """Site of the workers. Rucio then lists the replicas of this site first, with the endpoint for
    clients at this site."""

    schemes: tuple[Scheme, ...] = Field(default=("root", "https"), min_length=1)
    """Protocols to use, best first: ``root``, ``https``, ``davs`` or ``http``. ``davs`` is read as
    ``https``."""

    rse_expression: str = r"*\istape=True"
    """RSEs that may be read, as an RSE expression. An empty value allows all RSEs."""

    sort: Literal["", "geoip", "custom_table", "random"] = ""
    """How the server sorts replicas: ``geoip`` (the server's default), ``custom_table`` or
    ``random``. On a server without location tables, ``geoip`` takes milliseconds for each file and
    ``random`` takes no extra time."""

    exclude: tuple[str, ...] = ()
    """RSEs that are never read: names, or patterns such as ``*_LOCALGROUPDISK``."""

    prefer: tuple[str, ...] = ()
    """RSEs or sites that are read first, best first. RSEs may also be patterns."""

    report_as: Literal["suspicious", "bad"] = "suspicious"
    """How bad replicas are declared if they are reported to the catalogue: ``suspicious``, which
    any account may declare, or ``bad``, which requires a privileged account."""

    seconds: float = Field(default=60.0, gt=0)
    """Seconds that the service waits for a response, or for the next part of it."""


def check_options(options: RucioOptions) -> None:
    """Validate options that depend on each other.

    Raises
    ------
    StartupError
        An option is missing or invalid; the message names the setting.
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
                f"setting {options.setting}.{name}: a value is needed to sign in by userpass"
            )
    if find_spec("rucio") is None:
        raise StartupError(
            f"{options.setting} needs the package rucio-clients",
            hint=install("rucio"),
        )


def said(error: Exception) -> str:
    """Return the text of an error, without the words that Rucio and requests add."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    text = str(reason or error).removeprefix("An unknown exception occurred.")
    text = text.replace("Details:", "").rpartition("CannotAuthenticate: ")[2]
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(text.split()))
    return text[:300] or type(error).__name__


def connected(options: RucioOptions, folder: Path) -> Any:
    """Return a client that has signed in, isolated from other clients on this machine.

    Parameters
    ----------
    options
        The server, and the account.
    folder
        The folder for its token, as a shared one may have the token of another server or account.
    """
    secret = _credential(options)
    if options.auth == "oidc":
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(secret["token"], encoding="utf-8")
    program = sys.argv[0]
    try:
        client = _client_class()(options, folder, secret)
    finally:
        sys.argv[0] = program  # the client removes the folder from it
    client.request_retries = 0
    if options.auth == "oidc":
        client.auth_token = secret["token"]  # else it prefers one of the environment
    return client


@cache
def _client_class() -> Any:
    """Return the class of clients; Rucio is imported when it is first used."""
    from rucio.client.didclient import DIDClient
    from rucio.client.replicaclient import ReplicaClient
    from rucio.client.rseclient import RSEClient

    class Client(DIDClient, ReplicaClient, RSEClient):  # type: ignore[misc]  # it ships no types
        """Makes one query at a time, and closes all its connections."""

        AUTH_RETRIES, REQUEST_RETRIES = 1, 0  # a look-up as a whole is tried again

        answer: Any = None
        _session: Any = None

        def __init__(self, options: RucioOptions, folder: Path, secret: dict[str, str]) -> None:
            self._options, self._folder = options, folder
            try:
                super().__init__(
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
            except BaseException:
                self.abort()
                raise

        @property
        def session(self) -> Any:
            """The HTTP session; Rucio's client sets a new one after a refusal."""
            return self._session

        @session.setter
        def session(self, session: Any) -> None:
            self.abort()
            self._session = session
            # on a redirect to another host, requests drops `Authorization`, but not Rucio's token
            session.max_redirects = 0
            session.hooks["response"].append(self._keep)

        def _keep(self, answer: Any, **_: Any) -> None:
            self.forget()
            self.answer = answer

        def forget(self) -> None:
            """Close the last answer, whether it was read completely or not."""
            if self.answer is not None:
                self.answer.close()

        def abort(self) -> None:
            """Close all connections."""
            self.forget()
            if self._session is not None:
                self._session.close()

        def _get_auth_tokens(self) -> tuple[None, str, str, str]:
            self.account = self._options.account or None
            folder = self._folder
            return None, str(folder / "expires"), str(folder / "token"), str(folder)

        def _send_request(self, url: str, method: Any, **given: Any) -> Any:
            signs_in = given.get("get_token", False)
            if self._options.auth == "oidc":
                given["get_token"] = True  # else it asks for a new token at the terminal
            self.forget()
            answer = super()._send_request(url, method, **given)
            # when it signs in, Rucio's client treats every error as a refusal
            if answer.status_code >= 500 and (signs_in or "ExceptionClass" not in answer.headers):  # noqa: PLR2004  # statuses of servers
                raise CatalogueError(f"Rucio at {url} answers with status {answer.status_code}")
            return answer

    return Client


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
