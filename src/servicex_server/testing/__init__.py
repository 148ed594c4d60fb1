"""Conformance suites for plug-ins, and an engine without processes. They need pytest.

A plug-in's tests derive a class from a suite and say what to test::

    from servicex_server.testing.finder_suite import FinderSuite

    class TestMyLab(FinderSuite):
        known = "2024-a"
        unknown = "1999-z"
        malformed = ("no run",)

        @pytest.fixture
        def finder(self) -> Finder:
            return MyLab()
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{suite}_suite" for suite in ("engine", "finder", "language", "storage"))
)
