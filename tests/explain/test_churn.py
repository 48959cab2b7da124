"""Reasons of two versions on the same rows: what replies would name, compared as sets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tiercel.explain.churn import LEAST_ROWS, chosen_codes, compare_reasons
from tiercel.explain.policy import Reason, ReasonPolicy, Wording, default_policy
from tiercel.explain.reasons import make_form
from tiercel.types import Attributions, Signature, Task

SIGNATURE = Signature(("a", "b", "c"), Task.BINARY, ("no", "yes"))


def attributions(values):
    return Attributions(np.array(values, np.float64), 0.5, "exact", "linear", "margin", "yes")


def wording(code):
    return Wording(code, (("en", code.lower()),))


def test_codes_are_those_that_a_reply_names():
    """Adverse reasons by their size, the features of one together; where nothing is adverse, the policy's word for that."""
    policy = ReasonPolicy(
        reasons=(Reason(wording("AB"), ("a", "b")), Reason(wording("C"), ("c",))),
        insufficient=wording("NONE"), locale="en", locales=("en",), adverse="higher",
    )  # fmt: skip
    form = make_form(policy, SIGNATURE, kind="linear", reference=None)
    rows = np.zeros((4, 3), np.float32)
    found = chosen_codes(form, rows, attributions([[1, 1, 1], [1, -2, 3], [0.2, 0.2, 0.5], [-1, -1, -1]]))
    assert found == [("AB", "C"), ("C",), ("C", "AB"), ("NONE",)]


def test_without_a_policy_features_are_reasons():
    """What moved the score most, either way; no more than k of them."""
    form = make_form(default_policy(SIGNATURE), SIGNATURE, kind="linear", reference=None, k=2)
    assert chosen_codes(form, np.zeros((1, 3), np.float32), attributions([[0.1, -3, 2]])) == [("b", "c")]


def test_sets_are_compared_not_orders():
    """Another order is no churn but another first reason; what came and went is counted by code."""
    before = [("A", "B"), ("A", "B"), ("A",), ("A", "C")]
    now = [("A", "B"), ("B", "A"), ("A", "D"), ("D", "B")]
    found = compare_reasons("late", (3, before), (4, now), source="predictions")
    assert (found.n_rows, found.n_changed, found.n_first, found.share) == (4, 2, 2, 0.5)
    assert [(each.code, each.n_gained, each.n_lost) for each in found.changes] == [
        ("D", 2, 0), ("A", 0, 1), ("B", 1, 0), ("C", 0, 1),
    ]  # fmt: skip
    assert (found.champion, found.challenger, found.n_decisions, found.is_enough) == (3, 4, None, False)
    assert json.loads(json.dumps(found.to_json()))["share"] == 0.5


def test_it_is_said_in_a_sentence():
    """Shares of reasons and decisions, and what the rows were; without rows, that there are none."""
    n = LEAST_ROWS
    sides = (np.arange(n) < 5, np.arange(n) < 6)
    found = compare_reasons(
        "m", (1, [("A",)] * n), (2, [("A",)] * (n - 1) + [("B",)]), source="training", decisions=sides
    )
    assert found.is_enough
    expected = (
        "2.0% of 50 rows of the training set get other reasons, 2.0% another first one; 2.0% are decided otherwise."
    )
    assert found.describe() == expected
    empty = compare_reasons("m", (1, []), (2, []), source="training")
    assert (empty.share, empty.describe()) == (0.0, "No rows to compare reasons on.")
    with pytest.raises(ValueError, match="the same rows"):
        compare_reasons("m", (1, []), (2, [("A",)]), source="training")


def test_rows_that_nobody_can_explain_are_not_agreement():
    """Of a contribution that is not finite there are no reasons; where neither version has any the row is not compared."""
    form = make_form(default_policy(SIGNATURE), SIGNATURE, kind="linear", reference=None, k=1)
    rows = np.zeros((2, 3), np.float32)
    some = chosen_codes(form, rows, attributions([[np.inf, 0, 1], [0, 2, 1]]))
    none = chosen_codes(form, rows, attributions([[np.nan, 0, 1], [0, np.inf, 1]]))
    assert (some, none) == ([(), ("b",)], [(), ()])
    decisions = np.array([True, True]), np.array([False, True])
    found = compare_reasons("m", (1, some), (2, none), source="training", decisions=decisions)
    assert (found.n_rows, found.n_changed, found.n_decisions) == (1, 1, 0)
    nothing = compare_reasons("m", (1, none * LEAST_ROWS), (2, none * LEAST_ROWS), source="training")
    assert (nothing.n_rows, nothing.is_enough) == (0, False)
