"""Play November and December in order, two hours of each day: what monitoring is for.

The model was trained on January to September. Whoever serves it in December meets weather and delays it saw little of; and
the file of the weather ends a day before the year does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tiercel import Client
from tiercel.examples.flights.data import LABEL, break_weather
from tiercel.examples.flights.replay import Arrivals, find_flights, publish, request_of
from tiercel.examples.flights.train import MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tiercel import Project

FIRST_DAY, LAST_DAY = datetime(2013, 11, 1, tzinfo=UTC), datetime(2013, 12, 31, tzinfo=UTC)
#: The hours (UTC) of a day whose departures are asked about: 7 in the morning and 4 in the afternoon in New York.
HOURS = (12, 21)
#: How long before the end a feed is broken on request.
BROKEN_DAYS = 3


@dataclass(frozen=True)
class Day:
    """A day's flights, as far as they were asked about.

    Attributes:
        day: its midnight, UTC.
        n_flights, n_late: asked about, and of these the late ones.
        is_broken: whether no weather came any more.
    """

    day: datetime
    n_flights: int
    n_late: int
    is_broken: bool


@dataclass
class Season:
    """What was played."""

    days: list[Day] = field(default_factory=list)
    n_labels: int = 0

    @property
    def n_flights(self) -> int:
        """Flights asked about, each once."""
        return sum(day.n_flights for day in self.days)


def play(
    project: Project,
    url: str,
    *,
    until: datetime,
    begin: datetime = FIRST_DAY,
    break_feed: bool = False,
    on_day: Callable[[Day], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> Season:
    """Play the days from `begin` to `until`, asking the champion.

    Args:
        project: the flights project, with its models registered.
        url: of the server that serves it.
        until: the last day; its midnight, UTC.
        begin: the first day, likewise.
        break_feed: let the weather end BROKEN_DAYS before the end.
        on_day: called after each day, when all of it was asked.
        progress: called with (stage, days done, days).

    Raises:
        TiercelError: the server did not follow, or refused a request.
    """
    season = Season()
    n_days = (until - begin).days + 1
    flights = departures(project.settings.project_dir, begin, n_days)
    broken_from = begin + timedelta(days=n_days - BROKEN_DAYS)
    with Client(url) as client:
        arrivals = Arrivals(client)
        for i in range(n_days):
            day = begin + timedelta(days=i)
            if break_feed and day == broken_from:
                break_weather(project.settings.project_dir, day)
            labels: list[int] = []
            for hour in HOURS:
                moment = day + timedelta(hours=hour)
                arrivals.send(moment)
                publish(project, url, moment)
                for flight in flights.get(moment, ()):
                    arrivals.expect(flight, client.predict(MODEL, **request_of(flight)).id)
                    labels.append(flight[LABEL])
            is_broken = break_feed and day >= broken_from
            season.days.append(Day(day, len(labels), sum(labels), is_broken))
            on_day(season.days[-1])
            if progress is not None:
                progress("days", i + 1, n_days)
        arrivals.send(begin + timedelta(days=n_days))
        season.n_labels = arrivals.n_sent
    return season


def ask_again(project_dir: Path, url: str, day: datetime) -> None:
    """Ask about a day's flights once more, on the base that is live."""
    flights = departures(project_dir, day, 1)
    with Client(url) as client:
        for hour in HOURS:
            for flight in flights[day + timedelta(hours=hour)]:
                client.predict(MODEL, **request_of(flight))


def departures(project_dir: Path, begin: datetime, n_days: int) -> dict[datetime, list[dict[str, Any]]]:
    """The flights of `n_days` days by the hour they are to leave in, for HOURS of each."""
    found: dict[datetime, list[dict[str, Any]]] = {}
    for flight in find_flights(project_dir, "season", begin, begin + timedelta(days=n_days)):
        hour = flight["event_timestamp"].replace(minute=0)
        if hour.hour in HOURS:
            found.setdefault(hour, []).append(flight)
    return found
