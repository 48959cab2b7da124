"""Categories: a bin is a category, with its name; the order of codes decides nothing, and chance is what it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from tiercel.errors import ArtifactCorruptError
from tiercel.monitor.alert import AlertClass
from tiercel.monitor.category_bins import MAX_NAME_CHARS, NEW, CategoryBins, CategoryGroup, category_starts
from tiercel.monitor.causes import Judged, drift_look
from tiercel.monitor.drift import Verdict, drift_report, find_compared
from tiercel.monitor.reference import MAX_DISTINCT, Reference, category_edges, count_cells
from tiercel.monitor.thresholds import QUARTER_US, FalseAlarmBudget, value_bins
from tiercel.monitor.window import empty_window
from tiercel.monitor.windows import WindowStore

#: Five of a hundred windows: so many that a thousand replays can tell the rate.
FIVE_PERCENT = FalseAlarmBudget(per_quarter=0.05 * QUARTER_US / 60_000_000, every_us=60_000_000)
CARRIERS = ("UA", "B6", "DL", "AA", "WN", "HA")
COUNTS = hnp.arrays(np.int64, st.integers(1, 90), elements=st.integers(0, 20) | st.integers(0, 3000))


def reference_of(codes, categories=CARRIERS, **changes):
    """Of one feature, `carrier`, that is a category."""
    X = np.float32(codes)[:, None]
    known = {} if categories is None else {"carrier": categories}
    return replace(Reference.build(X, np.linspace(0, 1, len(X))[:, None], ["carrier"], known), **changes)


def window_of(reference, codes):
    """As counters make it; its scores are those of the reference."""
    codes = np.float32(codes)
    return replace(
        empty_window("late", 1, reference, 0, 3_600_000_000),
        n_requests=len(codes),
        n_rows=len(codes),
        feature_counts=count_cells(reference.feature_edges[0], codes)[None],
        score_counts=count_cells(reference.score_edges[0], np.linspace(0, 1, len(codes)))[None],
    )


def drawn(n, chances, seed=0):
    return np.random.default_rng(seed).choice(len(chances), n, p=np.divide(chances, np.sum(chances)))


def carrier(reference, codes, **options):
    return drift_report(reference, window_of(reference, codes), **options).features[0]


TRAINED = reference_of(drawn(20_000, [30, 10, 25, 20, 14, 1]))


def test_what_moved_is_named():
    """Reasons speak of categories and their shares: neither of codes nor of an order that codes happen to have."""
    found = carrier(TRAINED, drawn(5_000, [12, 28, 25, 20, 14, 1], seed=1))
    assert (found.verdict, found.measure) == (Verdict.DRIFT, "js")
    first, second = found.reason.split(", ")
    assert {first.split("are ")[1].split()[0], second.split()[2]} == {"'UA'", "'B6'"}
    assert "in training)" in first
    ordered = (found.median, found.reference_median, found.kolmogorov_smirnov, found.wasserstein, found.wasserstein_sd)
    assert all(map(math.isnan, ordered))
    assert found.psi > 0.2
    assert found.chi_square_freedom == 5


def test_shares_of_categories_are_in_the_report():
    """JSON has each category with both shares, the commonest of the reference first; they add up."""
    report = drift_report(TRAINED, window_of(TRAINED, drawn(5_000, [12, 28, 25, 20, 14, 1], seed=1)))
    (told,) = json.loads(json.dumps(report.to_json(), allow_nan=False))["features"]
    assert [each["names"] for each in told["categories"]] == [[name] for name in ("UA", "DL", "AA", "WN", "B6", "HA")]
    for side in ("share", "reference_share"):
        assert sum(each[side] for each in told["categories"]) == pytest.approx(1)
    assert (told["median"], told["kolmogorov_smirnov"], told["new_category_share"]) == (None, None, 0)
    assert report.scores[0].categories is None


def test_what_training_did_not_know_is_a_bin_of_its_own():
    """Codes that the dictionary gained since are new categories; a known one that training never saw has its name."""
    trained = reference_of(drawn(20_000, [30, 10, 25, 20, 15]))
    codes = np.r_[drawn(4_500, [30, 10, 25, 20, 15], seed=2), np.full(300, 6), np.full(200, 9)]
    found = carrier(trained, codes)
    assert found.reason == f"10.0 % of the values are {NEW} (0 % in training)"
    assert found.new_category_share == found.out_of_range_share == pytest.approx(0.1)
    assert (found.categories[-1].label, found.categories[-1].n_categories) == (NEW, None)
    found = carrier(trained, np.r_[codes[:4_500], np.full(500, 5)])
    assert found.reason == "10.0 % of the values are 'HA' (0 % in training)"
    assert found.new_category_share == 0


def test_missing_values_are_judged_by_themselves():
    """A feed that breaks is no change of the mix, of categories as of numbers."""
    codes = drawn(5_000, [30, 10, 25, 20, 14, 1], seed=3).astype(float)
    codes[::4] = np.nan
    found = carrier(TRAINED, codes)
    assert (found.verdict, found.reason) == (Verdict.MISSING, "Missing in 25.0 % of the rows, 0 % in training")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_of_codes_decides_nothing(data):
    """Another dictionary of the same categories: the same verdict, effect, threshold, chance and words."""
    n = data.draw(st.integers(2, MAX_DISTINCT))
    order = np.array(data.draw(st.permutations(range(n))))
    names = np.array([f"c{i}" for i in range(n)])
    chances = [np.random.default_rng(data.draw(st.integers(0, 99))).dirichlet(np.full(n, 2)) for _ in range(2)]
    known, now = drawn(6_000, chances[0]), drawn(2_000, chances[1], seed=1)
    place = np.argsort(order)  # category -> its code in the other dictionary
    one = carrier(reference_of(known, tuple(names)), now)
    other = carrier(reference_of(place[known], tuple(names[order])), place[now])
    for name in ("verdict", "measure", "n_rows", "chi_square_freedom"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("effect", "psi", "cramers_v", "chi_square"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-9), name
    # A replay draws bins in their order, so its moments differ by its own error.
    assert one.threshold == pytest.approx(other.threshold, rel=0.05)
    assert {(each.names, round(each.share, 9)) for each in one.categories} == {
        (each.names, round(each.share, 9)) for each in other.categories
    }


@settings(max_examples=200, deadline=None)
@given(COUNTS)
@example(np.array([0]))
@example(np.r_[np.zeros(40, np.int64), 1, np.zeros(40, np.int64)])
def test_the_commonest_stand_alone(counts):
    """At most 22 bins from code 0 on, no more than there are categories; a category of a tenth of the rows is one of them."""
    starts = category_starts(counts, MAX_DISTINCT)
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] < len(counts)
    assert len(starts) == min(len(counts), MAX_DISTINCT)
    alone = {*starts, len(counts)}
    for code in np.flatnonzero(counts >= max(1, 0.1 * counts.sum())).tolist():
        assert {code, code + 1} <= alone


@settings(max_examples=200, deadline=None)
@given(COUNTS)
def test_a_bin_has_the_rows_of_its_categories(counts):
    """Whatever the dictionary, each row is in the bin whose group has its category, and what is beyond it is new."""
    n = len(counts)
    codes = np.r_[np.repeat(np.arange(n), counts), n, n + 3]
    names = [f"c{i}" for i in range(n)]
    bins = CategoryBins.of(category_edges(counts), names, counts)
    assert sum(group.n for group in bins.groups) == n
    found = bins.count(np.r_[codes.astype(float), np.nan])
    np.testing.assert_array_equal(found, value_bins(count_cells(bins.edges, np.float32(codes))))
    assert found.sum() == len(codes)
    at = 0
    for place, group in enumerate(bins.groups, start=1):
        of_group = range(at, at + group.n)
        assert found[place] == counts[list(of_group)].sum()
        assert set(group.names) <= {names[code] for code in of_group}
        assert counts[int(group.names[0][1:])] == max(counts[code] for code in of_group)
        at += group.n
    assert found[len(bins.groups) + 1] == 2
    assert {bins.label(place) for place in (0, len(bins.groups) + 1, 24)} == {NEW}


def test_groups_in_words():
    """All names where they are few, the commonest where they are not; a text is cut; unknown ones are codes."""
    labels = [CategoryGroup(n, names).label for n, names in (
        (1, ("UA",)), (2, ("UA", "it's")), (3, ("a", "b", "c")), (4, ("a", "b", "c")), (9, ("a", "b", "c"))
    )]  # fmt: skip
    assert labels == ["'UA'", "'UA' or \"it's\"", "'a', 'b' or 'c'", "'a', 'b' or 2 others", "'a', 'b' or 7 others"]
    edges = category_edges(np.arange(30))
    unnamed = CategoryBins(edges)
    assert unnamed.label(int(np.flatnonzero(edges == 29)[0]) + 1) == "code 29"
    assert any(unnamed.label(i).startswith("codes ") for i in range(1, 22))
    assert CategoryBins.of(category_edges(np.array([1])), ["x" * 500]).label(1) == f"'{'x' * (MAX_NAME_CHARS - 1)}…'"


def test_many_categories_are_judged_with_rare_ones_together():
    """Of 300 carriers the common ones are named when they move, and a rise of rare ones names the group."""
    chances = 1 / np.arange(1, 301) ** 1.3
    order = np.random.default_rng(0).permutation(300)
    names = [f"c{code}" for code in range(300)]
    trained = reference_of(order[drawn(30_000, chances)], names)
    assert carrier(trained, order[drawn(5_000, chances, seed=1)]).verdict is Verdict.STABLE
    moved = chances.copy()
    moved[1] *= 3
    found = carrier(trained, order[drawn(5_000, moved, seed=2)])
    assert found.verdict is Verdict.DRIFT
    assert f" 'c{order[1]}' " in found.reason
    moved = chances.copy()
    moved[200] += chances.sum() / 5
    found = carrier(trained, order[drawn(5_000, moved, seed=2)])
    assert found.verdict is Verdict.DRIFT
    assert " others (" in found.reason
    assert len(found.categories) == MAX_DISTINCT


@pytest.mark.parametrize(
    "chances", [np.array([0.6, 0.3, 0.1]), np.r_[0.95, np.full(10, 0.005)], 1 / np.arange(1, 81), np.full(200, 1.0)]
)
@pytest.mark.parametrize(
    ("n_reference", "n"), [(20_000, 150), pytest.param(2_000, 3_000, marks=pytest.mark.slow)]
)  # fmt: skip
def test_null_replays_stay_inside_the_binomial_interval(chances, n_reference, n):
    """Windows of the reference's own population: as many false alarms as the budget says, however many categories."""
    rng = np.random.default_rng(n + len(chances))
    chances = rng.permutation(chances / chances.sum())
    names = [f"c{i}" for i in range(len(chances))]
    n_replays, n_alarms = 400, 0
    for i in range(n_replays):
        if i % 3 == 0:
            trained = reference_of(rng.choice(len(chances), n_reference, p=chances), names)
        codes = rng.choice(len(chances), n, p=chances)
        found = carrier(trained, codes, budget=FIVE_PERCENT, least_effect=0)
        n_alarms += found.verdict is Verdict.DRIFT
    # 90 % of the budget is for distributions, and half of that for this one of a feature and a score.
    low, high = stats.binom.interval(0.998, n_replays, 0.05 * 0.9 / 2)
    assert low <= n_alarms <= high, (n_alarms, low, high)


def test_a_reference_remembers_its_categories():
    """Bytes and back: the same edges, groups and digest; a reference without categories has the bytes it always had."""
    again = Reference.from_bytes(TRAINED.to_bytes())
    assert again.digest == TRAINED.digest
    assert again.categories["carrier"].groups == TRAINED.categories["carrier"].groups
    np.testing.assert_array_equal(again.categories["carrier"].edges, TRAINED.feature_edges[0])
    plain = reference_of(drawn(200, [1, 1]), None)
    assert "categories" not in msgpack.unpackb(plain.to_bytes())
    assert not Reference.from_bytes(plain.to_bytes()).categories
    assert not reference_of(drawn(200, [1, 1]), ()).categories  # a dictionary that is still empty


@pytest.mark.parametrize(
    "categories",
    [
        1, [1], [[0]], [["0", []]], [[1, []]], [[-1, []]], [[0, []]], [[0, [[1, ["UA"]]]]],
        [[0, [[1, [1]]] * 6]], [[0, [[1, ["a", "b"]]] * 6]], [[0, [[9, list("abcd")]] * 6]], [[0, [["1", []]] * 6]],
        [[0, [[1, ["a"]]] * 6]] * 2,
    ],
)  # fmt: skip
def test_categories_that_do_not_fit_are_refused(categories):
    """A file whose categories are not one group per bin of one of its features is damaged."""
    data = msgpack.unpackb(TRAINED.to_bytes()) | {"categories": categories}
    with pytest.raises(ArtifactCorruptError, match=r"reference\.msgpack"):
        Reference.from_bytes(msgpack.packb(data))
    Reference.from_bytes(msgpack.packb(data | {"categories": [[0, [[1, ["a"]]] * 6]]}))


def test_earlier_windows_are_told_in_the_same_words(tmp_path):
    """Beside the period before there is no reference to ask: names come with what is compared."""
    before, now = (window_of(TRAINED, drawn(3_000, chances, seed=5)) for chances in ([5, 1, 1], [1, 1, 5]))
    found = drift_report(before, now, against="previous", categories=TRAINED.categories).features[0]
    assert found.reason.startswith("71.")
    assert "are 'DL' (" in found.reason
    assert "in the period before), " in found.reason
    compared = find_compared(WindowStore(tmp_path), TRAINED, "late", 1, begin_us=0, end_us=1, against="previous")
    assert compared.categories is TRAINED.categories
    assert compared.report().features[0].categories[0].label == "'UA'"


def test_an_alert_names_categories():
    """A mix that moved is a population, and its message has the same words as the report."""
    report = drift_report(TRAINED, window_of(TRAINED, drawn(5_000, [12, 28, 25, 20, 14, 1], seed=1)))
    (finding,) = drift_look("window", [Judged(report, {}, (), 0.5, knows_variation=True)]).findings
    assert finding.alert_class is AlertClass.POPULATION
    assert f"carrier: {report.features[0].reason}." in finding.message
    assert "'UA'" in finding.features[0].reason


def test_counts_on_other_edges_have_no_names():
    """A window that was counted on other bins than the names are of: codes, for a name could be another's."""
    other = reference_of(drawn(3_000, [1] * 30), [f"d{i}" for i in range(30)])
    found = drift_report(
        window_of(other, drawn(900, [1] * 30)), window_of(other, drawn(900, [9] + [1] * 29)),
        against="previous", categories=TRAINED.categories,
    ).features[0]  # fmt: skip
    assert "are codes 0 to 1 (" in found.reason
    assert math.isnan(found.median)


def test_a_feature_without_values_or_rows_is_no_failure():
    """Always missing in training, an empty window, one category only: said, not judged."""
    silent = reference_of(np.full(500, np.nan))
    assert carrier(silent, np.full(500, np.nan)).reason == "Always missing, as in training"
    assert carrier(silent, np.zeros(500)).reason == "Missing in 0 % of the rows, 100 % in training"
    assert carrier(TRAINED, []).verdict is Verdict.TOO_FEW
    single = reference_of(np.zeros(500), ["UA"])
    assert carrier(single, np.zeros(500)).verdict is Verdict.STABLE
    found = carrier(single, np.r_[np.zeros(400), np.ones(100)])
    assert found.reason == f"20.0 % of the values are {NEW} (0 % in training)"
