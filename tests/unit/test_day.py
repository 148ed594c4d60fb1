"""The plots of a day show means of quarters of an hour, with gaps where data are missing."""

from datetime import UTC, datetime, timedelta

from servicex_server.database.service_history import Moment
from servicex_server.web.pages.day_chart import beginning, day

NOW = datetime(2026, 11, 27, 13, 38, 20, tzinfo=UTC)


def seen(minutes: int, **changes: int | None) -> Moment:
    """Return the state of the service so many minutes ago."""
    numbers = {"wanted": 4, "there": 2, "busy": 1, "waiting": 10, "stored": 2000, "free": 9000}
    return Moment(at=NOW - timedelta(minutes=minutes), **numbers | changes)  # type: ignore[arg-type]  # free alone may be None


def test_day_ends_with_the_current_quarter_of_an_hour() -> None:
    """The steps keep their places for a quarter of an hour."""
    began = datetime(2026, 11, 26, 13, 45, tzinfo=UTC)
    assert beginning(NOW) == beginning(NOW.replace(minute=30, second=0)) == began
    assert beginning(NOW.replace(minute=45)) == began + timedelta(minutes=15)


def test_plot_shows_means_and_gaps() -> None:
    """Data an hour apart make two pieces of a line; the top of a plot is the largest value."""
    rows = [seen(90, waiting=30), seen(3, busy=2), seen(2, busy=1), seen(1, there=3, stored=4000)]
    figure = day(rows, beginning(NOW))
    assert figure is not None
    workers, waiting, stored, free = figure.plots
    assert [line.name for line in workers.lines] == ["wanted", "there", "busy"]
    assert [len(line.pieces) for line in workers.lines] == [2, 2, 2]
    assert workers.summary == "Workers: at most 4 wanted, 3 there, 2 busy"
    assert waiting.note == "at most 30, latest 10"
    assert (stored.note, stored.top, stored.middle) == ("latest 4.0 kB", "4.0 kB", "2.0 kB")
    assert free.note == "latest 9.0 kB"
    (row,) = figure.rows  # of the two hours that have all of this
    assert [cell and cell.text for cell in row] == [
        *("13:45", "4.0", "2.2", "1.2", "20", "2.3 kB", "9.0 kB")
    ]


def test_every_sixth_hour_is_marked() -> None:
    """Each mark is at the place of its hour."""
    figure = day([seen(1)], beginning(NOW))
    assert figure is not None
    assert [one.label for one in figure.marks] == ["18:00", "00:00", "06:00", "12:00"]
    assert figure.marks[0].place == f"{100 * 4.25 / 24:.2f}%"


def test_plot_of_an_unknown_quantity_is_omitted() -> None:
    """A bucket has no known free space. Without data, there is no figure."""
    figure = day([seen(1, free=None)], beginning(NOW))
    assert figure is not None
    assert [plot.name for plot in figure.plots] == ["Workers", "Files waiting", "Results stored"]
    assert "Disk free" not in figure.columns
    assert day([], beginning(NOW)) is None
