"""The work on one file, on a worker."""
