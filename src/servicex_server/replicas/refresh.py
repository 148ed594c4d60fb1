"""Replica refresh: ask catalogues again for the replicas of files."""

import logging
from collections import defaultdict
from collections.abc import Mapping

from servicex_server.database import datasets as dataset_rows
from servicex_server.database.connection import Database
from servicex_server.datasets.finder_registry import open_finder
from servicex_server.errors import ServiceXError
from servicex_server.model import Replica
from servicex_server.settings.service import Settings

log = logging.getLogger(__name__)


async def current_replicas(
    database: Database, settings: Settings, names: Mapping[int, str]
) -> dict[int, tuple[Replica, ...]]:
    """Ask the catalogues for the replicas that files have now.

    Parameters
    ----------
    database
        Where it is stored which finder listed each file.
    settings
        The settings of the service, for the finders.
    names
        Names of files in their catalogues, by file id.

    Returns
    -------
    The current replicas by file id. Files of catalogues that did not respond are omitted.
    """
    finders = await database.read(dataset_rows.finders_of, names)
    by_scheme: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file_id, scheme in finders.items():
        by_scheme[scheme][names[file_id]].append(file_id)
    found: dict[int, tuple[Replica, ...]] = {}
    for scheme, ids in by_scheme.items():
        try:
            places = await open_finder(scheme, settings).replicas_again(list(ids))
        except ServiceXError as error:
            log.warning("the replicas of %d files cannot be refreshed: %s", len(ids), error)
            continue
        for name, replicas in places.items():
            found |= dict.fromkeys(ids.get(name, ()), replicas)
    return found
