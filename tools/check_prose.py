"""Check the prose of the documentation against the rules of CONTRIBUTING.md, section "Voice".

Reads all pages of `docs`, the pages at the top of the repository, and the change notes. Code blocks
and code spans are not checked; conflict markers of Git are found everywhere. Prints the file, the
line and the replacement for each fault; the exit code is 1 if there is any.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

PATTERNS = ("docs/**/*.md", "README.md", "CONTRIBUTING.md", "SECURITY.md", "changes/*.md")

MASK = "\N{FULL BLOCK}"
"""Replaces each character of code, so that positions stay and no rule matches."""

_STATE = r"(?:is|are|was|were|be|been|become|becomes|stays|not|state)"


@dataclass(frozen=True, slots=True)
class Rule:
    """A phrase that the documentation does not use, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


def _rule(pattern: str, instead: str) -> Rule:
    return Rule(re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE), instead)


RULES = (
    _rule(r"\bis none of\b", 'write "is not": state the fact with its subject'),
    _rule(r"\b(?:is|are) told\b", "name the actor and the message: the server answers, logs, …"),
    _rule(r"\bheld against\b", 'write "dry-run", "compared with" or "checked against"'),
    _rule(r"\bof somebody\b", 'write "of a user", or name the role'),
    _rule(r"\bdoors?\b", 'write "storage endpoint"'),
    _rule(rf"\b{_STATE} well\b(?!-| as\b)", 'the state of an endpoint is "healthy"'),
    _rule(rf"\b{_STATE} weak\b", 'the state of an endpoint is "degraded"'),
    _rule(r"\bshut\b(?!(?: |-)?downs?\b)", 'the circuit breaker of an endpoint is "open"'),
    _rule(r"\bin mind\b", 'write "caches", "stores" or "remembers"'),
    _rule(r"\bwritten down by\b", 'name the actor: "the service stores"'),
)

_FREE_RELATIVE = re.compile(r"\b(Who|What)\s")
_CONFLICT = re.compile(r"^(?:<{7}|>{7})(?= )", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s)*_\"]|$)|\n\s*\n|\|")
_MASKED = re.compile(
    r"^(?P<fence>[ \t]*(?:`{3,}|~{3,}))[^\n]*\n.*?(?:^(?P=fence)[`~]*[ \t]*$|\Z)"  # code block
    r"|<!--.*?-->"  # comment
    r"|(?P<span>`+)(?!`).*?(?<!`)(?P=span)(?!`)"  # code span
    r"|(?<=\])\([^)\s]*\)"  # target of a link
    r"|^#+[ \t][^\n]*$"  # heading: a phrase, not a sentence
    r"|^\|[^\n]*\n(?=\|[ \t:|-]+$)",  # header of a table: the same
    re.MULTILINE | re.DOTALL,
)


def masked(text: str) -> str:
    """Return a page in which everything but its prose is masked; positions and lines stay."""
    return _MASKED.sub(lambda found: re.sub(r"[^\n]", MASK, found[0]), text)


def faults(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield for each forbidden phrase its line, the phrase, and what to write instead."""
    prose = masked(text)
    found = [
        (hit.start(), " ".join(hit[0].split()), rule.instead)
        for rule in RULES
        for hit in rule.pattern.finditer(prose)
    ]
    found += [
        (hit.start(), hit[0], "resolve the merge conflict") for hit in _CONFLICT.finditer(text)
    ]
    for hit in _FREE_RELATIVE.finditer(prose):
        end = _SENTENCE_END.search(prose, hit.end())
        if end is None or end[0] != "?":
            instead = f'begin with the actor: "A user who", "The data that", not "{hit[1]}"'
            found.append((hit.start(1), hit[1], instead))
    for start, phrase, instead in sorted(found):
        yield prose.count("\n", 0, start) + 1, phrase, instead


def pages(root: Path) -> list[Path]:
    """Return the pages of the project that are checked."""
    return sorted({path for pattern in PATTERNS for path in root.glob(pattern)})


def main(paths: Iterable[Path]) -> int:
    """Check pages; print every fault, and return the exit code."""
    count = 0
    for path in paths:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, phrase, instead in faults(path.read_text(encoding="utf-8")):
            print(f"{shown}:{line}: {phrase!r}: {instead}")
            count += 1
    if count:
        print(f"{count} phrases do not follow the section Voice of CONTRIBUTING.md")
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]] or pages(ROOT)))
