"""Writing results: Parquet and ROOT."""
