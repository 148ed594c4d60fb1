"""Limits on the text of a query, so that reading one takes little time and memory.

They are far above what people write, and low enough that the worst text within them is read in
about 0.1 s and 64 MiB; ``python -m benchmarks fuzz`` measures that. Things are counted before they
are built.
"""

import re

from servicex_server.errors import QueryError

MAX_WORDS = 20_000
"""Names, numbers and signs in a query that is JSON or Python; quotation marks do not count."""

MAX_FORMS = 30_000
"""Parentheses, words, numbers and texts in a query that is qastle."""

MAX_COLUMNS = 20_000
"""Columns, aliases and patterns of all trees of a query together."""

MAX_REPEATED = 200_000
"""Characters of texts that a query applies to several trees at once, counted for each tree."""

MAX_DIGITS = 1_000
"""Characters of a number."""

MAX_CONSTANT_BITS = 1024
"""Binary digits of an integer that is computed from constants."""

MAX_LENGTH = 100_000
"""Elements of each list that a constant may ask for, as in ``pad_none(x, 3)``."""

MAX_CHOSEN = 32
"""Elements per combination that a constant may ask for, as in ``combinations(x, 2)``."""

MAX_BYTES = 2 << 30
"""Bytes that the result of one function may take for the events that are computed together."""

MAX_MARKS = 500
"""Accents in a row: Python sorts those of a name, in time that grows with their square."""

_MARKS = re.compile(rf"[^\x00-\x7f\w\s]{{{MAX_MARKS}}}")
_WORD = re.compile(r"\w+|[^\w\s\"]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def check_words(text: str, what: str) -> None:
    """Refuse a text of more than `MAX_WORDS`.

    Parameters
    ----------
    text
        As the user wrote it.
    what
        What to call it in the error.

    Raises
    ------
    QueryError
        The text has too many words; the message names the limit.
    """
    if _MARKS.search(text):
        raise QueryError(
            f"{what} has {MAX_MARKS} characters in a row that are neither letters nor digits"
        )
    if len(text) <= MAX_WORDS:
        return
    for count, _ in enumerate(_WORD.finditer(text), 1):
        if count > MAX_WORDS:
            raise QueryError(
                f"{what} has more than {MAX_WORDS} names, numbers and signs",
                hint="ask for less at once, in several requests",
            )


def check_columns(count: int) -> None:
    """Refuse more than `MAX_COLUMNS`.

    Raises
    ------
    QueryError
        There are too many columns; the message names the limit.
    """
    if count > MAX_COLUMNS:
        raise QueryError(
            f"selection: {count} columns of all trees together, aliases and filters among them, "
            f"are too many; at most {MAX_COLUMNS}",
            hint="ask for less at once, in several requests",
        )


def is_text(value: str) -> bool:
    """Whether a text holds neither a NUL character nor half of a surrogate pair.

    Neither a file nor a database can hold such a text.
    """
    return _UNSTORABLE.search(value) is None
