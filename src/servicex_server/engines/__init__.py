"""Where tasks run. `contract` says what an engine does; Dask is the one real implementation."""
