"""What stands still is told from what is constant by nature, from chance, and from too little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.monitor.test_windows import NOW_US

from tiercel.monitor.category_bins import CategoryBins
from tiercel.monitor.reference import Reference, count_cells
from tiercel.monitor.stuck import LEAST_WINDOWS, find_stuck
from tiercel.monitor.window import empty_window

NAMES = ("amount", "kind", "month", "rare")
ALPHA = 1e-4


def rows(n, seed, month=3):
    rng = np.random.default_rng(seed)
    X = np.stack(
        [rng.normal(size=n), rng.integers(0, 6, n), np.full(n, month), rng.random(n) < 0.01], axis=1
    )  # fmt: skip
    return X.astype(np.float32)


def training():
    X = rows(20_000, 0)
    X[:, 2] = np.random.default_rng(1).integers(1, 13, len(X))
    return Reference.build(X, np.random.default_rng(2).random((len(X), 1)), NAMES)


REFERENCE = training()


def window(X, n_requests=None):
    return replace(
        empty_window("late", 1, REFERENCE, NOW_US, NOW_US + 1),
        n_requests=len(X) if n_requests is None else n_requests,
        n_rows=len(X),
        feature_counts=np.stack([count_cells(e, c) for e, c in zip(REFERENCE.feature_edges, X.T, strict=True)]),
        score_counts=np.stack([count_cells(REFERENCE.score_edges[0], np.full(len(X), 0.5))]),
    )


HISTORY = [window(rows(300, 10 + i)) for i in range(8)]


def still(*names, n=300, at=0.25, seed=5):
    X = rows(n, seed)
    for name in names:
        X[:, NAMES.index(name)] = at
    return X


def names_of(X, history=HISTORY, **options):
    return [each.name for each in find_stuck(window(X, **options), history, ALPHA).stuck]


def test_what_stands_still_is_found_with_its_place():
    """One value in all rows where each window before had many: its name, its place, and how usual that was."""
    (amount, kind) = find_stuck(window(still("amount", "kind", at=2)), HISTORY, ALPHA).stuck
    assert (amount.name, kind.name, kind.where, kind.n) == ("amount", "kind", "2", 300)
    assert kind.usual_share == pytest.approx(1 / 6, abs=0.03)
    assert kind.reason.startswith("All 300 values are 2; ")
    assert amount.p_value < ALPHA


def test_values_outside_of_all_training_are_one_place():
    """A stand-in such as -999 is found too, and named by the side it is on."""
    (found,) = find_stuck(window(still("amount", at=-999)), HISTORY, ALPHA).stuck
    assert found.where.startswith("below -")


def test_what_is_constant_by_nature_is_not_stuck():
    """A month is constant within each window, and in the first window of the next month too."""
    assert names_of(rows(300, 5)) == []
    assert names_of(rows(300, 5, month=4)) == []


def test_a_rare_value_that_does_not_come_is_chance():
    """One in a hundred may be absent from three hundred rows; from three thousand it is not."""
    history = [window(rows(3000, 30 + i)) for i in range(8)]
    X = rows(3000, 40)
    X[:, 3] = 0
    assert names_of(X[:300], history) == []
    assert names_of(X, history) == ["rare"]


def test_rows_of_one_request_prove_little():
    """A bulk request about one customer is constant in all that is the customer's."""
    assert names_of(still("kind", at=2), n_requests=2) == []
    assert names_of(still("kind", at=2), n_requests=100) == ["kind"]


def test_too_little_is_not_judged():
    """Few values, or few windows before that could have varied, say nothing; nor does a window of nothing."""
    assert names_of(still("kind", at=2, n=99)) == []
    assert names_of(still("kind", at=2), HISTORY[: LEAST_WINDOWS - 1]) == []
    assert names_of(still("kind", at=2), []) == []
    assert names_of(rows(0, 1)) == []


def test_what_has_stood_still_for_long_is_still_stuck():
    """Windows in which it stood at the same place do not make it usual; at another place they do."""
    stuck = [window(still("kind", at=2, seed=60 + i)) for i in range(5)]
    assert names_of(still("kind", at=2), [*HISTORY, *stuck]) == ["kind"]
    assert names_of(still("kind", at=3), [*HISTORY, *stuck]) == []


def test_what_was_stuck_stays_so_until_it_varies():
    """With nothing but still windows left before it, a feature known to stand still does, and no other."""
    long = [window(still("kind", "amount", at=2, seed=60 + i)) for i in range(24)]
    (found,) = find_stuck(window(still("kind", "amount", at=2)), long, ALPHA, known={"kind"}).stuck
    assert (found.name, found.reason) == ("kind", "All 300 values are 2; it has stood still for long")


def test_what_varies_is_said():
    """Features seen with two values or more could have been found and were not."""
    assert find_stuck(window(still("kind", at=2)), HISTORY, ALPHA).varied == {"amount", "rare"}


def test_missing_values_are_left_to_others():
    """Only values that are there count: a feature that is missing for most is judged by the rest."""
    X = still("kind", at=2)
    X[:150, 1] = np.nan
    (found,) = find_stuck(window(X), HISTORY, ALPHA).stuck
    assert found.n == 150


def test_a_category_that_stands_still_has_its_name():
    """A text feature that comes to one value: that value, not the code it happens to have."""
    names = ("web", "app", "desk", "mail", "shop", "call")
    bins = CategoryBins.of(REFERENCE.feature_edges[1], names)
    stillness = find_stuck(window(still("kind", at=2)), HISTORY, ALPHA, categories={"kind": bins})
    assert stillness.stuck[0].reason.startswith("All 300 values are 'desk'; ")
