"""Languages keep the contract: those of the service, and the one of the documentation."""

import base64
import json

from servicex_server.languages.func_adl import FuncAdl
from servicex_server.languages.python_function import PythonFunction
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.testing.language_suite import LanguageSuite
from tests.contract.test_finders import from_page


def encoded(source: str) -> str:
    """Return Python source as clients send it."""
    return base64.b64encode(source.encode()).decode()


class TestUprootRaw(LanguageSuite):
    """Columns by name and expression."""

    language = UprootRaw
    valid = (
        json.dumps([{"treename": "t", "filter_name": ["a", "b*"], "cut": "a > 1"}]),
        json.dumps([{"treename": "t", "expressions": ["sqrt(a)", "b + 1"]}]),
    )
    invalid = ("", "[", json.dumps([{"treename": "t", "cut": "a >"}]), json.dumps([{"tree": "t"}]))


class TestFuncAdl(LanguageSuite):
    """func_adl, as its clients write it."""

    language = FuncAdl
    valid = (
        "(call Select (call EventDataset 'x' 't') (lambda (list e) (attr e 'a')))",
        "(call Select (call EventDataset 'x' 't') (lambda (list e) (call Count (attr e 'jets'))))",
    )
    invalid = ("", "(", "(call Select 1 2)", "(call EventDataset")


class TestPythonFunction(LanguageSuite):
    """Functions of users."""

    language = PythonFunction
    valid = (encoded("def run_query(path):\n    return {'n': [1]}\n"),)
    invalid = ("", "no base64!", encoded("def run_query(:"), encoded("x = 1"))


class TestLanguageOfTheDocumentation(LanguageSuite):
    """The language of the page on plug-ins, unchanged."""

    language = from_page(1)["NameList"]
    valid = ('["pt", "eta"]',)
    invalid = ("[",)
