"""Predictions with their labels: what a label means for a version, which are of no use and why, and how it is counted."""

from __future__ import annotations

import numpy as np
import pytest
from tests.monitor.recorders import PREFIX, SCHEMA, key_bytes, make_recorder

from tiercel.monitor.labels import LabelStore
from tiercel.monitor.outcomes import label_report, open_outcomes, refresh
from tiercel.settings import MonitorSettings
from tiercel.types import Signature, Task

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US
SETTINGS = MonitorSettings(retention_days=36_500)
SIGNATURES = {
    "words": Signature(("a",), Task.BINARY, ("no", "yes")),
    "digits": Signature(("a",), Task.BINARY, ("0", "1")),
    "odd": Signature(("a",), Task.MULTICLASS, ("3", "7", "9")),
    "kinds": Signature(("a",), Task.MULTICLASS, ("x", "y", "z")),
    "amount": Signature(("a",), Task.REGRESSION, ()),
}


def answer(state_dir, model, numbers, *, n_rows=1, flags=0, at_us=NOW_US, version=1):
    recorder = make_recorder(state_dir)
    signature = SIGNATURES[model]
    plan = recorder.for_plan(model, version, signature, SCHEMA)
    for number in numbers:
        plan.add(
            np.zeros((n_rows, 1), np.float32), np.full((n_rows, signature.n_outputs), 0.5), number=number, received_us=at_us,
            flags=flags, keys=key_bytes(*[number, "x"] * n_rows),
        )  # fmt: skip
    recorder.close()


def tell(state_dir, events, now_us=NOW_US):
    store = LabelStore(state_dir)
    checked = store.append(events, now_us)
    store.close()
    refresh(state_dir, SETTINGS)
    return checked


def outcomes(state_dir, columns="label, label_problem"):
    with open_outcomes(state_dir, SETTINGS) as connection:
        return connection.execute(f'SELECT {columns} FROM outcomes ORDER BY id, "row", is_shadow').fetchall()


@pytest.mark.parametrize(
    ("model", "label", "expected", "problem"),
    [
        ("words", "yes", 1.0, None),
        ("words", "no", 0.0, None),
        ("words", 1, 1.0, None),
        ("words", True, 1.0, None),
        ("words", "maybe", None, "unknown_class"),
        ("words", 2, None, "out_of_range"),
        ("words", 0.5, None, "out_of_range"),
        ("words", -1, None, "out_of_range"),
        ("words", 1e300, None, "out_of_range"),
        ("digits", 1, 1.0, None),
        ("digits", "1", 1.0, None),
        ("digits", "1.0", None, "unknown_class"),
        ("digits", 2, None, "out_of_range"),
        ("odd", 7, 1.0, None),
        ("odd", "9", 2.0, None),
        ("odd", 1, None, "out_of_range"),
        ("kinds", 2, 2.0, None),
        ("kinds", "z", 2.0, None),
        ("kinds", 3, None, "out_of_range"),
        ("amount", -12.5, -12.5, None),
        ("amount", "7.5", 7.5, None),
        ("amount", "much", None, "unknown_class"),
    ],
)
def test_a_label_is_what_it_means_for_the_version(tmp_path, model, label, expected, problem):
    """Names of classes, numbers that are names, and places become the class' place; what fits none is said to be no label."""
    answer(tmp_path, model, [1])
    tell(tmp_path, [{"id": f"{PREFIX}1", "label": label}])
    assert outcomes(tmp_path) == [(expected, problem)]


def test_rows_of_one_request_have_labels_of_their_own(tmp_path):
    """Each row has the label that names it; one that names none is for nobody where there are several."""
    answer(tmp_path, "words", [1], n_rows=3)
    answer(tmp_path, "words", [2])
    tell(tmp_path, [{"id": f"{PREFIX}1", "row": 2, "label": 1, "value": 4}, {"id": f"{PREFIX}1", "label": 1, "value": 4}, {"id": f"{PREFIX}2", "label": 0}])  # fmt: skip
    expected = [(0, None, None, "row_missing"), (1, None, None, None), (2, 1.0, 4.0, None), (0, 0.0, None, None)]
    assert outcomes(tmp_path, '"row", label, value, label_problem') == expected
    tell(tmp_path, [{"id": f"{PREFIX}1", "row": 0, "label": 0}])
    assert outcomes(tmp_path)[0] == (0.0, None)


def test_a_shadow_has_the_label_too(tmp_path):
    """Both who answered and who was tried out beside are judged by the label; rows stay apart."""
    answer(tmp_path, "words", [1])
    answer(tmp_path, "words", [1], flags=16, version=2)
    tell(tmp_path, [{"id": f"{PREFIX}1", "label": 1}])
    assert outcomes(tmp_path, "version, is_shadow, label") == [(1, False, 1.0), (2, True, 1.0)]


def test_every_prediction_is_in_outcomes_once(tmp_path):
    """Labels, repeated, corrected or of unknown ids, add no row and take none away."""
    answer(tmp_path, "words", range(100))
    for label in (0, 1, 1):
        tell(tmp_path, [{"id": f"{PREFIX}{number:x}", "label": label} for number in range(50, 150)])
    rows = outcomes(tmp_path, "id, label")
    assert len(rows) == len(set(rows)) == 100
    assert sum(label == 1 for _, label in rows) == 50


def test_a_label_may_come_before_its_prediction_is_converted(tmp_path):
    """It waits, counted as of no prediction, until there is one."""
    tell(tmp_path, [{"id": f"{PREFIX}1", "label": 1}])
    assert label_report(tmp_path, SETTINGS).unknown == 1
    answer(tmp_path, "words", [1])
    refresh(tmp_path, SETTINGS)
    assert outcomes(tmp_path) == [(1.0, None)]
    assert label_report(tmp_path, SETTINGS).unknown == 0


def test_the_report_adds_up(tmp_path):
    """Coverage, delay, and every kind of useless, late, early and unknown label are counted per version; shadows are not."""
    day_us = DAY_US
    answer(tmp_path, "words", range(1, 9))
    answer(tmp_path, "words", [9], n_rows=2)
    answer(tmp_path, "words", [1], flags=16, version=2)
    answer(tmp_path, "amount", [20], at_us=NOW_US - 500 * day_us)
    events = [
        {"id": f"{PREFIX}1", "label": 1, "time": NOW_US + 10_000_000},
        {"id": f"{PREFIX}2", "label": 0, "time": NOW_US + 20_000_000},
        {"id": f"{PREFIX}3", "label": 5},
        {"id": f"{PREFIX}4", "label": "perhaps"},
        {"id": f"{PREFIX}5", "label": 1, "time": NOW_US - day_us},
        {"id": f"{PREFIX}9", "label": 1},
        {"id": f"{PREFIX}14", "label": 2.5},
        {"id": f"{PREFIX}ff", "label": 1},
        {"id": f"{PREFIX}1", "label": 1, "time": NOW_US + 90_000_000},
        {"id": "nonsense", "label": 1},
    ]
    tell(tmp_path, events)
    report = label_report(tmp_path, SETTINGS)
    amount, words = report.versions
    assert (words.model, words.version, words.rows, words.labelled) == ("words", 1, 10, 3)
    assert words.coverage == 0.3
    assert (words.out_of_range, words.unknown_class, words.row_missing, words.late, words.early) == (1, 1, 1, 0, 1)
    assert words.delay_p50_s == 10.0
    assert (amount.rows, amount.labelled, amount.late) == (1, 1, 1)
    assert (report.labels, report.unknown) == (8, 1)
    totals = report.label_totals
    assert (totals.events, totals.first, totals.duplicates) == (9, 8, 1)
    assert totals.refused == {"invalid_id": 1}
    assert report.to_json()["versions"][1]["coverage"] == 0.3
    assert report.table_totals.rows == 12


def test_only_the_asked_model_is_joined(tmp_path):
    """A connection to one model has no rows of another."""
    answer(tmp_path, "words", [1])
    answer(tmp_path, "amount", [2])
    tell(tmp_path, [{"id": f"{PREFIX}2", "label": 3}])
    with open_outcomes(tmp_path, SETTINGS, model="amount") as connection:
        assert connection.execute("SELECT model, label FROM outcomes").fetchall() == [("amount", 3.0)]


def test_a_value_alone_is_no_problem(tmp_path):
    """What an outcome was worth may come without a label, and does not count as one."""
    answer(tmp_path, "words", [1])
    tell(tmp_path, [{"id": f"{PREFIX}1", "value": 5}])
    assert outcomes(tmp_path, "label, value, label_problem") == [(None, 5.0, None)]
    assert label_report(tmp_path, SETTINGS).versions[0].labelled == 0


def test_without_its_ledger_a_label_is_its_number(tmp_path):
    """Of a version that the ledger no longer knows, numbers are taken as they are."""
    answer(tmp_path, "words", [1, 2])
    tell(tmp_path, [{"id": f"{PREFIX}1", "label": 3}, {"id": f"{PREFIX}2", "label": "yes"}])
    (tmp_path / "predictions" / "_ledger.json").unlink()
    assert outcomes(tmp_path) == [(3.0, None), (None, "unknown_class")]
