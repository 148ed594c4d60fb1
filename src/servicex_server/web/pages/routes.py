"""All pages."""

from fastapi import APIRouter

from servicex_server.web.pages import (
    datasets,
    home,
    operations,
    profile,
    requests,
    sign_in,
    users,
)

router = APIRouter(include_in_schema=False)
for chapter in (sign_in, profile, users, home, requests, datasets, operations):
    router.include_router(chapter.router)
