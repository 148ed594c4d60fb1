"""Formatting numbers, times and sizes for people."""

from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_THOUSANDS = ("", "\u202fk", "\u202fM", "\u202fG", "\u202fT", "\u202fP")


def size(number: float) -> str:
    """Return bytes in the unit that fits.

    Examples
    --------
    >>> size(0), size(999), size(1_234_567), size(20_000_000_000)
    ('0 B', '999 B', '1.2 MB', '20 GB')
    """
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004
        number, unit = number / 1000, unit + 1
    digits = 1 if unit and number < 10 else 0  # noqa: PLR2004
    return f"{number:.{digits}f} {_UNITS[unit]}"


def count(number: float) -> str:
    r"""Return a number with thin spaces between its thousands.

    Examples
    --------
    >>> count(1234567)
    '1\u202f234\u202f567'
    """
    return f"{number:,.0f}".replace(",", "\u202f")


def short(number: float) -> str:
    r"""Return a number in the short form of a plot's scale.

    Examples
    --------
    >>> short(0.5), short(950), short(1500), short(20_000_000)
    ('0.5', '950', '1.5\u202fk', '20\u202fM')
    """
    unit = 0
    while number >= 1000 and unit < len(_THOUSANDS) - 1:  # noqa: PLR2004
        number, unit = number / 1000, unit + 1
    return f"{number:g}{_THOUSANDS[unit]}"


def duration(seconds: float) -> str:
    """Return a duration in the two units that fit.

    Examples
    --------
    >>> duration(0.42), duration(59.6), duration(3700), duration(200_000)
    ('0.4 s', '60 s', '1 h 1 min', '2 d 7 h')
    """
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(at: datetime) -> str:
    """Return a time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def events(read: int, kept: int | None) -> str:
    r"""Return the number of events read, and of those kept in the results, if it is known.

    Examples
    --------
    >>> events(2304, 17), events(1, None)
    ('2\u202f304 events read → 17 kept', '1 event read')
    """
    return f"{plural(read, 'event')} read" + ("" if kept is None else f" → {count(kept)} kept")


def plural(number: int, thing: str) -> str:
    r"""Return a number with its noun, in the singular or plural.

    Examples
    --------
    >>> plural(1, "file"), plural(2000, "file")
    ('1 file', '2\u202f000 files')
    """
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"
