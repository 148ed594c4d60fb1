"""Object stores for results."""
