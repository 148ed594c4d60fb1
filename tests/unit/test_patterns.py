"""Patterns of users have the meaning that Python gives them; RE2 matches them."""

import re
import warnings
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uproot._util import _regularize_filter_regex_flags

from servicex_server.columnar.plan import matcher
from servicex_server.errors import QueryError
from servicex_server.text.patterns import (
    MAX_CLASSES,
    MAX_PATTERN,
    MAX_WILD,
    NotLinearError,
    PatternError,
    Patterns,
    Sources,
    glob,
    regex,
)
from tests.property.hostile_texts import NOT_LINEAR, PATTERNS

_PIECES = (
    r"a b c . * + ? {2} {,2} {1,} { } ( ) (?: (?i: (?P<x> (?#c) | [ [^ ] - ^ $ \d \D \w \s \S \b "
    r"\Z \A \. \n \x41 \101 \0 A 1 _ \u00e9 \- & : ! \W"
).split(" ")
_WHERE_THEY_DIFFER = re.compile(r"[?*+}]\+|\$.|[*+?{^$bZA|(][*+?{]", re.DOTALL)
"""Possessive quantifiers, and what Python rejects: repeats of what has no width."""

examples = settings(derandomize=True, database=None, deadline=None, max_examples=200)


def fits(source: str, text: str) -> bool:
    """Return whether a translated pattern matches a text."""
    sources = Sources()
    sources.add(source)
    return Patterns(sources).match(text)


@examples
@given(
    pattern=st.text("ab*?[]!-^\\.c", min_size=1, max_size=8),
    text=st.text("abc-[]!^\\.", max_size=5),
)
def test_globs_match_as_with_fnmatch(pattern: str, text: str) -> None:
    """The globs have brackets, ranges, and brackets that are only characters."""
    if re.search(r".-[!-_]", pattern):
        return  # of a range that ends before it begins fnmatch makes a negation
    assert fits(glob(pattern), text) == fnmatchcase(text, pattern)


@examples
@given(
    pieces=st.lists(st.sampled_from(_PIECES), min_size=1, max_size=7),
    text=st.text("abcA1_ -.&:!", max_size=5),
)
def test_regular_expressions_match_as_with_python(pieces: list[str], text: str) -> None:
    """A pattern that Python compiles is compiled here, and matches the same from the start."""
    pattern = "".join(pieces)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = re.compile(pattern)
        except (re.error, OverflowError):
            return
    try:
        found = fits(regex(pattern), text)
    except PatternError:
        assert _WHERE_THEY_DIFFER.search(pattern), pattern
    else:
        assert found == bool(wanted.match(text)), pattern


@examples
@given(
    pieces=st.lists(
        st.sampled_from(("a", "B", " ", "\n", "#c\n", "[ #]", "\\ ", ".", "^", "|", "(?:b)", "+")),
        min_size=1,
        max_size=7,
    ),
    text=st.text("aAbBcC #\n", max_size=5),
    flags=st.sets(st.sampled_from("imsux")),
)
def test_regex_flags_have_the_effect_that_they_have_in_uproot(
    pieces: list[str], text: str, flags: set[str]
) -> None:
    """Any flags may follow the slash, in any order."""
    inner, letters = "".join(pieces), "".join(flags)
    if re.search(r"[|^+(]\s*(#c\n\s*)*\+", inner):
        return  # RE2 takes other repeats
    try:
        wanted = re.compile(inner, _regularize_filter_regex_flags(letters))
    except re.error:
        return
    assert matcher((f"/{inner}/{letters}",))(text) == bool(wanted.match(text)), (inner, letters)


@pytest.mark.parametrize(
    ("pattern", "text", "fitting"),
    [
        ("/jet/", "jet_pt", True),
        ("/jet/", "my_jet_pt", False),
        ("/pt|eta/", "my_eta", False),
        ("/JET/", "jet", False),
        ("/JET/i", "jet_pt", True),
        ("/ J E T # comment/ix", "jet_pt", True),
        ("/(?x) j e t/", "jet_pt", True),
        ("/jet/g", "jet", False),
        (r"/^jet_\d+$/", "jet_12", True),
        (r"/^jet_\w$/", "jet_é", True),
        ("/(?i)JET/", "jet", True),
        ("/a{,2}b/", "aab", True),
        (r"/\N{LATIN SMALL LETTER A}\u0062/", "ab", True),
        ("jet_*", "jet_pt", True),
        ("jet_*", "my_jet_pt", False),
        ("vector<float>", "vector<float>", True),
        ("x[3]", "x[3]", True),
        ("x[3]", "x3", True),
        ("*", "\udcff", True),
    ],
)
def test_list_of_patterns_matches_names_globs_and_regular_expressions(
    pattern: str, text: str, fitting: bool
) -> None:
    """Regular expressions match from the start of a name."""
    assert matcher((pattern,))(text) is fitting
    assert matcher(("something", pattern))(text) is fitting


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_that_backtracks_in_python_is_linear(pattern: str) -> None:
    """Python would take longer than the age of the universe for such a text."""
    for text in ("a" * 20_000 + "!", "ab" * 10_000 + "d", "a " * 10_000):
        assert matcher((f"/^(?:{pattern})#/",))(text) is False


@pytest.mark.parametrize("pattern", NOT_LINEAR)
def test_pattern_that_cannot_be_matched_in_linear_time_is_refused(pattern: str) -> None:
    """It has look-around, a back-reference, an atomic group or a possessive quantifier."""
    with pytest.raises(NotLinearError, match="cannot be matched in linear time"):
        regex(pattern)
    with pytest.raises(QueryError, match=r"is not supported: .*linear time"):
        matcher((f"/{pattern}/",))


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["/(/"], r"/\(/ is not a regular expression: a parenthesis is not closed"),
        (["/[a/"], "a bracket is not closed"),
        ([r"/\y/"], "y has no meaning"),
        (["/a/L"], "the flag L works on bytes only"),
        (["/*a/"], "no argument for repetition operator"),
        (["/a{2000}/"], "invalid repetition size"),
        (["/" + "a" * (MAX_PATTERN + 1) + "/"], f"at most {MAX_PATTERN}"),
        ([f"a{at}*" for at in range(MAX_WILD + 1)], f"more than {MAX_WILD}"),
        ([r"/\w/"] * (MAX_CLASSES + 1), f"more than {MAX_CLASSES} times"),
        ([r"/((\w{30}){30})/"], "more than 4 MiB of memory"),
    ],
)
def test_invalid_or_too_large_pattern_is_refused(patterns: list[str], words: str) -> None:
    """The error shows the pattern or names the limit."""
    with pytest.raises(QueryError, match=words):
        matcher(tuple(patterns))
