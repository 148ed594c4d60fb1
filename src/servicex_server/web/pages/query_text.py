"""Formatting queries for people, in the language in which they were written."""

import binascii
import json
import re

_TOKEN = re.compile(
    # a string without an end takes all the rest: a search from each quote would take a second
    r"""'(?:[^'\\]|\\.?)*(?:'|\Z)|"(?:[^"\\]|\\.?)*(?:"|\Z)|[()]|[^\s()'"]+""",
    re.DOTALL,
)
_WIDE = 88
_DEEP = 60
_LONG = 20_000


def readable(language: str, selection: str) -> str:
    """Return a query formatted; unchanged if it does not have the form of its language.

    Examples
    --------
    >>> print(readable("uproot-raw", '[{"treename":"events"}]'))
    [
      {
        "treename": "events"
      }
    ]
    >>> readable("python", "ZGVmIHJ1bl9xdWVyeShmKTogLi4u")
    'def run_query(f): ...'
    >>> readable("uproot", "(Select   (call f) (lambda (list e) e))")
    '(Select (call f) (lambda (list e) e))'
    """
    if len(selection) > _LONG:
        return selection
    if language == "python":
        try:
            return binascii.a2b_base64(selection).decode()
        except ValueError:
            return selection
    try:
        return json.dumps(json.loads(selection), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return _parentheses(selection) if selection.lstrip().startswith("(") else selection


def _parentheses(text: str) -> str:
    """Return an S-expression with its parts on separate lines where it is too long for one line."""
    root: list[object] = []
    stack = [root]
    for word in _TOKEN.findall(text):
        if word == "(":
            inner: list[object] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif word == ")":
            stack.pop()
        else:
            stack[-1].append(word)
        if not 0 < len(stack) < _DEEP:
            return text
    return "\n".join(_lines(form, 0) for form in root)


def _lines(form: object, depth: int) -> str:
    flat = _flat(form)
    if not isinstance(form, list) or len(flat) + 2 * depth <= _WIDE:
        return "  " * depth + flat
    head, *rest = form or [""]
    first = "  " * depth + "(" + _flat(head)
    return "\n".join([first, *(_lines(one, depth + 1) for one in rest)]) + ")"


def _flat(form: object) -> str:
    if isinstance(form, list):
        return "(" + " ".join(_flat(one) for one in form) + ")"
    return str(form)
