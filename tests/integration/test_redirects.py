"""The service does not follow redirects of servers that the operator chose.

It connects to catalogues, OIDC providers and webhooks at any host. A redirect is the choice of such
a server, and not of the operator, so that none leads the service to another host.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from servicex_server.accounts.oidc import OidcProviders
from servicex_server.errors import CatalogueError, IssuerError, ServiceXError, UploadError
from servicex_server.finders.cernopendata import CernOpenData, CernOpenDataOptions
from servicex_server.finders.dbs import Dbs, DbsOptions
from servicex_server.finders.rucio import Rucio
from servicex_server.finders.rucio_client import RucioOptions
from servicex_server.notifications.webhook import post
from servicex_server.settings.issuers import Issuer
from tests.integration.servers import Answer, Listener, StandIn, listener, stand_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def elsewhere() -> Iterator[Listener]:
    """Give a port to which no redirect may lead."""
    with listener("127.0.0.3") as made:
        yield made
        assert made.connections == 0


@pytest.fixture(params=[302, 307, 308])
def chosen(request: pytest.FixtureRequest, elsewhere: Listener) -> Iterator[StandIn]:
    """Give a server that redirects every request."""
    place = f"http://{elsewhere.address}:{elsewhere.port}/x"
    with stand_in(lambda _: Answer(b"", request.param, {"Location": place})) as made:
        yield made


async def _files(finder: Any, reference: str) -> list[Any]:
    return [file async for file in finder.find(reference)]


async def _rucio(url: str) -> Any:
    options = RucioOptions(
        url=url, auth="userpass", username="x", password=SecretStr("y"), account="z"
    )
    return await _files(Rucio(options), "scope:name")


async def _issuer(url: str) -> Any:
    place = f"{url}/.well-known/openid-configuration"
    providers = OidcProviders([Issuer(name="iam", metadata_url=place, client_id="x")])
    return await providers.examine("iam")


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda url: post(f"{url}/secret", {}), UploadError),
        (lambda url: _files(CernOpenData(CernOpenDataOptions(url=url)), "1"), CatalogueError),
        (lambda url: _files(Dbs(DbsOptions(url=url)), "/A/B/C"), CatalogueError),
        (_rucio, CatalogueError),
        (_issuer, IssuerError),
    ],
    ids=["webhook", "cernopendata", "dbs", "rucio", "issuer"],
)
async def test_redirect_to_another_host_is_not_followed(
    chosen: StandIn, ask: Callable[[str], Awaitable[Any]], kind: type[ServiceXError]
) -> None:
    with pytest.raises(kind):
        await ask(chosen.url)
    assert chosen.asked
