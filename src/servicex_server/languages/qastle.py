"""qastle: queries as text in parentheses, read into forms that know their places.

The package qastle is not used, because its parser takes 0.1 ms for a character and does not keep
places. The tests compare both.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from servicex_server.columnar.limits import MAX_DIGITS, MAX_FORMS, is_text
from servicex_server.columnar.loop_nodes import place
from servicex_server.columnar.number_types import number
from servicex_server.errors import QueryError

MAX_OPEN = 1_000
"""Most open parentheses at a place; valid queries have far fewer."""


@dataclass(frozen=True, slots=True)
class Form:
    """One expression of the text: a list in parentheses, or a word, text or number."""

    at: int
    parts: "tuple[Form, ...] | None" = None
    word: str = ""
    value: float | bool | str | None = None

    @property
    def head(self) -> str:
        """The first word of a list."""
        return self.parts[0].word if self.parts else ""


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<open>\()|(?P<close>\))
    |(?P<text>'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")
    |(?P<number>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+(?=[\s()]|\Z))
    |(?P<word>[A-Za-z_][A-Za-z_0-9]*+|[-+*/%&|^~<>=!]++)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
"""It matches at every place, so it never searches; and it does not backtrack in a number."""


_ESCAPED = re.compile(r"[\\\r\n\0]")


def refused(text: str, at: int, why: str, hint: str = "") -> QueryError:
    """Return the error for a place in a text that is not valid."""
    return QueryError(f"selection: {why}, {place(text, at)}", hint=hint)


def read_forms(text: str) -> Form:
    """Read the single expression of a text; its depth does not use the stack.

    Raises
    ------
    QueryError
        The text is not qastle.
    """
    stack: list[tuple[int, list[Form]]] = []
    result: Form | None = None
    for kind, word, at in _tokens(text):
        if result is not None:
            raise refused(text, at, "there is text after the end of the query")
        if kind == "open":
            if len(stack) == MAX_OPEN:
                raise refused(text, at, f"this is nested more than {MAX_OPEN} deep")
            stack.append((at, []))
            continue
        if kind == "close":
            if not stack:
                raise refused(text, at, "a parenthesis is closed that was not opened")
            begun, parts = stack.pop()
            if not parts:
                raise refused(text, begun, "there is nothing between the parentheses")
            form = Form(begun, tuple(parts))
        else:
            form = _atom(text, at, kind, word)
        if stack:
            stack[-1][1].append(form)
        else:
            result = form
    if stack:
        raise refused(text, stack[-1][0], "a parenthesis is not closed")
    if result is None:
        raise QueryError("selection is empty", hint="send a func_adl query as qastle text")
    return result


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield the kind, the text and the place of each token."""
    at = count = 0
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "other":
            break
        at = token.end()
        if token.lastgroup == "space":
            continue
        count += 1
        if count > MAX_FORMS:
            raise refused(
                text,
                token.start(),
                f"there are more than {MAX_FORMS} parentheses, words, numbers and texts",
                "ask for less at once, in several requests",
            )
        yield str(token.lastgroup), token[0], token.start()
    if at < len(text):
        kind = "a text has no end" if text[at] in "'\"" else "this is not qastle"
        raise refused(text, at, kind)


def _atom(text: str, at: int, kind: str, word: str) -> Form:
    if kind == "word":
        constants: dict[str, bool] = {"True": True, "False": False}
        return Form(at, word=word, value=constants.get(word))
    if kind == "number":
        if len(word) > MAX_DIGITS:
            raise refused(text, at, f"a number has more than {MAX_DIGITS} characters")
        if not re.fullmatch(r"[+-]?\d{1,300}", word):
            return Form(at, value=float(word))
        return Form(at, value=number(int(word)))
    try:
        # the fast way first: texts hardly ever contain escapes
        value = ast.literal_eval(word) if _ESCAPED.search(word) else word[1:-1]
    except (SyntaxError, ValueError):
        raise refused(text, at, "this text cannot be read") from None
    if not is_text(value):
        raise refused(text, at, "a text with a NUL character or a lone surrogate")
    return Form(at, value=value)
