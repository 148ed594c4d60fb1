"""Looking up the files of datasets in catalogues."""
