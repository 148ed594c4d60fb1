"""The web application: API, S3 gateway and pages. Only this package knows names of the HTTP API."""
