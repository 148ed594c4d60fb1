"""Hosts, URLs and the client of XRootD: what may be reached, and how names are written."""
