"""Submission, quotas and deletion of requests."""
