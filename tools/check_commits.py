"""Check the subjects of commits: imperative, at most 72 characters, upper case, no full stop.

Without arguments, checks the commits since `origin/main`, or the last one if that branch does not
exist. A range such as `main..HEAD` chooses others. With `--message-file`, checks one message before
it is committed, as a `commit-msg` hook does. Merge commits are not checked. Prints each subject
with its fault; the exit code is 1 if there is any, and 2 if the range does not exist.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MOST = 72
"""Characters of a subject."""

BASE = "origin/main"

IMPERATIVES = frozenset(
    """
    Access Address Assess Bias Bring Bypass Canvas Compress Cross Discuss Dismiss Embed Exceed Feed
    Focus Guess Harness Miss Need Pass Ping Press Proceed Process Progress Seed Shed Shred Speed
    Spring String Stress Succeed Suppress Toss Wing Witness
    """.split()
)
"""Imperatives that end like another form of a verb."""

_OTHER_FORM = re.compile(r"ed$|ing$|s$")
_WRITTEN_BY_GIT = re.compile(r"(Merge|Revert|fixup!|squash!|amend!) ")


def faults(subject: str) -> Iterator[str]:
    """Yield what is wrong with a subject."""
    if not subject:
        yield "the subject is empty"
        return
    if len(subject) > MOST:
        yield f"{len(subject)} characters are too many; at most {MOST}"
    if subject.endswith("."):
        yield "remove the full stop"
    if not subject[0].isupper():
        yield "begin with an upper-case letter"
    first = re.split(r"[\s:,]", subject, maxsplit=1)[0]
    if first.capitalize() not in IMPERATIVES and _OTHER_FORM.search(first):
        yield f'begin with an imperative, such as "Add" or "Fix", not {first!r}'


def message_subject(text: str) -> str:
    """Return the subject in the text of a message file, where Git adds comments."""
    lines = (line.strip() for line in text.splitlines() if not line.startswith("#"))
    return next(filter(None, lines), "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def subjects(chosen: str | None) -> list[tuple[str, str]]:
    """Return the short hash and the subject of each commit in a range, without merges.

    Raises
    ------
    ValueError
        The range does not exist.
    """
    if chosen is None:
        exists = _git("rev-parse", "--verify", "--quiet", f"{BASE}^{{commit}}").returncode == 0
        arguments = [f"{BASE}..HEAD"] if exists else ["--max-count=1", "HEAD"]
    else:
        arguments = [chosen]
    found = _git("log", "--no-merges", "--format=%h %s", *arguments, "--")
    if found.returncode:
        raise ValueError(found.stderr.strip())
    lines = (line.partition(" ") for line in found.stdout.splitlines())
    return [(commit, subject) for commit, _, subject in lines]


def report(found: Iterable[tuple[str, str]]) -> int:
    """Print the faults of subjects; return the exit code."""
    code = 0
    for commit, subject in found:
        for fault in faults(subject):
            print(f"{commit}: {subject!r}: {fault}")
            code = 1
    return code


def main(given: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("range", nargs="?", help=f"default: {BASE}..HEAD, else the last commit")
    parser.add_argument("--message-file", type=Path, help="check this message instead of a range")
    options = parser.parse_args(given)
    if options.message_file is not None:
        subject = message_subject(options.message_file.read_text(encoding="utf-8"))
        if _WRITTEN_BY_GIT.match(subject):
            return 0
        return report([("this commit", subject)])
    try:
        return report(subjects(options.range))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
