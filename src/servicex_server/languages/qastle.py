"""qastle: queries as text in parentheses, read into forms that know their places.

Read here and not by the package qastle, whose parser takes 0.1 ms for a character and keeps no
places; the tests hold both against each other.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from servicex_server.columnar.functions import number
from servicex_server.columnar.sequences import place
from servicex_server.errors import QueryError


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
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?=[\s()]|\Z))
    |(?P<word>[A-Za-z_][A-Za-z_0-9]*|[-+*/%&|^~<>=!]+)""",
    re.VERBOSE | re.DOTALL,
)


def refused(text: str, at: int, why: str, hint: str = "") -> QueryError:
    """Return the error for something in a text that has no meaning."""
    return QueryError(f"selection: {why}, {place(text, at)}", hint=hint)


def read_forms(text: str) -> Form:
    """Read the one expression of a text, however deep it is.

    Raises
    ------
    QueryError
        It is no qastle.
    """
    stack: list[tuple[int, list[Form]]] = []
    result: Form | None = None
    for kind, word, at in _tokens(text):
        if result is not None:
            raise refused(text, at, "there is more after the end of the query")
        if kind == "open":
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
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            kind = "a text has no end" if text[at] in "'\"" else "this is no qastle"
            raise refused(text, at, kind)
        if token.lastgroup != "space":
            yield str(token.lastgroup), token[0], at
        at = token.end()


def _atom(text: str, at: int, kind: str, word: str) -> Form:
    if kind == "word":
        constants: dict[str, bool] = {"True": True, "False": False}
        return Form(at, word=word, value=constants.get(word))
    if kind == "number":
        if not re.fullmatch(r"[+-]?\d{1,300}", word):
            return Form(at, value=float(word))
        return Form(at, value=number(int(word)))
    try:
        value = ast.literal_eval(word)
    except (SyntaxError, ValueError):
        raise refused(text, at, "this text cannot be read") from None
    return Form(at, value=value)
