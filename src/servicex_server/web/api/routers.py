"""The modules with the routes of the API, which the OpenAPI document describes."""

from servicex_server.web.api import device_flow, operations, servicex

API = (servicex, operations, device_flow)
"""In the order in which the document lists them."""
