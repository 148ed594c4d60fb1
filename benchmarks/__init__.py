"""Measurements of speed and memory: ``make bench`` runs all and writes ``RESULTS.md``."""
