"""Sentences about changes say what is true, in numbers a person can read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.explain.counterfactual_words import _said, sentence
from tiercel.explain.counterfactuals import Counterfactual, FeatureChange
from tiercel.explain.policy import ENGLISH, Change, Phrases, Reason, ReasonPolicy, Wording


def policy_of(*changes, phrases=ENGLISH, locale="en"):
    wording = Wording("R1", ((locale, "one"),))
    return ReasonPolicy(
        reasons=(Reason(wording, tuple(each.feature for each in changes)),), insufficient=Wording("R0", ((locale, "no"),)),
        locale=locale, locales=(locale,), changes=changes, phrases=phrases,
    )  # fmt: skip


INCOME = Change("income", (("en", "the income"),), units=(("en", "euros"),))
HOUR = Change("hour", (("en", "the departure"),), shown_as="clock")


def say(*changes):
    return sentence(Counterfactual(changes, 1.0, 0.5), policy_of(INCOME, HOUR))


def test_sentences():
    """One change, two, a range and a single value, a clock: each in its words."""
    assert say(FeatureChange("income", 28500, 31000.002, "at_least")) == (
        "If the income were 31100 euros or more (now 28500), the decision would be another one."
    )
    assert say(FeatureChange("hour", 1025, 874, "at_most")) == (
        "If the departure were 14:34 or less (now 17:05), the decision would be another one."
    )
    assert say(FeatureChange("income", 1, 2.5000002, "exactly"), FeatureChange("hour", 0, 5, "exactly")) == (
        "If the income were 2.5000002 euros (now 1) and the departure were 00:05 (now 00:00), "
        "the decision would be another one."
    )


def test_texts_that_look_like_braces_are_texts():
    """A name that holds a placeholder is said as it is, and other languages have their own order of words."""
    phrases = Phrases(
        *[(("de", text),) for text in ("{now}>{value} {name}", "{value}<{now} {name}", "-", "-", "{change}!")]
    )
    odd = Change("x", (("de", "{value}"),))
    found = Counterfactual((FeatureChange("x", 3, 2, "at_most"),), 1.0, 0.5)
    assert sentence(found, policy_of(odd, phrases=phrases, locale="de")) == "3>2 {value}!"


@settings(max_examples=500, deadline=None)
@given(
    now=st.floats(-1e6, 1e6, width=32),
    then=st.floats(-1e6, 1e6, width=32),
    room=st.one_of(st.none(), st.floats(0, 100)),
    step=st.one_of(st.none(), st.just(0.5)),
)
def test_a_rounder_number_is_still_true(now, then, room, step):
    """What is said lies at the border or beyond it, within bounds, and at most a twentieth of the change farther."""
    if now == then:
        return
    rises = then > now
    bound = None if room is None else then + (room if rises else -room)
    change = Change("x", (("en", "x"),), maximum=bound if rises else None, minimum=None if rises else bound, step=step)
    said = float(_said(FeatureChange("x", now, then, "at_least" if rises else "at_most"), change))
    assert said >= then if rises else said <= then
    assert abs(said - then) <= 0.0501 * abs(then - now) + abs(then) * 2**-23
    if bound is not None:
        assert said <= np.float32(bound) if rises else said >= np.float32(bound)
    if step is not None:
        assert said == then


@pytest.mark.parametrize(
    ("now", "then", "said"),
    [
        (17, 14.4999, 14.4),
        (17, 14.500001, 14.5),
        (0, 1, 1),
        (0, 0.30000001, 0.31),
        (100, 1234.5, 1240),
        (-3, -2.0000002, -2),
    ],
)
def test_numbers_that_people_would_say(now, then, said):
    """As few digits as the slack allows."""
    change = Change("x", (("en", "x"),))
    extent = "at_least" if then > now else "at_most"
    assert _said(FeatureChange("x", now, float(np.float32(then)), extent), change) == np.float32(said)
