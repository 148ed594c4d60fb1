"""Bucket keys and presigned links for users.

They become void when the API token that they were issued for ends, or when the keys of the account
are revoked.
"""

import time
from urllib.parse import quote

from servicex_server.app import App
from servicex_server.database.result_objects import VIEW_HOURS
from servicex_server.model import Principal, Request
from servicex_server.storage.bucket import BucketKeys, Grant, bucket_keys
from servicex_server.web.s3.signatures import presigned_query

_HOUR = 3600


def keys_for(app: App, principal: Principal, request_id: str) -> BucketKeys:
    """Return the keys to the bucket of a request, for a principal who may see the request."""
    issued = int(time.time()) // _HOUR
    grant = Grant(principal.number, principal.token, principal.key_epoch, issued)
    return bucket_keys(app.keys.current, request_id, grant)


def link_seconds(app: App, principal: Principal, request: Request) -> int:
    """Return the longest lifetime of a link to a result for a principal, in seconds."""
    own = request.owner == principal.user
    return 24 * _HOUR * app.settings.storage.link_days if own else (VIEW_HOURS - 1) * _HOUR


def signed_link(app: App, principal: Principal, request_id: str, name: str, expires: int) -> str:
    """Return the path and query of a presigned link to a result."""
    path = f"/{request_id}/{name}"
    query = presigned_query(path, keys_for(app, principal, request_id), expires)
    return f"{quote(path, safe='/~')}?{query}"
