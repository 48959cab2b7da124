"""How good probabilities of several classes are: ranking, loss, and the decision for the likeliest.

Each figure equals scikit-learn's of the same rows: `log_loss`, `accuracy_score`, `f1_score(average="macro")` and, where every
class has labels, `roc_auc_score(multi_class="ovr", average="macro")`. Labels are places among the version's classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np

from tiercel.monitor.classification import auc, row_log_loss
from tiercel.monitor.intervals import CONFIDENCE, Estimate, mean, proportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.cohorts import Outcomes

#: Names in the order in which they are shown.
MULTICLASS_METRICS: Final = ("macro_auc", "log_loss", "accuracy", "macro_f1")
#: With more classes nobody reads a table of each against each.
MAX_CONFUSED: Final = 50


@dataclass(frozen=True)
class Confusion:
    """What was decided of rows of each class.

    Attributes:
        classes: their names.
        counts: rows per class that came (outer) and class that was likeliest (inner).
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"classes": list(self.classes), "counts": [list(row) for row in self.counts]}


@dataclass(frozen=True)
class Classes:
    """A version's classes: their names, and their places among the columns of scores."""

    names: tuple[str, ...]
    places: tuple[int, ...]


def classes_of(outcomes: Outcomes, version: int) -> Classes:
    """The classes of a version in the order of its labels; of all columns of scores, where the version is not known."""
    columns = outcomes.class_columns
    known: list[tuple[Any, ...]] = []
    try:
        known = outcomes.connection.execute(
            "SELECT classes FROM versions WHERE model = ? AND version = ?", [outcomes.model, version]
        ).fetchall()
    except duckdb.Error:  # a table of somebody's own
        known = []
    names = tuple(str(name) for name in (known[0][0] or ())) if known else ()
    for found in ([f"score.{name}".casefold() for name in names], [f"score.{i}" for i in range(len(names))]):
        if names and all(name in columns for name in found):
            return Classes(names, tuple(map(columns.index, found)))
    return Classes(tuple(name.removeprefix("score.") for name in columns), tuple(range(len(columns))))


def multiclass_metrics(
    scores: NDArray[np.float64], labels: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> dict[str, Estimate]:
    """All of `MULTICLASS_METRICS`.

    The macro AUC's interval is the mean of the classes' intervals, which is wide enough however they depend on each other;
    macro F1 comes without one.

    Args:
        scores: finite, float64 (n, classes).
        labels: places of classes, float64 (n,).
        confidence: of the intervals.
    """
    n, n_classes = scores.shape
    if not n or not n_classes:
        return {name: Estimate.missing("no labelled rows") for name in MULTICLASS_METRICS}
    came, decided = labels.astype(np.int64), scores.argmax(axis=1)
    found = {"macro_auc": _macro_auc(scores, came, confidence)}
    if scores.min() < 0 or scores.max() > 1:
        found["log_loss"] = Estimate.missing("scores outside of 0 to 1", n)
    else:
        given = scores[np.arange(n), came]
        found["log_loss"] = mean(row_log_loss(given, np.ones(n, bool)), confidence=confidence).within(0, math.inf)
    found["accuracy"] = proportion(int((came == decided).sum()), n, confidence=confidence)
    counts = _counts(came, decided, n_classes)
    hits, size = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)
    is_seen = size > 0
    f1 = float((2 * hits[is_seen] / size[is_seen]).mean())
    found["macro_f1"] = Estimate(f1, n=n, reason="no interval for this figure")
    return found


def confusion(scores: NDArray[np.float64], labels: NDArray[np.float64], names: Sequence[str]) -> Confusion | None:
    """Rows per class and decision; None of more than `MAX_CONFUSED` classes, or of no rows."""
    n_classes = len(names)
    if not len(scores) or n_classes > MAX_CONFUSED:
        return None
    counts = _counts(labels.astype(np.int64), scores.argmax(axis=1), n_classes)
    return Confusion(tuple(names), tuple(tuple(map(int, row)) for row in counts))


def _macro_auc(scores: NDArray[np.float64], came: NDArray[np.int64], confidence: float) -> Estimate:
    n = len(came)
    each = [auc(scores[:, place], came == place, confidence=confidence) for place in range(scores.shape[1])]
    known = [e for e in each if e.value is not None and e.low is not None and e.high is not None]
    if not known:
        return Estimate.missing("labels of one class only", n)
    value, low, high = (float(np.mean([getattr(e, end) for e in known])) for end in ("value", "low", "high"))
    n_left = len(each) - len(known)
    return Estimate(value, low, high, n, reason=f"without {n_left} classes that have no label" if n_left else "")


def _counts(came: NDArray[np.int64], decided: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    return np.bincount(came * n_classes + decided, minlength=n_classes * n_classes).reshape(n_classes, n_classes)
