"""Choice of the object store by its URL."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from servicex_server import plugins
from servicex_server.errors import StartupError
from servicex_server.storage.contract import ObjectStore


def open_store(url: str, *, options: Mapping[str, str] | None = None) -> ObjectStore:
    """Open the store at a URL.

    Parameters
    ----------
    url
        ``file:///absolute/folder``, ``s3://bucket/prefix?endpoint=https://…&region=…``, or a URL of
        an installed store, by its scheme.
    options
        More settings of the store, which override those of the URL, so that a secret need not be
        part of the URL.

    Raises
    ------
    StartupError
        The URL is invalid, no store has its scheme, or the store cannot be opened.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise StartupError(
            f"results cannot be stored at {parts.scheme}://…@…: the URL must not contain a user",
            hint="set the keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    known = plugins.available("stores")
    if parts.scheme not in known:
        others = [f"{scheme}://…" for scheme in sorted(known.keys() - {"file", "s3"})]
        raise StartupError(
            # the query may hold a secret
            f"results cannot be stored at {url.partition('?')[0]}",
            hint="use " + " or ".join(["file:///absolute/folder", "s3://bucket", *others]),
        )
    store: ObjectStore = known[parts.scheme].load()(url, options or {})
    return store
