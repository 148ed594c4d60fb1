"""Texts that are expensive to compile, for each language, by their construct.

Each is a function of a size, so that the tests of limits and the search for slow queries in
`benchmarks/fuzz.py` share one list.
"""

import base64
import json
from collections.abc import Callable

Text = Callable[[int], str]


def _raw(**subquery: object) -> str:
    return json.dumps([{"treename": "t", **subquery}])


def _cut(text: str) -> str:
    return _raw(cut=text)


def _aliases(n: int, text: Callable[[int], str]) -> str:
    return _raw(expressions=[f"a{n - 1}"], aliases={f"a{at}": text(at) for at in range(n)})


def _comparisons(n: int) -> str:
    text = "a"
    for _ in range(min(n, 90)):
        text = f"a<({text})<a"
    return _cut(text)


UPROOT_RAW: dict[str, Text] = {
    "arguments": lambda n: _cut(f"concatenate([{','.join('a' * n)}])"),
    "expressions": lambda n: _raw(expressions=[f"a{at}" for at in range(n)]),
    "sums": lambda n: _raw(expressions=[f"a+{at}" for at in range(n)]),
    "calls": lambda n: _cut(f"sqrt([{','.join(['abs(a)'] * n)}])"),
    "one expression, many times": lambda n: _raw(expressions=["a+1"] * n),
    "aliases in a chain": lambda n: _aliases(n, lambda at: f"a{at - 1}+1" if at else "x"),
    "aliases named twice": lambda n: _aliases(n, lambda at: f"a{at - 1}+a{at - 1}" if at else "x"),
    "parentheses": lambda n: _cut("(" * n + "a" + ")" * n),
    "brackets": lambda n: _cut("[" * n + "a" + "]" * n),
    "signs": lambda n: _cut("-" * n + "a"),
    "nots": lambda n: _cut("not " * n + "a"),
    "powers": lambda n: _cut("**".join("9" * n)),
    "attributes": lambda n: _cut("a" + ".b" * n),
    "subscripts": lambda n: _cut("a" + "[0]" * n),
    "slices": lambda n: _cut(f"a[{':,' * n}]"),
    "ands": lambda n: _cut(" and ".join("a" * n)),
    "comparisons": lambda n: _cut("<".join("a" * n)),
    "comparisons in comparisons": _comparisons,
    "a number": lambda n: _cut("a > " + "9" * n),
    "a number in hexadecimal": lambda n: _cut("a > 0x" + "f" * n),
    "a float": lambda n: _cut("a > " + "1" * n + ".5"),
    "a text": lambda n: _cut(f"a == '{'x' * n}'"),
    "escapes": lambda n: _cut("a == '" + r"\x41" * n + "'"),
    "a name": lambda n: _raw(expressions=["a" * n]),
    "accents": lambda n: _raw(expressions=["a" + "\u0300\u0316" * n]),
    "letters outside ASCII": lambda n: _cut("+".join("é" * n)),
    "lines": lambda n: _cut("(a\n" + "+a\n" * n + ")"),
    "dicts": lambda n: _cut("{'a':" * n + "a" + "}" * n),
    "lambdas": lambda n: _cut("lambda:" * n + "a"),
    "ifs": lambda n: _cut("a if a else " * n + "a"),
    "trees": lambda n: json.dumps([{"treename": [f"t{at}" for at in range(n)]}]),
    "trees of columns": lambda n: json.dumps(
        [
            {
                "treename": [f"t{at}" for at in range(n // 2)],
                "expressions": [f"a{at}" for at in range(n // 2)],
            }
        ]
    ),
    "trees of a long pattern": lambda n: json.dumps(
        [{"treename": [f"t{at}" for at in range(n)], "filter_name": f"{'a' * 9_000}*"}]
    ),
    "subqueries": lambda n: json.dumps([{"treename": f"t{at}"} for at in range(n)]),
    "names": lambda n: _raw(filter_name=[f"a{at}" for at in range(n)]),
    "globs": lambda n: _raw(filter_name=[f"a{at}*" for at in range(n)]),
    "stars": lambda n: _raw(filter_name="*a" * n),
    "brackets of globs": lambda n: _raw(filter_name="[" * n),
    "nested groups": lambda n: _raw(filter_name=f"/{'(' * n}a{')' * n}/"),
    "nested repeats": lambda n: _raw(filter_name=f"/{'(' * n}a{')+' * n}$/"),
    "counted repeats": lambda n: _raw(filter_name=f"/{'(' * 4}a{'){1,1000}' * 4}{n}/"),
    "many words": lambda n: _raw(filter_name="/" + r"\w" * n + "/i"),
    "classes": lambda n: _raw(filter_name="/" + r"[\w\d\s]" * n + "/i"),
    "a long class": lambda n: _raw(filter_name="/[" + "a-z" * n + "]/i"),
    "classes of everything": lambda n: _raw(filter_name="/" + r"[\u0000-\U0010ffff]" * n + "/i"),
    "alternatives": lambda n: _raw(filter_name=f"/{'|'.join(f'a{at}' for at in range(n))}/"),
    "regular expressions": lambda n: json.dumps(
        [{"treename": f"t{at}", "filter_name": r"/\w+\d/"} for at in range(n)]
    ),
    "histograms": lambda n: json.dumps([{"copy_histograms": [f"/h{at}.*/" for at in range(n)]}]),
    "lists": lambda n: "[" * n + "]" * n,
    "objects": lambda n: '{"a":' * n + "1" + "}" * n,
    "small objects": lambda n: "[" + ",".join(["{}"] * n) + "]",
    "keys": lambda n: '[{"treename":"t",' + ",".join(['"cut":"a"'] * n) + "}]",
    "numbers": lambda n: "[" + ",".join("7" * n) + "]",
    "digits": lambda n: "[" + "7" * n + "]",
    "spaces": lambda n: "[" + " " * n + "]",
    "a key that is almost one": lambda n: json.dumps([{"treenam" + "e" * (n % 90): 1}] * (n // 90)),
}
"""Texts of ``uproot-raw``."""

_EVENTS = "(call EventDataset 'f' 't')"
_X = "(attr e 'x')"
_ABS = f"(call abs {_X})"
_LOOP = f"(Select {_X} (lambda (list v) v))"
_NUMPY_ABS = f"(call (attr np 'abs') {_X})"


def _many(text: str, n: int) -> str:
    return " ".join([text] * n)


def _keys(n: int) -> str:
    return " ".join(f"'k{at}'" for at in range(n))


def _almost(n: int) -> str:
    keys = " ".join(f"'{'ab' * 45}{at}'" for at in range(n))
    record = _select(f"(dict (list {keys}) (list {_many('7', n)}))")
    return f"(Select {record} (lambda (list r) (attr r '{'ba' * 47}')))"


def _select(body: str) -> str:
    return f"(Select {_EVENTS} (lambda (list e) {body}))"


def _stages(n: int) -> str:
    text = _select("(dict (list 'a' 'b') (list (attr e 'x') (attr e 'y')))")
    for _ in range(min(n, 70)):
        text = f"(Select {text} (lambda (list r) (dict (list 'a' 'b') (list r r))))"
    return text


def _fields(n: int) -> str:
    keys = _keys(n)
    inner = _select(f"(dict (list {keys}) (list {_many(_X, n)}))")
    uses = " ".join(f"(attr r 'k{at}')" for at in range(n))
    return f"(Select {inner} (lambda (list r) (dict (list {keys}) (list {uses}))))"


def _loops(n: int) -> str:
    text = "(attr e 'x')"
    for at in range(min(n, 70)):
        text = f"(Select (attr e 'y') (lambda (list v{at}) {text}))"
    return _select(text)


FUNC_ADL: dict[str, Text] = {
    "columns": lambda n: _select(f"(list {_many(_X, n)})"),
    "arguments": lambda n: _select(f"(call max {_many(_X, n)})"),
    "functions": lambda n: _select(f"(list {_many(_ABS, n)})"),
    "functions of numpy": lambda n: _select(f"(list {_many(_NUMPY_ABS, n)})"),
    "constants": lambda n: _select(f"(list {' '.join('7' * n)})"),
    "texts": lambda n: _select("(list " + "'' " * n + ")"),
    "escapes": lambda n: _select("(list " + r"'\n' " * n + ")"),
    "a text": lambda n: _select(f"(== (attr e 'x') '{'x' * n}')"),
    "a text of escapes": lambda n: _select(f"(== (attr e 'x') '{chr(92) * 2 * n}')"),
    "a text without end": lambda n: _select(f"(== (attr e 'x') '{'x' * n}"),
    "a number": lambda n: _select("7" * n),
    "a float": lambda n: _select("7." + "7" * n),
    "an exponent": lambda n: _select("7e" + "7" * n),
    "a word": lambda n: _select("a" * n),
    "signs": lambda n: _select("+" * n),
    "parentheses": lambda n: "(" * n + ")" * n,
    "open parentheses": lambda n: "(" * n,
    "minuses": lambda n: _select("(- " * n + "7" + ")" * n),
    "ands": lambda n: _select(f"(and {_many(_X, n)})"),
    "ands in ands": lambda n: _select("(and 1 " * n + "1" + ")" * n),
    "lambdas": lambda n: _select(f"(list {_many(_LOOP, n)})"),
    "names of a lambda": lambda n: f"(Select {_EVENTS} (lambda (list {'e ' * n}) e))",
    "attributes": lambda n: _select("(attr " * n + "e" + " 'x')" * n),
    "subscripts": lambda n: _select("(subscript " * n + "e" + " 'x')" * n),
    "records in records": lambda n: _select("(list " * n + "(attr e 'x')" + ")" * n),
    "keys": lambda n: _select(f"(dict (list {_keys(n)}) (list {_many('7', n)}))"),
    "stages that double": _stages,
    "fields of stages": _fields,
    "loops in loops": _loops,
    "fields of a record": lambda n: _select(
        "(list "
        + " ".join(f"(attr (dict (list 'a{at}') (list (attr e 'x'))) 'a{at}')" for at in range(n))
        + ")"
    ),
    "a name that is almost one": lambda n: _almost(n // 10),
    "spaces": lambda n: " " * n + _select("(attr e 'x')"),
    "digits of all scripts": lambda n: _select("\u0667" * n),
}
"""Texts of ``uproot``, which are qastle."""


def _source(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _function(body: str) -> str:
    return _source(f"def run_query(f):\n    return 1\n{body}")


def _finally(n: int) -> str:
    text = ""
    for depth in range(min(n, 18)):
        text += f"{' ' * depth}try: a\n{' ' * depth}finally:\n"
    return text + " " * min(n, 18) + "a\n"


def _ifs(depth: int) -> str:
    return "".join(f"{' ' * at}if a:\n" for at in range(depth)) + " " * depth + "0"


PYTHON: dict[str, Text] = {
    "names": lambda n: _function("a,\n" * n),
    "calls": lambda n: _function("a()\n" * n),
    "minuses": lambda n: _function("-a\n" * n),
    "functions": lambda n: _function("def f():0\n" * n),
    "classes": lambda n: _function("class a:0\n" * n),
    "lambdas": lambda n: _function("lambda:0\n" * n),
    "locals and functions": lambda n: _function(
        "def f():\n " + ";".join(f"a{at}=0" for at in range(n)) + "\n " + "lambda:a0;" * n + "\n"
    ),
    "returns and finally": lambda n: _function(
        "def f():\n try:\n" + "  if a: return\n" * n + " finally:\n" + "  a()\n" * n
    ),
    "finally in finally": lambda n: _function(_finally(n)),
    "a long name of a class": lambda n: _function(
        f"class {'a' * n}:\n" + "".join(f" __a{at}\n" for at in range(n))
    ),
    "a long name of a function": lambda n: _function(
        f"def {'a' * n}():\n" + "".join(f" def a{at}():0\n" for at in range(n))
    ),
    "ifs": lambda n: _function("if a:0\n" + "elif a:0\n" * n),
    "ifs in ifs": lambda n: _function(_ifs(int(n**0.5))),
    "parentheses": lambda n: _function("(" * n + ")" * n),
    "lists": lambda n: _function("[" * n + "]" * n),
    "comprehensions": lambda n: _function("[a for a in a]\n" * n),
    "for after for": lambda n: _function("[a" + " for a in a" * n + "]\n"),
    "constants": lambda n: _function("('a'*4096)\n" * n),
    "powers": lambda n: _function("9**9**9**9\n" * n),
    "a product of tuples": lambda n: _function("((((0,)*250,)*250,)*250,)*250\n" * n),
    "a format": lambda n: _function("'%999999999d' % 1\n" * n),
    "f-strings": lambda n: _function("f'{a}{a}{a}'\n" * n),
    "nested f-strings": lambda n: _function("f'{a:{a:{a}}}'\n" * n),
    "a number": lambda n: _function("7" * n),
    "a float": lambda n: _function("7." + "7" * n),
    "a text": lambda n: _function(f"'{'x' * n}'"),
    "accents": lambda n: _function("a" + "\u0300\u0316" * n),
    "comments": lambda n: _function("# a\n" * n),
    "decorators": lambda n: _function("@a\n" * n + "def f():0\n"),
    "withs": lambda n: _function("with a" + ",a" * n + ":0\n"),
    "matches": lambda n: _function("match a:\n" + " case [a,*_]|{'a':a}:0\n" * n),
    "wrong escapes": lambda n: _function(r"'\d'" + "\n" + r"'\d'; " * n),
    "spaces": lambda n: " ".join(_source("def run_query(f): return 1 #" + "a" * n)),
    "names of functions": lambda n: _source(
        "".join(f"def {'run_' * 20}{at}():0\n" for at in range(n))
    ),
}
"""Texts of ``python``, in base64."""

LANGUAGES = {"uproot-raw": UPROOT_RAW, "uproot": FUNC_ADL, "python": PYTHON}
"""By the name of the language."""

PATTERNS = ("(a+)+$", "(a|aa)+$", "(a|b|ab)*c", "(.*)*x", r"(\w+\s?)*!", "(a*)*b", "(a?){30}a{30}")
"""Regular expressions that take exponential time where matching goes back."""

NOT_LINEAR = (
    r"(?=a)",
    r"(?!a)",
    r"(?<=a)",
    r"(?<!a)",
    r"(a)\1",
    r"(?P<x>a)(?P=x)",
    r"(?>a)",
    r"a*+",
)
"""Regular expressions that cannot be matched in linear time."""
