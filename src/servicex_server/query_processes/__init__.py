"""Helper processes, in which queries are compiled and dry-run within limits."""
