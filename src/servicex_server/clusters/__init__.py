"""Where workers come from: local processes, batch systems, Kubernetes, gateways."""
