"""The installed finders, with the options from the settings."""

import re

from servicex_server import plugins
from servicex_server.errors import DatasetError, StartupError
from servicex_server.finders.contract import Finder
from servicex_server.settings.service import Settings
from servicex_server.text.hints import did_you_mean


def open_finder(scheme: str, settings: Settings) -> Finder:
    """Return the finder of a scheme, with its options from the settings.

    Raises
    ------
    RequestError
        The scheme has no finder.
    StartupError
        An option is invalid; the message names the setting.
    """
    kind: type[Finder] = plugins.load("finders", scheme, wire_name="did")
    options = plugins.validated(
        kind.Options, settings.finders.get(scheme, {}), setting=f"finders.{scheme}"
    )
    finder = kind(options)
    finder.network = settings.network_policy
    finder.credentials = settings.reading.credentials
    return finder


def check_finders(settings: Settings) -> None:
    """Validate the settings of all finders.

    Raises
    ------
    StartupError
        A setting is invalid; the message names it.
    """
    known = plugins.available("finders")
    for scheme in settings.finders:
        if scheme not in known:
            raise StartupError(
                f"there is no setting finders.{scheme}",
                hint=did_you_mean(scheme, sorted(known), otherwise="there are finders for"),
            )
        open_finder(scheme, settings)


_TAIL = re.compile(r"\?((?:files|get)=[^?&]*(?:&(?:files|get)=[^?&]*)*)$")


def split_count(reference: str) -> tuple[str, int | None]:
    """Split ``?files=N`` off a dataset reference; a ``?`` may also be part of a name.

    ``get=all`` and ``get=available`` are accepted and ignored, as in ServiceX.

    Raises
    ------
    DatasetError
        The value of ``files`` is not a number of files.

    Examples
    --------
    >>> split_count("scope:name?files=3")
    ('scope:name', 3)
    >>> split_count("root://host//a?b.root")
    ('root://host//a?b.root', None)
    """
    if not (found := _TAIL.search(reference)):
        return reference, None
    given = dict(part.split("=", 1) for part in found[1].split("&"))
    count = given.get("files", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", count):
        raise DatasetError(
            f"did: files={count[:100]!r} is not a number of files", hint="write ?files=3"
        )
    return reference[: found.start()], int(count) if "files" in given else None
