"""The policy decides which users may use which language, ours or a plug-in."""

from pathlib import Path
from typing import ClassVar

import pytest

from servicex_server import plugins
from servicex_server.columnar.plan import Query
from servicex_server.errors import ForbiddenError, RequestError
from servicex_server.languages.contract import Language, Program
from servicex_server.model import Principal, ResultFormat, Role, SandboxChoice
from servicex_server.requests.language_policy import LanguagePolicy
from servicex_server.settings.service import Settings
from tests.support import plug_in

INSTALLED = sorted(plugins.available("languages"))
USER = Principal("user", Role.USER)
PROBLEM = "there is no bubblewrap"

SHELL = """
from servicex_server.languages.contract import Language, Program

class Shell(Language):
    name = "shell"
    runs_code = True

    def compile(self, selection, result_format):
        return Program(("/bin/sh", "-c", selection))
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a third-party language that runs code; return its name."""
    plug_in(tmp_path / "site", "shell", "Shell", SHELL, group="languages")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return "shell"


def settings(*, sign_in: bool, **changes: object) -> Settings:
    """Return settings with changes to those of queries."""
    return Settings.model_validate({"sign_in": sign_in, "queries": changes})


def runs_code(name: str) -> bool:
    kind: type[Language] = plugins.load("languages", name, wire_name="codegen")
    return kind.runs_code


def test_python_is_the_only_language_that_runs_code() -> None:
    assert {name for name in INSTALLED if runs_code(name)} == {"python"}


@pytest.mark.parametrize("name", [*INSTALLED, "shell"])
@pytest.mark.parametrize("sign_in", [True, False])
@pytest.mark.parametrize("problem", ["", PROBLEM])
def test_code_needs_the_sandbox_if_users_sign_in(
    shell: str, name: str, problem: str, *, sign_in: bool
) -> None:
    policy = LanguagePolicy(settings(sign_in=sign_in), problem)
    if sign_in and problem and (name == shell or runs_code(name)):
        assert name not in policy.offered()
        with pytest.raises(
            RequestError, match=f"codegen: '{name}' runs user code.*sandbox"
        ) as found:
            policy.language(name, Principal("a", Role.ADMINISTRATOR))
        assert found.value.status == 400
        assert PROBLEM in found.value.message
        assert "uproot-raw" in found.value.hint
    else:
        assert name in policy.offered()
        assert policy.language(name, USER).name == name


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("least", list(Role))
def test_language_needs_its_configured_role(name: str, least: Role) -> None:
    policy = LanguagePolicy(settings(sign_in=True, languages={name: least.value}), "")
    assert policy.offered() == [name]
    for role in Role:
        if role.includes(least):
            assert policy.language(name, Principal("a", role)).name == name
        else:
            words = f"codegen: '{name}' needs the role {least.value} here, and yours is {role}"
            with pytest.raises(ForbiddenError, match=words):
                policy.language(name, Principal("a", role))
    for other in set(INSTALLED) - {name}:
        with pytest.raises(RequestError, match=f"codegen: '{other}' is not offered here") as found:
            policy.language(other, Principal("a", Role.ADMINISTRATOR))
        assert name in found.value.hint


def test_role_includes_lower_roles() -> None:
    assert [role.includes(Role.OPERATOR) for role in Role] == [False, True, True]
    assert all(role.includes(role) for role in Role)


class Liar(Language):
    """A language that runs code without declaring it."""

    name: ClassVar[str] = "liar"

    def compile(self, selection: str, result_format: ResultFormat) -> Query | Program:
        """Return a program that the user wrote."""
        del result_format
        return Program(("/bin/sh", "-c", selection))


def test_program_of_a_language_that_declares_no_code_is_refused() -> None:
    with pytest.raises(RequestError, match="without declaring it"):
        Liar().compiled("true", ResultFormat.PARQUET)


@pytest.mark.parametrize("choice", list(SandboxChoice))
def test_workers_must_use_the_sandbox_if_users_sign_in(choice: SandboxChoice) -> None:
    """The rule also holds for requests that were submitted before."""
    assert settings(sign_in=True, sandbox=choice).task_sandbox is SandboxChoice.BUBBLEWRAP
    assert settings(sign_in=False, sandbox=choice).task_sandbox is choice
