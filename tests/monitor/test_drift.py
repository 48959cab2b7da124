"""Drift reports: what moved is named with its reason, and what cannot be judged is said instead of judged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance
from tests.monitor.test_windows import FEATURES, MINUTE_US, NOW_US, Traffic

from tiercel.monitor.drift import FalseAlarmBudget, Verdict, drift_of, drift_report, find_compared
from tiercel.monitor.reference import Reference, count_cells
from tiercel.monitor.window import empty_window
from tiercel.monitor.windows import HOUR_US, WindowStore

NAMES = ("amount", "country", "flag", "constant", "sparse", "never")


def population(n, seed=0):
    """Training rows: continuous, discrete, binary, constant, a tenth missing, always missing."""
    rng = np.random.default_rng(seed)
    X = np.empty((n, 6), np.float32)
    X[:, 0] = rng.gamma(2, 3, n)
    X[:, 1] = rng.integers(0, 8, n)
    X[:, 2] = rng.random(n) < 0.3
    X[:, 3] = 7
    X[:, 4] = rng.normal(size=n)
    X[rng.random(n) < 0.1, 4] = np.nan
    X[:, 5] = np.nan
    return X, rng.random((n, 1))


REFERENCE = Reference.build(*population(50_000), NAMES)


def window_of(X, scores, **changes):
    window = empty_window("late", 3, REFERENCE, NOW_US, NOW_US + HOUR_US)
    return replace(
        window,
        n_requests=len(X),
        n_rows=len(X),
        feature_counts=np.stack([count_cells(e, c) for e, c in zip(REFERENCE.feature_edges, X.T, strict=True)]),
        score_counts=np.stack([count_cells(e, c) for e, c in zip(REFERENCE.score_edges, scores.T, strict=True)]),
        **changes,
    )


def verdicts(report):
    return {each.name: each.verdict.value for each in (*report.features, *report.scores)}


STABLE = {**dict.fromkeys(NAMES, "stable"), "score": "stable"}


@pytest.mark.parametrize("n", [30, 300, 3_000, 100_000])
def test_the_same_population_is_stable(n):
    """A window of the training population has no alarm at any size, a constant and an always missing feature included."""
    report = drift_report(REFERENCE, window_of(*population(n, seed=n)))
    assert report.alarms == ()
    assert report.verdict is Verdict.STABLE
    assert verdicts(report) == STABLE
    reasons = {each.name: each.reason for each in report.features}
    assert reasons["constant"] == "One value only, as in training"
    assert reasons["never"] == "Always missing, as in training"
    assert (report.n_rows, report.n_counted, report.n_reference, report.notes) == (n, n, 50_000, ())


def test_what_moved_is_named_and_why():
    """A shifted feature, a new category, a constant that changed and scores that moved: each with a sentence that says how."""
    X, scores = population(2_000, seed=1)
    X[:, 0] += 5
    X[:200, 1] = 9
    X[:100, 3] = 8
    report = drift_report(REFERENCE, window_of(X, scores**3))
    assert verdicts(report) == STABLE | dict.fromkeys(["amount", "country", "constant", "score"], "drift")
    by_name = {each.name: each for each in (*report.features, *report.scores)}
    assert by_name["country"].reason == "10.0 % of the values are above 7, 0 % in training"
    assert by_name["country"].new_category_share == pytest.approx(0.1)
    assert by_name["constant"].reason == "5.0 % of the values are above 7, 0 % in training"
    assert by_name["amount"].reason == "95.3 % of the values are 6.09 to 44.36, 40.0 % in training"
    assert by_name["amount"].median - by_name["amount"].reference_median == pytest.approx(5, abs=0.6)
    assert by_name["amount"].new_category_share is None
    assert all(each.effect >= each.threshold and each.p_value < 1e-6 for each in report.alarms)
    strengths = [each.strength for each in report.alarms]
    assert strengths == sorted(strengths, reverse=True)
    assert report.top(2) == report.alarms[:2]
    assert report.alarms[0].name == "amount"


def test_every_number_is_scipys():
    """The report's distances are SciPy's for the histograms it was made of."""
    X, scores = population(1_500, seed=2)
    X[:, 0] *= 1.3
    window = window_of(X, scores)
    found = drift_report(REFERENCE, window).features[0]
    p, q = REFERENCE.feature_counts[0][:24].astype(int), window.feature_counts[0][:24].astype(int)
    used = (p + q) > 0
    assert found.jensen_shannon == pytest.approx(distance.jensenshannon(p, q, base=2), rel=1e-9)
    assert found.effect == getattr(found, {"js": "jensen_shannon", "ks": "kolmogorov_smirnov"}[found.measure])
    assert found.psi == pytest.approx(
        stats.entropy(p[used] + 0.5, q[used] + 0.5) + stats.entropy(q[used] + 0.5, p[used] + 0.5)
    )
    table = stats.chi2_contingency(np.stack([p, q])[:, used], correction=False)
    assert (found.chi_square, found.chi_square_freedom) == (pytest.approx(table.statistic), table.dof)
    assert found.chi_square_p == pytest.approx(table.pvalue, rel=1e-6)
    bins = np.arange(24)
    assert found.kolmogorov_smirnov == pytest.approx(
        stats.ks_2samp(np.repeat(bins, p), np.repeat(bins, q), method="asymp").statistic
    )
    raw = stats.wasserstein_distance(population(50_000)[0][:, 0], X[:, 0])
    assert found.wasserstein == pytest.approx(raw, rel=0.1)
    assert found.wasserstein_sd == pytest.approx(raw / population(50_000)[0][:, 0].std(), rel=0.1)


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (0.5, "Missing in 50.2 % of the rows, 10.0 % in training"),
        (0.0, "Missing in 0 % of the rows, 10.0 % in training"),
    ],
)
def test_a_feed_that_breaks_is_not_called_drift(share, reason):
    """More missing values, or none where there were some, are a change of their own: present values did not move."""
    X, scores = population(3_000, seed=3)
    rng = np.random.default_rng(9)
    X[:, 4] = np.where(rng.random(3_000) < share, np.nan, rng.normal(size=3_000))
    report = drift_report(REFERENCE, window_of(X, scores))
    assert verdicts(report) == STABLE | {"sparse": "missing"}
    assert report.verdict is Verdict.MISSING
    assert report.features[4].reason.startswith(reason)


def test_a_few_more_missing_values_are_no_broken_feed():
    """A change of two points is certain with thousands of rows and no alarm, unless two points are what matters."""
    X, scores = population(20_000, seed=3)
    X[np.random.default_rng(9).random(20_000) < 0.02, 0] = np.nan
    window = window_of(X, scores)
    found = drift_report(REFERENCE, window).features[0]
    assert (found.verdict, found.missing_p < 1e-6) == (Verdict.STABLE, True)
    assert found.missing_share > found.missing_high
    assert drift_report(REFERENCE, window, least_share=0.01).features[0].verdict is Verdict.MISSING


def test_a_feature_that_vanished_or_appeared_is_said():
    """All missing where there were values, and values where there never were: no crash, no distance, an alarm on the share."""
    X, scores = population(500, seed=4)
    X[:, 0] = np.nan
    X[:, 5] = 1
    report = drift_report(REFERENCE, window_of(X, scores))
    assert verdicts(report) == STABLE | {"amount": "missing", "never": "missing"}
    assert np.isnan(report.features[0].effect)
    assert report.features[0].reason == "Missing in 100 % of the rows, 0 % in training"
    assert report.features[5].reason == "Missing in 0 % of the rows, 100 % in training"


def test_infinite_values_have_a_place():
    """Infinity is beyond the range, with a share; it does not vanish and it breaks no number."""
    X, scores = population(400, seed=5)
    X[:40, 0], X[40:80, 0] = np.inf, -np.inf
    found = drift_report(REFERENCE, window_of(X, scores)).features[0]
    assert found.verdict is Verdict.DRIFT
    assert found.out_of_range_share == pytest.approx(0.2, abs=0.005)
    assert np.isfinite([found.wasserstein, found.psi, found.kolmogorov_smirnov]).all()


def test_an_empty_window_has_no_verdict():
    """No rows: too few, said once for all, and no number that looks like one."""
    report = drift_report(REFERENCE, empty_window("late", 3, REFERENCE, NOW_US, NOW_US + 1))
    assert set(verdicts(report).values()) == {"too few rows"}
    assert report.verdict is Verdict.TOO_FEW
    assert report.notes == ("The window is empty: no prediction was served in it.",)
    assert all(np.isnan(each.effect) and np.isnan(each.threshold) for each in report.features)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_window_far_larger_than_its_reference_is_judged():
    """A hundred thousand rows beside a reference of five hundred: every feature has limits, the constant one too."""
    small = Reference.build(*population(500, seed=20), NAMES)
    X, scores = population(100_000, seed=21)
    counts = {
        "feature_counts": np.stack([count_cells(e, c) for e, c in zip(small.feature_edges, X.T, strict=True)]),
        "score_counts": np.stack([count_cells(e, c) for e, c in zip(small.score_edges, scores.T, strict=True)]),
    }
    window = replace(empty_window("late", 3, small, 0, 1), n_requests=100_000, n_rows=100_000, **counts)
    report = drift_report(small, window)
    assert verdicts(report) == STABLE
    X[:, 3] = 8
    counts["feature_counts"][3] = count_cells(small.feature_edges[3], X[:, 3])
    assert drift_report(small, replace(window, **counts)).features[3].verdict is Verdict.DRIFT


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_rows_is_no_verdict(n):
    """Extreme values in a handful of rows are not called drift: any distance is possible by chance."""
    X, scores = population(n, seed=6)
    X[:, 0] = 1_000
    report = drift_report(REFERENCE, window_of(X, scores))
    assert report.features[0].verdict is not Verdict.DRIFT or n == 5
    assert not [each for each in report.features if each.name != "amount" and each.is_alarm]


def test_certain_and_too_little_is_stable():
    """A million rows make every difference certain; one that is too small to matter is no alarm."""
    X, scores = population(200_000, seed=7)
    X[:, 0] *= 1.06
    found = drift_report(REFERENCE, window_of(X, scores)).features[0]
    assert (found.verdict, found.reason) == (
        Verdict.STABLE,
        "Differs from training for certain, but by too little to matter",
    )
    assert found.p_value < 1e-6
    assert drift_report(REFERENCE, window_of(X, scores), least_effect=0.02).features[0].verdict is Verdict.DRIFT


def test_without_a_reference_nothing_is_judged():
    """A version registered without training data, and a window on other bins, are not comparable; it is said what to do."""
    window = window_of(*population(100))
    report = drift_report(None, window)
    assert set(verdicts(report).values()) == {"not comparable"}
    assert "register it with its training set" in report.notes[0]
    other = Reference.build(*population(1_000, seed=8), NAMES)
    report = drift_report(other, window)
    assert set(verdicts(report).values()) == {"not comparable"}
    assert "other bins" in report.notes[0]


def test_what_is_uncertain_of_the_counts_is_said():
    """Degraded rows, shadows, a killed worker, other bins, a clock that was set and problems each have their note."""
    window = window_of(
        *population(500),
        n_degraded=3, n_shadow=4, n_interrupted=1, n_elsewhere=5, n_clock_jumps=2, problems=("a file is damaged",),
    )  # fmt: skip
    report = drift_report(REFERENCE, window)
    notes = " ".join(report.notes)
    for words in ("3 of 500 rows were answered by", "4 of 500 requests", "1 requests were being counted", "5 requests were",
                  "set 2 times", "A file is damaged."):  # fmt: skip
        assert words in notes
    assert report.alarms == ()


def test_windows_that_vary_anyway_widen_the_thresholds():
    """Where earlier windows differ from one another by as much, a difference is no drift, and the report says why."""
    rng = np.random.default_rng(11)

    def hour(level):
        X, scores = population(400, seed=int(rng.integers(1 << 30)))
        X[:, 0] = rng.gamma(2, 3, 400) * level
        return window_of(X, scores)

    history = [hour(level) for level in rng.choice([0.4, 1, 2.5], 16)]
    wild = hour(1.5)
    assert drift_report(REFERENCE, wild).features[0].verdict is Verdict.DRIFT
    report = drift_report(REFERENCE, wild, history=history)
    assert report.features[0].verdict is Verdict.STABLE
    assert "widened" in report.notes[0]
    assert report.features[0].threshold > 2 * report.features[1].threshold


def test_a_report_is_json():
    """Every number and word of a report survives JSON; what is not known is null."""
    data = json.loads(json.dumps(drift_report(REFERENCE, window_of(*population(100))).to_json(), allow_nan=False))
    assert (data["model"], data["version"], data["against"], data["verdict"]) == ("late", 3, "training", "stable")
    assert data["features"][5]["effect"] is None
    assert data["features"][0]["kind"] == "feature"
    assert data["scores"][0]["name"] == "score"
    assert 0 < data["alpha"] < 0.001


def test_periods_are_compared_from_stored_windows(tmp_path):
    """Against the period before and the same hour last week; where there was none it is said, not judged."""
    traffic, store = Traffic(tmp_path), WindowStore(tmp_path)
    begin_us = NOW_US
    week_us = 7 * 24 * HOUR_US
    for at_us in (begin_us - week_us, begin_us - HOUR_US, begin_us):
        store.record(at_us)
        traffic.answer(200)
        store.record(at_us + HOUR_US)
    span = {"begin_us": begin_us, "end_us": begin_us + HOUR_US}
    for against, words in (("previous", "the period before"), ("last-week", "the same time last week")):
        report = drift_of(store, None, "late", 1, against=against, **span)
        assert (report.n_counted, report.n_reference) == (200, 200)
        assert report.alarms == ()
        assert words in report.features[0].reason
    report = drift_of(store, None, "late", 1, begin_us=begin_us - HOUR_US, end_us=begin_us, against="previous")
    assert report.verdict is Verdict.NOT_COMPARABLE
    assert report.notes == ("Nothing was counted in the period before.",)
    empty = drift_of(store, None, "late", 1, begin_us=begin_us + 9 * HOUR_US, end_us=begin_us + 10 * HOUR_US)
    assert (empty.n_rows, empty.verdict) == (0, Verdict.NOT_COMPARABLE)
    assert drift_of(store, None, "late", 8, **span) is None
    with pytest.raises(ValueError, match="Expected one of"):
        drift_of(store, None, "late", 1, against="yesterday", **span)
    assert (
        find_compared(store, None, "late", 1, begin_us=begin_us, end_us=begin_us + HOUR_US).report().features[0].name
        in FEATURES
    )
    traffic.worker.close()


def test_the_newest_window_stands_in_where_it_is_the_only_one(tmp_path):
    """A first record spans all the time since the first worker: it is shown, and it is said that it is another time."""
    traffic, store = Traffic(tmp_path), WindowStore(tmp_path)
    traffic.answer(50)
    store.record(NOW_US)  # the worker began long before
    span = {"begin_us": NOW_US - MINUTE_US, "end_us": NOW_US}
    assert find_compared(store, REFERENCE, "late", 1, **span).window.n_requests == 0
    found = find_compared(store, REFERENCE, "late", 1, or_latest=True, **span)
    assert found.window.n_requests == 50
    assert "newest window" in found.report(FalseAlarmBudget()).notes[0]
    traffic.worker.close()
