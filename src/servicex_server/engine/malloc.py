"""glibc malloc options of worker processes: keep freed memory for the next range of entries."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""

_KEPT = 128 << 20
"""Bytes of free memory that a worker keeps at most."""

_MAPPED = 32 << 20
"""Bytes of an allocation from which on glibc uses mmap; the largest value that it accepts."""


def keep_freed_memory() -> None:
    """Have glibc keep freed memory; with another C library, do nothing.

    The arrays of one range are as large as those of the next. By default, Dask has workers return
    freed memory at once (MALLOC_TRIM_THRESHOLD_ of its nannies), and the kernel then clears the
    same pages again. For a million events, this took 0.9 of 2.2 seconds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MAPPED)
        mallopt(_TRIM_THRESHOLD, _KEPT)
