r"""Globs and regular expressions of users, matched by RE2 in time linear in the text.

Python's `re` backtracks: a short pattern such as ``(a+)+$`` can take hours. RE2 never does. A
pattern is written in Python's syntax and translated here, so that it keeps its meaning; RE2 alone
compiles it. Look-around, back-references, atomic groups and possessive quantifiers have no linear
equivalent and are rejected.

One difference remains, for names outside ASCII: ``\b`` and ``\B``, and ``\W`` within brackets,
classify characters by ASCII.
"""

import re
import sys
import unicodedata

import re2

MAX_PATTERN = 10_000
"""Characters of one pattern."""

MAX_WILD = 1_000
"""Globs and regular expressions in one list of patterns."""

MAX_TOTAL = 100_000
"""Characters of all globs and regular expressions in one list, after the translation."""

MAX_CLASSES = 100
"""Uses of ``\\d`` and ``\\w`` in one list: each stands for hundreds of ranges of characters."""

MAX_MEMORY = 4 << 20
"""Bytes that RE2 may use for one list of patterns, for the program and for matching together."""

_ANY = r"\x{0}-\x{10ffff}"
_SPACE = (
    r"\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
_NO_SPACE = (
    r"\x00-\x08\x0e-\x1b\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}"
    r"\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff}"
)
_IN_BRACKETS = {
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "w": r"\p{L}\p{N}_",
    "W": r"\W",
    "s": _SPACE,
    "S": _NO_SPACE,
}
"""Python's classes of characters, as parts of a class of RE2's."""

_CLASSES = {name: f"[{inner}]" for name, inner in _IN_BRACKETS.items()} | {"W": r"[^\p{L}\p{N}_]"}
_ANCHORS = {"A": r"\A", "Z": r"\z", "b": r"\b", "B": r"\B"}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_REPEAT = re.compile(r"\{(?:(\d+)|(\d*),(\d*))\}")
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_IGNORED = re.compile(r"[ \t\n\r\f\v]+|#[^\n]*")
"""White space and comments of a verbose regular expression."""

_NAMED = re.compile(r"\(\?P<[^\W\d]\w*>")
_NOT_LINEAR = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "an atomic group",
    "(?(": "a condition on a group",
    "(?P=": "a back-reference",
}


class PatternError(ValueError):
    """A pattern is invalid; the message says why."""


class NotLinearError(PatternError):
    """A pattern cannot be matched in linear time, or not within `MAX_MEMORY`."""


class Sources:
    """Translated globs and regular expressions, in RE2's syntax and within the limits.

    One instance may collect those of several `Patterns`, so that the limits apply to all together.
    """

    def __init__(self) -> None:
        self._characters = self._classes = 0
        self._all: list[str] = []

    def add(self, source: str) -> None:
        """Add a result of `glob` or `regex`.

        Raises
        ------
        PatternError
            The patterns are too many or too large; the message names the limit.
        """
        self._all.append(source)
        self._characters += len(source)
        self._classes += source.count("{L}") + source.count("{Nd}")
        if len(self._all) > MAX_WILD:
            raise PatternError(f"there are more than {MAX_WILD} globs and regular expressions")
        if self._characters > MAX_TOTAL:
            raise PatternError(f"all patterns together have more than {MAX_TOTAL} characters")
        if self._classes > MAX_CLASSES:
            raise PatternError(f"\\d and \\w are used more than {MAX_CLASSES} times")

    def joined(self) -> str:
        """Return one regular expression that matches what any of them matches."""
        return "|".join(self._all)


class Patterns:
    """A compiled list of globs and regular expressions; a text has to match one of them.

    Parameters
    ----------
    sources
        The translated patterns.

    Raises
    ------
    PatternError
        RE2 cannot read the patterns, or cannot match them within `MAX_MEMORY`.

    Examples
    --------
    >>> sources = Sources()
    >>> sources.add(glob("lep_*"))
    >>> sources.add(regex("JET_(pt|eta)", "i"))
    >>> some = Patterns(sources)
    >>> some.match("lep_pt"), some.match("jet_pt"), some.match("met")
    (True, True, False)
    """

    def __init__(self, sources: Sources) -> None:
        joined = sources.joined()
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        options.log_errors = False
        options.never_capture = True
        try:
            self._compiled = re2.compile(joined, options) if joined else None
        except re2.error as error:
            raise _explained(error) from None
        finally:
            re2.purge()  # its cache would keep 128 patterns

    def match(self, text: str) -> bool:
        """Whether any of the patterns matches."""
        if self._compiled is None:
            return False
        # bytes of a file that are not UTF-8 are lone surrogates here
        return self._compiled.search(text.encode(errors="replace")) is not None


def is_glob(pattern: str) -> bool:
    """Whether a pattern contains wildcards."""
    return any(mark in pattern for mark in "*?[")


def glob(pattern: str) -> str:
    """Translate a shell pattern, with the meaning of `fnmatch.fnmatchcase`.

    Raises
    ------
    PatternError
        The pattern is too long.
    """
    _check_length(pattern)
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "*":
            if parts[-1:] != [".*"]:
                parts.append(".*")
        elif letter == "?":
            parts.append(".")
        elif letter == "[":
            piece, at = _glob_class(pattern, at)
            parts.append(piece)
        else:
            parts.append(_literal(letter))
    return rf"(?s:\A{''.join(parts)}\z)"


def _glob_class(pattern: str, at: int) -> tuple[str, int]:
    """Translate what follows an opening bracket; return the position after it too."""
    negated = pattern.startswith("!", at)
    end = pattern.find("]", at + 1 + negated)
    if end < 0:
        return _literal("["), at
    members, here = [], at + negated
    while here < end:
        first = pattern[here]
        if pattern.startswith("-", here + 1) and here + 2 < end:
            last = pattern[here + 2]
            if first <= last:
                members.append(f"{_literal(first)}-{_literal(last)}")
            here += 3
        else:
            members.append(_literal(first))
            here += 1
    if not members:  # only ranges that end before they begin
        members, negated = [_ANY], not negated
    return f"[{'^' if negated else ''}{''.join(members)}]", end + 1


def regex(pattern: str, flags: str = "") -> str:
    """Translate a regular expression of Python, anchored at the start of the text as in `re.match`.

    Parameters
    ----------
    pattern
        The regular expression.
    flags
        Any of the letters ``imsux``, with the meaning of Python's inline flags.

    Raises
    ------
    PatternError
        The pattern is not a regular expression, or cannot be matched in linear time.
    """
    _check_length(pattern)
    if "L" in flags:
        raise PatternError("the flag L works on bytes only, in Python too; leave it out")
    inline = "".join(flag for flag in "ims" if flag in flags)
    return rf"(?{inline}:\A(?:{_Translation(pattern, verbose='x' in flags).run()}))"


class _Translation:
    """The translation of one regular expression to RE2's syntax, without capturing groups."""

    def __init__(self, pattern: str, *, verbose: bool = False) -> None:
        self._pattern = pattern
        self._at = 0
        self._open = 0
        self._verbose = verbose

    def run(self) -> str:
        parts: list[str] = []
        while self._at < len(self._pattern):
            parts.append(self._next())
        if self._open:
            raise PatternError("a parenthesis is not closed")
        return "".join(parts)

    def _next(self) -> str:
        letter = self._pattern[self._at]
        if self._verbose and (ignored := _IGNORED.match(self._pattern, self._at)):
            self._at = ignored.end()
            return ""
        match letter:
            case "\\":
                return self._escape()
            case "[":
                return self._class()
            case "(":
                return self._group()
            case ")":
                self._open -= 1
                if self._open < 0:
                    raise PatternError("a parenthesis is closed that was not opened")
            case "*" | "+" | "?":
                return self._quantifier(letter, 1)
            case "{":
                return self._repeat()
        self._at += 1
        return letter if letter in ".^$|)" else _literal(letter)

    def _quantifier(self, translated: str, length: int) -> str:
        self._at += length
        after = self._pattern[self._at : self._at + 1]
        if after == "+":
            raise NotLinearError(f"{translated}+ is a possessive quantifier, {_WHY}")
        if after == "?":
            self._at += 1
            return f"{translated}?"
        return translated

    def _repeat(self) -> str:
        found = _REPEAT.match(self._pattern, self._at)
        if found is None:
            self._at += 1
            return _literal("{")
        exactly, least, most = found.groups()
        counts = exactly or f"{least or 0},{most}"
        return self._quantifier(f"{{{counts}}}", len(found[0]))

    def _group(self) -> str:
        pattern, at = self._pattern, self._at
        for mark, what in _NOT_LINEAR.items():
            if pattern.startswith(mark, at):
                raise NotLinearError(f"{mark} begins {what}, {_WHY}")
        if pattern.startswith("(?#", at):
            end = pattern.find(")", at)
            if end < 0:
                raise PatternError("a comment is not closed")
            self._at = end + 1
            return ""
        if not pattern.startswith("(?", at):
            self._at += 1
            self._open += 1
            return "(?:"
        if named := _NAMED.match(pattern, at):
            self._at = named.end()
            self._open += 1
            return "(?:"
        return self._flags()

    def _flags(self) -> str:
        found = _FLAGS.match(self._pattern, self._at)
        if found is None:
            raise PatternError(f"{self._pattern[self._at : self._at + 4]} does not begin a group")
        on, off, end = found[1].replace("u", ""), found[2] or "", found[3]
        if end == ")" and not self._at and not off:
            self._verbose |= "x" in on
            on = on.replace("x", "")
        if wrong := set(on + off) - set("ims"):
            raise PatternError(f"the flag {min(wrong)} is not supported; the flags are i, m, s")
        if end == ")":
            if self._at or off:
                raise PatternError("flags for the whole pattern have to be at its beginning")
            self._at = found.end()
            return f"(?{on})" if on else ""
        self._at = found.end()
        self._open += 1
        return f"(?{on}{f'-{off}' if off else ''}:"

    def _escape(self) -> str:
        letter = self._pattern[self._at + 1 : self._at + 2]
        known = _CLASSES | _ANCHORS
        if letter in known:
            self._at += 2
            return known[letter]
        return _literal(self._character())

    def _character(self) -> str:
        """Read an escaped character, within brackets or outside."""
        letter = self._pattern[self._at + 1 : self._at + 2]
        rest = self._pattern[self._at + 2 :][:100]
        if not letter:
            raise PatternError("the pattern ends with a backslash")
        if letter in _CONTROLS:
            self._at += 2
            return _CONTROLS[letter]
        if letter in _HEX_DIGITS:
            return self._numbered(rest[: _HEX_DIGITS[letter]], _HEX_DIGITS[letter])
        if letter == "N" and (name := re.match(r"\{([^}]+)\}", rest)):
            try:
                found = unicodedata.lookup(name[1])
            except KeyError:
                raise PatternError(f"there is no character {name[1]}") from None
            self._at += 2 + len(name[0])
            return found
        if letter.isdecimal():
            octal = re.match(r"0[0-7]{0,2}|[0-3][0-7]{2}", letter + rest)
            if octal is None:
                raise NotLinearError(f"\\{letter} is a back-reference, {_WHY}")
            self._at += 1 + len(octal[0])
            return chr(int(octal[0], 8))
        if letter.isascii() and letter.isalpha():
            raise PatternError(f"\\{letter} has no meaning")
        self._at += 2
        return letter

    def _numbered(self, digits: str, count: int) -> str:
        if not re.fullmatch(f"[0-9a-fA-F]{{{count}}}", digits):
            raise PatternError(f"\\{self._pattern[self._at + 1]} needs {count} hexadecimal digits")
        number = int(digits, 16)
        if number > sys.maxunicode:
            raise PatternError(f"there is no character of number {digits}")
        self._at += 2 + count
        return chr(number)

    def _class(self) -> str:
        self._at += 1
        negated = self._pattern.startswith("^", self._at)
        self._at += negated
        begun, members = self._at, []
        while not (self._at > begun and self._pattern.startswith("]", self._at)):
            members.append(self._member())
        self._at += 1
        return f"[{'^' if negated else ''}{''.join(members)}]"

    def _member(self) -> str:
        first, is_class = self._one()
        if not self._pattern.startswith("-", self._at) or self._pattern.startswith(
            "]", self._at + 1
        ):
            return first if is_class else _literal(first)
        self._at += 1
        last, is_also = self._one()
        if is_class or is_also or last < first:
            raise PatternError("a range within brackets is wrong")
        return f"{_literal(first)}-{_literal(last)}"

    def _one(self) -> tuple[str, bool]:
        """Read a character or a class within brackets; return it, and whether it is a class."""
        if self._at >= len(self._pattern):
            raise PatternError("a bracket is not closed")
        letter = self._pattern[self._at]
        if letter != "\\":
            self._at += 1
            return letter, False
        name = self._pattern[self._at + 1 : self._at + 2]
        if name in _IN_BRACKETS:
            self._at += 2
            return _IN_BRACKETS[name], True
        if name == "b":
            self._at += 2
            return "\b", False
        return self._character(), False


_WHY = "which cannot be matched in linear time"


def _check_length(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"{len(pattern)} characters are too many; at most {MAX_PATTERN}")


def _literal(letter: str) -> str:
    """Escape a character so that RE2 reads it literally, within brackets and outside."""
    if "\ud800" <= letter <= "\udfff":
        raise PatternError("a lone surrogate is not a character")
    return (
        letter
        if letter.isascii() and (letter.isalnum() or letter == "_")
        else f"\\x{{{ord(letter):x}}}"
    )


def _explained(error: Exception) -> PatternError:
    text = error.args[0] if error.args else ""
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    if "too large" in said:
        return NotLinearError(f"matching would need more than {MAX_MEMORY >> 20} MiB of memory")
    return PatternError(said[:200])
