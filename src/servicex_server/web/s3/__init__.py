"""The S3 gateway: the results of each request as a bucket."""
