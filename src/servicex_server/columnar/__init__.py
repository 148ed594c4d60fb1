"""The columnar engine: expressions, plans, and the reading and writing of columns.

Imports only `servicex_server.errors`; uproot, awkward and pyarrow are loaded on first use.
"""
