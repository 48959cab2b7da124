"""Who answers is decided up front, by what is left and what answering takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import (
    CapacityError,
    DeadlineError,
    EntityNotFoundError,
    ModelUnavailableError,
    NotMaterializedError,
    RequestError,
)
from tiercel.serving.ladder import Candidate, Rung, can_degrade, choose, reason_of

FULL = CapacityError("full", predicted_wait_us=7000)
GONE = ModelUnavailableError("gone")
BROKEN = ZeroDivisionError("broken")


def ladder(champion_us=8000, fallback_us=1000, *, refusal=None, ready=("last_score", "default")):
    rungs = [
        Candidate(Rung.CHAMPION, "fraud", 3, champion_us, refusal),
        Candidate(Rung.FALLBACK, "fraud_small", 2, fallback_us),
        Candidate(Rung.LAST_SCORE, "fraud", 3),
        Candidate(Rung.DEFAULT, "fraud", None),
    ]
    return rungs[:2] + [each for each in rungs[2:] if each.rung in ready]


@pytest.mark.parametrize(
    ("candidates", "remaining_us", "rung", "reason"),
    [
        pytest.param(ladder(), 8000, "champion", None, id="just in time"),
        pytest.param(ladder(), 7999, "fallback", "deadline", id="a microsecond short"),
        pytest.param(ladder(), 1000, "fallback", "deadline", id="the fallback just in time"),
        pytest.param(ladder(), 999, "last_score", "deadline", id="too short for any model"),
        pytest.param(ladder(ready=("default",)), 999, "default", "deadline", id="never scored before"),
        pytest.param(ladder(), 0, "last_score", "deadline", id="no time, but an answer that exists"),
        pytest.param(ladder(), None, "champion", None, id="no promise"),
        pytest.param(ladder(10**9), None, "champion", None, id="no promise, however slow"),
        pytest.param(ladder(refusal=FULL), 9000, "fallback", "overloaded", id="no room"),
        pytest.param(ladder(refusal=GONE), 9000, "fallback", "unavailable", id="not loaded"),
        pytest.param(ladder(refusal=BROKEN), 9000, "fallback", "failed", id="crashed"),
        pytest.param(ladder(refusal=BROKEN), 500, "last_score", "failed", id="crashed and too late for the next"),
        pytest.param(ladder(refusal=GONE), None, "fallback", "unavailable", id="not loaded, no promise"),
        pytest.param(ladder(500, 1000), 700, "champion", None, id="a fallback slower than the champion"),
    ],
)
def test_choose(candidates, remaining_us, rung, reason):
    """The best rung that can be asked and is in time answers; the reason is the first one's."""
    choice = choose(candidates, remaining_us)
    assert (choice.rung, choice.reason) == (rung, reason)


@pytest.mark.parametrize("remaining_us", [999, 0, -5000])
def test_nothing_fits(remaining_us):
    """Without a ready answer, what is too late for the quickest model is refused with both numbers."""
    with pytest.raises(
        DeadlineError, match=r"1 ms for the quickest .*\(fallback, fraud_small:2\).* of 10 ms"
    ) as refused:
        choose(ladder(ready=()), remaining_us, budget_us=10_000)
    assert (refused.value.budget_us, refused.value.needed_us) == (10_000, 1000)


@pytest.mark.parametrize("remaining_us", [-1, -50_000])
def test_a_ready_answer_is_never_too_late(remaining_us):
    """Once time is over an answer that exists is given all the same: a refusal would be as late, and of less use."""
    assert choose(ladder(), remaining_us).rung == "last_score"
    assert choose(ladder(ready=("default",)), remaining_us).rung == "default"


@pytest.mark.parametrize("refusal", [FULL, GONE, BROKEN])
def test_the_first_refusal_is_what_is_said(refusal):
    """Where nobody can answer, whoever asked hears why the champion did not, with its hint when to return."""
    with pytest.raises(type(refusal)) as refused:
        choose(ladder(refusal=refusal, ready=()), 500)
    assert refused.value is refusal


def test_a_failed_rung_is_chosen_around():
    """After a failure the same ladder gives the next rung; the failed one keeps its name."""
    candidates = ladder()
    again = [candidates[0].refused(BROKEN), *candidates[1:]]
    choice = choose(again, 5000)
    assert (choice.rung, choice.reason, again[0].label) == ("fallback", "failed", "fraud:3")
    assert not again[0].is_available


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from([None, FULL, GONE, BROKEN])), min_size=1, max_size=6),
    st.integers(-10, 20_000),
)
def test_choose_is_first_fit(costs, remaining_us):
    """Whatever the ladder, the chosen candidate fits and none before it does; nothing is chosen only if none fits."""
    candidates = [Candidate(Rung.FALLBACK, f"m{i}", i, us, refusal) for i, (us, refusal) in enumerate(costs)]
    fitting = [each for each in candidates if each.refusal is None and each.needed_us <= remaining_us]
    if fitting:
        choice = choose(candidates, remaining_us)
        assert choice.candidate is fitting[0]
        assert (choice.reason is None) is (fitting[0] is candidates[0])
    else:
        with pytest.raises((DeadlineError, CapacityError, ModelUnavailableError, ZeroDivisionError)):
            choose(candidates, remaining_us)


@pytest.mark.parametrize(
    ("error", "reason", "degrades"),
    [
        (FULL, "overloaded", True),
        (DeadlineError("late", budget_us=1, needed_us=2), "deadline", True),
        (GONE, "unavailable", True),
        (NotMaterializedError("not yet"), "unavailable", True),
        (BROKEN, "failed", True),
        (RequestError("wrong"), "failed", False),
        (EntityNotFoundError("nobody"), "unavailable", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reasons(error, reason, degrades):
    """Each error has its name; a question that is wrong stays wrong for every rung."""
    assert (reason_of(error), can_degrade(error)) == (reason, degrades)
