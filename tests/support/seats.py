"""Questions of the compiled path in a queue, without a connection behind them."""

from __future__ import annotations

import time

import numpy as np
from tiercel._hot.plan import ServingPlan

from tiercel.serving.waiters import Seat
from tiercel.types import Signature, Task


class Sum:
    """A scorer: the sum of a row, and its first feature."""

    n_outputs = 2

    def __init__(self, n_features):
        self.n_features = n_features

    def score(self, rows):
        return np.stack([rows.sum(axis=1), rows[:, 0]], axis=1).astype(np.float64)


class Told:
    """What a connection is told, as `HotProtocol.complete`."""

    def __init__(self, call=None):
        self.call, self.found = call, []

    def complete(self, prepared, scores, error):
        self.found.append(error if error is not None else prepared.scores() if scores is None else scores)
        if self.call is not None:
            self.call(error)


def plan_of(n_features=1):
    """A plan whose features all come with the request."""
    names = [f"f{k}" for k in range(n_features)]
    return ServingPlan("seated", 1, Signature(names, Task.MULTICLASS, ("a", "b")), Sum(n_features))


def seat(plan, rows, due_ns, hot=None, *, can_leave=False):
    """A seat of so many rows (a list of lists of features)."""
    features = {f"f{k}": [float(row[k]) for row in rows] for k in range(plan.n_features)}
    prepared = plan.prepare({}, features, time.time_ns() // 1000)
    return Seat(prepared, hot or Told(), due_ns, can_leave)
