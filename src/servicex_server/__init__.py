"""Deliver columns from high-energy-physics datasets.

Importing this package loads nothing heavy; each part imports what it needs when it is built.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: a worker's child never does."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version

    return version("servicex-server")
