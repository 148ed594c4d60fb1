"""The query languages that the service offers, and the role that each needs."""

from servicex_server import plugins
from servicex_server.errors import ForbiddenError, RequestError
from servicex_server.languages.contract import Language
from servicex_server.model import Principal
from servicex_server.settings.service import Settings
from servicex_server.text.hints import did_you_mean


class LanguagePolicy:
    """Decides by the settings, and by whether the sandbox for user code works.

    Parameters
    ----------
    settings
        What the operator chose.
    sandbox_problem
        Why the sandbox does not work; empty if it does.
    """

    def __init__(self, settings: Settings, sandbox_problem: str) -> None:
        self._languages = settings.queries.languages
        self._refuses_code = sandbox_problem if settings.sign_in else ""

    def offered(self) -> list[str]:
        """Return the names of the languages that at least one role can use."""
        installed = sorted(plugins.available("languages"))
        named = [name for name in installed if not self._languages or name in self._languages]
        return [name for name in named if not (self._refuses_code and _load(name).runs_code)]

    def language(self, name: str, principal: Principal) -> Language:
        """Return a language for a user.

        Raises
        ------
        RequestError
            The language is not offered; the message says why, and the hint lists those that are.
        ForbiddenError
            The language needs a higher role.
        """
        found = _load(name)
        if self._languages and name not in self._languages:
            raise RequestError(
                f"codegen: {name!r} is not offered here",
                hint=did_you_mean(name, self.offered(), otherwise="offered are"),
            )
        if self._refuses_code and found.runs_code:
            raise RequestError(
                f"codegen: {name!r} runs user code, and the sandbox of this service does not work: "
                f"{self._refuses_code}",
                hint=f"offered are {', '.join(self.offered()) or 'none'}",
            )
        least = self._languages.get(name)
        if least is not None and not principal.role.includes(least):
            raise ForbiddenError(
                f"codegen: {name!r} needs the role {least.value} here, and yours is "
                f"{principal.role.value}",
                hint="an administrator can change your role",
            )
        return found()


def _load(name: str) -> type[Language]:
    found: type[Language] = plugins.load("languages", name, wire_name="codegen")
    return found
