"""The database: requests, datasets, files, tasks and accounts as rows. All SQL is in this package.

The rows are the source of truth: what a process holds in memory can be rebuilt from them.
"""
