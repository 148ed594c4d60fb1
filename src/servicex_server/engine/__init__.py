"""The engine: tasks on Dask workers."""
