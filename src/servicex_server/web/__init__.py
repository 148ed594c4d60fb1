"""The public API, the S3 gateway and the pages. Wire names live only here."""
