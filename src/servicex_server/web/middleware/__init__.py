"""Middleware of all HTTP requests."""
