"""Excludes imported modules from garbage collection; the fork server of workers imports it last.

A worker is a copy of the fork server. Without this, its garbage collector would visit the objects
of all libraries, and copy the memory pages that the workers share.
"""

import gc

gc.collect()
gc.freeze()
