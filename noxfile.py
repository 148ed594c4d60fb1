#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""Sessions for people who like nox; `make` needs nothing installed and does the same."""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"

CONSTRAINTS = "--constraint=constraints.txt"


@nox.session(python=["3.11", "3.12", "3.13", "3.14"], default=False)
def versions(session: nox.Session) -> None:
    """Run the tests on every supported Python."""
    session.install(
        "-e.[postgresql,xrootd,jobqueue,kubernetes,gateway,rucio]", "--group=test", CONSTRAINTS
    )
    session.run("pytest", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests."""
    session.install(
        "-e.[postgresql,xrootd,jobqueue,kubernetes,gateway,rucio]", "--group=test", CONSTRAINTS
    )
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format, types, project layout, spelling, prose."""
    session.install(
        "-e.[postgresql,xrootd,jobqueue,kubernetes,gateway,rucio]", "--group=dev", CONSTRAINTS
    )
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("sp-repo-review", ".")
    session.run("codespell")
    session.run("python", "tools/check_prose.py")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation."""
    session.install("--group=docs", CONSTRAINTS)
    session.run("mkdocs", "build", "--strict")


if __name__ == "__main__":
    nox.main()
