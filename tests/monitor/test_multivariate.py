"""A report on whole rows: verdict, effect, features with what became of them, and a sentence; and what is wrong with rows."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest
from tests.monitor.samples import HOUR_US, correlated, leaves_of, sample
from tests.monitor.test_row_samples import plan_of

from tiercel.monitor.category_bins import CategoryBins
from tiercel.monitor.feature_drift import Verdict
from tiercel.monitor.multivariate import TESTS, compare_samples, multivariate_report
from tiercel.monitor.reference import category_edges
from tiercel.monitor.training_rows import TrainingRows

NAMES = ("a", "b", "c", "d")
BEGIN_US = 24 * HOUR_US


def compare(window, beside, test="mmd", against="previous", features=NAMES, **kwargs):
    kwargs = {"leaves_of": leaves_of} | kwargs
    return compare_samples("late", 1, features, window, beside, test=test, against=against, **kwargs)


@pytest.mark.parametrize("test", TESTS)
def test_a_correlation_that_turned_is_found_and_told(test):
    """Verdict, effect, p, the two features on top with their correlation now and before, and one sentence that names them."""
    rng = np.random.default_rng(0)
    report = compare(sample(correlated(400, -0.8, rng)), sample(correlated(400, 0.8, rng)), test)
    assert (report.verdict, report.n_rows, report.n_reference) == (Verdict.DRIFT, 400, 400)
    assert report.p_value <= 0.01 == report.level
    if test == "leaves":
        assert 0 < report.effect < report.statistic < 1
    else:
        assert report.effect == (report.statistic - 0.5 if test == "classifier" else report.statistic)
    assert (report.psi is not None) == (test == "leaves")
    assert report.statistic > report.chance_limit
    top = report.features[:2]
    assert {each.name for each in top} == {"a", "b"}
    for each in top:
        assert {each.name, each.partner} == {"a", "b"}
        assert each.correlation < -0.7 < 0.7 < each.reference_correlation
        assert each.change.startswith("correlation with")
    assert " and ".join(each.name for each in top) in report.meaning
    assert report.meaning.count(". ") == 0
    assert any("last-week" in note for note in report.notes)


@pytest.mark.parametrize("test", TESTS)
def test_no_change_is_said_without_features(test):
    """Rows of one population: stable, no feature named, p and n told."""
    rng = np.random.default_rng(1)
    report = compare(sample(correlated(150, 0.5, rng)), sample(correlated(200, 0.5, rng)), test)
    assert (report.verdict, report.features) == (Verdict.STABLE, ())
    assert report.p_value > 0.01
    assert report.meaning.startswith("No difference beyond chance")


def test_a_shift_and_a_gap_are_told_in_words():
    """A feature that moved says its medians, one that went missing its shares."""
    rng = np.random.default_rng(2)
    before, now = correlated(300, 0, rng), correlated(300, 0, rng)
    now[:, 2] += 2
    now[rng.random(300) < 0.4, 3] = np.nan
    report = compare(sample(now), sample(before))
    told = {each.name: each for each in report.features}
    assert {each.name for each in report.features[:2]} == {"c", "d"}
    assert "higher: median" in told["c"].change
    assert (told["c"].median - told["c"].reference_median) == pytest.approx(2, abs=0.4)
    assert "missing in" in told["d"].change
    assert told["d"].missing_share > 0.3 > told["d"].reference_missing_share == 0


def test_a_feature_missing_on_one_side_only_is_drift():
    """A feed that stopped: no value in the window at all, and it is on top."""
    rng = np.random.default_rng(3)
    now = correlated(100, 0, rng)
    now[:, 1] = np.nan
    for test in TESTS:
        report = compare(sample(now), sample(correlated(100, 0, rng)), test)
        assert (report.verdict, report.features[0].name, report.features[0].median) == (Verdict.DRIFT, "b", None)
        json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("test", TESTS)
def test_features_that_tell_nothing_are_left_out_and_named(test):
    """Constant and always missing features do not disturb; infinities are values."""
    rng = np.random.default_rng(4)
    rows = correlated(240, 0, rng)
    rows[:, 1], rows[:, 2] = 5, np.nan
    rows[::7, 3] = np.inf
    masked = [] if test == "leaves" else ["secret"]
    report = compare(sample(rows[:120]), sample(rows[120:]), test, masked=masked)
    assert report.verdict is Verdict.STABLE
    assert "Left out: c (no value in any of these rows)." in report.notes
    assert "Left out: b (the same value in all of these rows)." in report.notes
    assert any("secret" in note and "hash_columns" in note for note in report.notes) == bool(masked)


def test_leaves_need_every_feature():
    """A masked feature leaves nobody knowing where a row ends: no verdict, and the feature is named."""
    rng = np.random.default_rng(4)
    report = compare(sample(correlated(99, 0, rng)), sample(correlated(99, 0, rng)), "leaves", masked=["secret"])
    assert (report.verdict, report.statistic) == (Verdict.NOT_COMPARABLE, None)
    assert "need all features, and secret is masked" in report.meaning
    with pytest.raises(ValueError, match="leaves_of"):
        compare(sample(correlated(99, 0, rng)), sample(correlated(99, 0, rng)), "leaves", leaves_of=None)


def test_rows_of_the_training_set_are_compared_with():
    """Against training: the kept rows stand in for an earlier stretch, and the report says how many of how many."""
    rng = np.random.default_rng(11)
    kept = TrainingRows.draw(correlated(900, 0.8, rng).astype(np.float32), NAMES, most=300).sample()
    report = compare(sample(correlated(300, -0.8, rng)), kept, "leaves", against="training")
    assert (report.verdict, report.n_reference, report.n_reference_available) == (Verdict.DRIFT, 300, 900)
    assert (report.reference_begin_us, report.reference_end_us) == (0, 0)
    assert "Compared with 300 rows drawn from 900 of the training set." in report.notes
    assert "than in training" in report.meaning


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    ("n", "n_beside", "verdict", "words"),
    [
        (0, 100, Verdict.TOO_FEW, "served in the window"),
        (100, 0, Verdict.NOT_COMPARABLE, "served in the period before"),
        (0, 0, Verdict.TOO_FEW, "served in the window"),
        (1, 100, Verdict.TOO_FEW, "1 request in the window and 100"),
        (100, 49, Verdict.TOO_FEW, "100 requests in the window and 49"),
    ],
)
def test_too_little_is_no_verdict(test, n, n_beside, verdict, words):
    """Empty and small sides are said; nothing is tested and every figure is null."""
    rng = np.random.default_rng(5)
    report = compare(sample(correlated(n, 0, rng)), sample(correlated(n_beside, 0, rng)), test)
    assert (report.verdict, report.statistic, report.p_value, report.features) == (verdict, None, None, ())
    assert words in report.meaning
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("test", TESTS)
def test_many_rows_of_few_requests_are_few(test):
    """Ten thousand rows of ten requests are ten: what they share is no drift."""
    rng = np.random.default_rng(6)
    window = sample(correlated(1_000, 0, rng), np.arange(1_000) % 10)
    report = compare(window, sample(correlated(1_000, 0, rng)), test)
    assert report.verdict is Verdict.TOO_FEW
    assert "Rows of one request are taken as one piece" in report.notes[0]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("value", [3.0, np.nan])
def test_rows_that_are_all_alike_are_not_comparable(test, value):
    """Where every feature is constant or missing there is nothing to compare, and it is said."""
    report = compare(sample(np.full((60, 4), value)), sample(np.full((60, 4), value)), test)
    assert (report.verdict, report.statistic) == (Verdict.NOT_COMPARABLE, None)
    assert "no feature has different values" in report.meaning


@pytest.mark.parametrize("test", TESTS)
def test_no_features_at_all(test):
    """A version whose features are all masked has nothing to compare."""
    report = compare(sample(np.empty((60, 0))), sample(np.empty((60, 0))), test, features=(), masked=["a"])
    assert report.verdict is Verdict.NOT_COMPARABLE


@pytest.mark.parametrize(
    "wrong", [{"test": "ks"}, {"against": "tomorrow"}, {"end_us": 0}, {"most_rows": 0}, {"most_rows": 10**6}]
)
def test_what_cannot_be_asked_is_refused(wrong):
    """Another test or comparison, no stretch, no bound: a ValueError that says what is expected."""
    given = {"test": "mmd", "begin_us": 0, "end_us": 1, **wrong}
    with duckdb.connect() as connection, pytest.raises(ValueError, match="Expected one of classifier, mmd"):
        multivariate_report(connection, plan_of(), given.pop("test"), **given)


def test_training_needs_its_rows():
    """Asked against training without the rows, it is the caller's mistake."""
    with duckdb.connect() as connection, pytest.raises(ValueError, match="Expected rows of the training set"):
        multivariate_report(connection, plan_of(), "mmd", begin_us=0, end_us=1, against="training")


@pytest.mark.parametrize(("against", "back_us"), [("previous", HOUR_US), ("last-week", 7 * 24 * HOUR_US)])
def test_the_stretch_compared_with(against, back_us):
    """The same length just before, or the same hours seven days ago; drawn rows are said to be drawn."""
    with duckdb.connect() as connection:
        connection.execute(
            f"""
            CREATE TABLE predictions AS
            SELECT 'r' || i AS id, 0 AS "row", 'late' AS model, 1 AS version, NULL::VARCHAR AS degraded, false AS is_shadow,
                make_timestamp({1000 * HOUR_US} + i * 6000000::BIGINT - s * {back_us}) AS time,
                s + hash(i, s) % 1000 / 1000 AS a, 1 AS b, NULL::FLOAT AS c
            FROM range(600) r(i), range(2) t(s)
            """
        )
        report = multivariate_report(
            connection,
            plan_of(),
            "mmd",
            begin_us=1000 * HOUR_US,
            end_us=1001 * HOUR_US,
            against=against,
            most_rows=100,
            seed=9,
        )
    assert (report.reference_begin_us, report.reference_end_us) == (1000 * HOUR_US - back_us, 1001 * HOUR_US - back_us)
    assert (report.n_rows, report.n_available, report.n_reference_available) == (100, 600, 600)
    assert (report.verdict, report.features[0].name) == (Verdict.DRIFT, "a")
    assert (
        "100 of the window's 600 rows were drawn, each as likely as any other (at most 100 of either side, by seed 9)."
        in report.notes
    )


def test_a_category_is_told_by_name():
    """Rows that differ in a text feature: its categories, no median, and no correlation of codes with anything."""
    rng = np.random.default_rng(8)
    rows = [correlated(400, 0, rng), correlated(400, 0, rng)]
    for side, chances in zip(rows, ([0.1, 0.2, 0.7], [0.7, 0.2, 0.1]), strict=True):
        side[:, 0] = rng.choice(3, 400, p=chances)
        side[:, 1] = side[:, 0] * (1 if side is rows[0] else -1)
    bins = CategoryBins.of(category_edges(np.array([7, 2, 1])), ("UA", "B6", "DL"))
    numbers = compare(sample(rows[0]), sample(rows[1]))
    assert any(each.partner == "a" for each in numbers.features)
    report = compare(sample(rows[0]), sample(rows[1]), categories={"a": bins})
    told = {each.name: each for each in report.features}
    assert told["a"].partner is None
    assert all(each.partner != "a" for each in report.features)
    assert (told["a"].median, told["a"].reference_median) == (None, None)
    assert "'DL'" in told["a"].change
