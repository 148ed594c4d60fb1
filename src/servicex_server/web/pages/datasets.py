"""The pages of datasets."""

from collections import Counter

from fastapi import APIRouter, Request
from fastapi.responses import Response

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import (
    page_queries,
)
from servicex_server.replicas.health import endpoint_of
from servicex_server.web.dependencies import TheApp, dataset_number
from servicex_server.web.pages import (
    templating,
)
from servicex_server.web.pages.dependencies import (
    PagePrincipal,
)
from servicex_server.web.pages.paging import Start, paging

router = APIRouter(include_in_schema=False)

PLACES = 2000
"""Files of a dataset whose replicas are counted by site."""


@router.get("/datasets")
async def datasets(
    app: TheApp, principal: PagePrincipal, request: Request, q: str = "", start: Start = 0
) -> Response:
    """Show the datasets that the service knows."""
    found, total = await app.database.read(
        page_queries.datasets_page, principal, wanted=q.strip(), start=start
    )
    return templating.page(
        "datasets",
        request,
        principal,
        found=found,
        total=total,
        wanted=q,
        **paging(request, start, page_queries.PAGE, total),
    )


@router.get("/datasets/{dataset_id}")
async def one_dataset(
    app: TheApp, principal: PagePrincipal, request: Request, dataset_id: str, start: Start = 0
) -> Response:
    """Show a dataset: its files, and the sites that have them."""
    number = dataset_number(dataset_id)
    found = await app.database.read(dataset_rows.get, principal, number)
    files = await app.database.read(page_queries.files_page, principal, number, start=start)
    places = await app.database.read(page_queries.places_of, principal, number, most=PLACES)
    sites = Counter(
        site
        for replicas in places
        for site in {one.rse or endpoint_of(one.url) or "this machine" for one in replicas}
    )
    return templating.page(
        "dataset",
        request,
        principal,
        found=found,
        files=files,
        sites=sites.most_common(),
        counted=len(places),
        **paging(request, start, page_queries.FILES, found.n_files),
    )
