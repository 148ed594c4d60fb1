"""Storage endpoints and replicas: health, refresh, reports of bad ones."""
