"""Where datasets are found. `contract` says what a finder does; one file each."""
