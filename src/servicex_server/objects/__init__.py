"""Where results are kept, and the bucket of a request as a view on them."""
