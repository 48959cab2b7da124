"""Models that raise: what clients are told names the model and gives the reason, and nothing else."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from tiercel._hot.plan import ServingPlan

from tiercel.errors import ScoringFailedError, StoreError
from tiercel.serving.score_check import MAX_REASON, in_one_line, named, predict, score_here
from tiercel.types import Signature, Task

GATHER = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node. Name:'pick' "
    "Status Message: /onnxruntime_src/core/providers/cpu/gather.cc:12 Check\nindices out of bounds, idx=5000 [-1000,999]\n"
)


class UntellableError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class Scorer:
    """Raises what it is told to."""

    n_features, n_outputs = 1, 1

    def __init__(self, error=None):
        self.error = error

    def score(self, rows):
        if self.error is not None:
            raise self.error
        return rows.astype(np.float64)


def plan_of(error=None):
    return ServingPlan("pick", 7, Signature(("a",), Task.REGRESSION), Scorer(error))


def asked_here(error):
    score_here(plan_of(error).prepare({}, {"a": 1.0}, 0))


def asked_by_name(error):
    named(plan_of(error))(np.zeros((1, 1), np.float32))


def asked_for_a_job(error):
    predict(plan_of(error), {}, {"a": [1.0, 2.0]}, 0)


WAYS = [asked_here, asked_by_name, asked_for_a_job]


@pytest.mark.parametrize("ask", WAYS)
def test_a_model_that_raises_is_named(ask):
    """Whoever asks: the same code and words, with the whole error as the cause, for the log."""
    with pytest.raises(ScoringFailedError) as caught:
        ask(RuntimeError(GATHER))
    assert caught.value.code == "scoring_failed"
    text = str(caught.value)
    assert "model 'pick' version 7" in text
    assert "RuntimeError: [ONNXRuntimeError] : 2" in text
    assert "idx=5000" in text
    assert "onnxruntime_src" not in text
    assert "\n" not in text
    assert str(caught.value.__cause__) == GATHER
    assert caught.value.__cause__.__traceback__ is None


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize("error", [StoreError("damaged page"), MemoryError("no room")])
def test_what_is_not_the_models_stays_what_it_is(ask, error):
    """An error that says what it is keeps its class: a full memory is not the model's failure."""
    with pytest.raises(type(error)) as caught:
        ask(error)
    assert caught.value is error


class Picky(Scorer):
    """Raises where a row of more than 100 is among those it is asked for, or once and never again."""

    def __init__(self, *, only_once=False):
        super().__init__()
        self.only_once, self.asked = only_once, []

    def score(self, rows):
        self.asked.append(len(rows))
        if (rows > 100).any() and not (self.only_once and len(self.asked) > 1):
            raise IndexError("out of bounds")
        return rows.astype(np.float64)


@pytest.mark.parametrize("bad", [{0}, {9}, {4, 7}, {3, 4, 5}, set(range(10))])
def test_the_first_row_that_fails_is_named(bad):
    """Of several rows the first that the model raises for is told; together they are asked for once more and no oftener."""
    scorer = Picky()
    plan = ServingPlan("pick", 7, Signature(("a",), Task.REGRESSION), scorer)
    values = [1000.0 if i in bad else 1.0 for i in range(10)]
    with pytest.raises(ScoringFailedError, match=rf"what runs it \(row {min(bad)}\): IndexError") as caught:
        score_here(plan.prepare({}, {"a": values}, 0))
    assert caught.value.row == min(bad)
    assert sum(scorer.asked) <= 10 + 10


def test_no_row_is_named_where_none_is_known():
    """A single row needs no number, and a failure that does not come again has none."""
    for values, scorer in ((1000.0, Picky()), ([1.0, 1000.0], Picky(only_once=True))):
        plan = ServingPlan("pick", 7, Signature(("a",), Task.REGRESSION), scorer)
        with pytest.raises(ScoringFailedError, match="what runs it: IndexError") as caught:
            score_here(plan.prepare({}, {"a": values}, 0))
        assert caught.value.row is None


def test_scores_are_those_of_the_plan():
    """Where nothing is raised nothing is changed."""
    asked = {}, {"a": [1.0, None]}, 0
    assert str(predict(plan_of(), *asked)) == str(plan_of().predict(*asked))
    assert predict(plan_of(), {}, {"a": 2.0}, 0)[:2] == (True, 2.0)
    rows = np.ones((3, 1), np.float32)
    assert named(plan_of())(rows).tolist() == [[1.0]] * 3


def test_a_failure_keeps_nothing_alive():
    """An error that is remembered does not hold the request it came from."""
    prepared = plan_of(RuntimeError("x")).prepare({}, {"a": 1.0}, 0)
    with pytest.raises(ScoringFailedError) as caught:
        score_here(prepared)
    kept = caught.value.with_traceback(None)
    assert prepared not in gc.get_referents(kept, kept.__cause__)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b\tc."), "ValueError: a b c"),
        (ValueError(""), "ValueError"),
        (ValueError("in C:\\build\\ort\\gather.cc, line 3"), "ValueError: in ..., line 3"),
        (ValueError("open '/home/me/secret/model.onnx' failed"), "ValueError: open '...' failed"),
        (ValueError("1/2 of a/b"), "ValueError: 1/2 of a/b"),
        (ValueError("x" * 1000), "ValueError: " + "x" * MAX_REASON + "..."),
        (UntellableError(), "UntellableError"),
    ],
)
def test_one_line(error, text):
    """Name and words, shortened, without paths."""
    assert in_one_line(error) == text
