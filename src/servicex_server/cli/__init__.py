"""The command line: the service, its users, and requests from a terminal."""
