"""How good a model's predictions turned out: figures with intervals per version and arm, in all, by window and by segment.

Which predictions count, and by which labels, is `tiercel.monitor.cohorts`' matter; the figures are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.monitor.classification import CalibrationBin, binary_metrics, calibration_bins
from tiercel.monitor.cohorts import Cohort, Counts, GroupKey, Outcomes
from tiercel.monitor.custom_metrics import custom_metrics
from tiercel.monitor.intervals import CONFIDENCE, Estimate, proportion
from tiercel.monitor.label_delay import MATURE_SHARE, DelayCurve
from tiercel.monitor.multiclass import Classes, Confusion, classes_of, confusion, multiclass_metrics
from tiercel.monitor.regression import regression_metrics
from tiercel.settings import ValueSettings
from tiercel.types import Task

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

#: Fewer labels say too little of their delay to choose a maturity by.
LEAST_LABELS: Final = 30


@dataclass(frozen=True)
class GroupPerformance:
    """A group's figures.

    Attributes:
        counts: what became of its predictions.
        coverage: the share of the cohort that is labelled.
        metrics: a figure per name, custom ones last.
        calibration: the curve of a binary model's probabilities; empty otherwise.
        confusion: of a multiclass model, in all: what was decided of rows of each class.
    """

    key: GroupKey
    counts: Counts
    coverage: Estimate
    metrics: dict[str, Estimate]
    calibration: list[CalibrationBin] = field(default_factory=list)
    confusion: Confusion | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.key.to_json(),
            "counts": self.counts.to_json(),
            "coverage": self.coverage.to_json(),
            "metrics": {name: each.to_json() for name, each in self.metrics.items()},
            **({"calibration": [each.to_json() for each in self.calibration]} if self.calibration else {}),
            **({} if self.confusion is None else {"confusion": self.confusion.to_json()}),
        }


@dataclass(frozen=True)
class PerformanceReport:
    """A model's performance as it was known at a moment.

    Attributes:
        model, task: whose.
        as_of_us: the moment.
        cohort: which predictions were judged, by which labels.
        delay: how long labels take.
        groups: in all, per version and arm.
        windows: per version, arm and window, in order of time.
        segments: per version, arm, segment and value.
        confidence: of all intervals.
        notes: what a reader must know, in words.
    """

    model: str
    task: Task
    as_of_us: int
    cohort: Cohort
    delay: DelayCurve
    groups: list[GroupPerformance]
    windows: list[GroupPerformance]
    segments: list[GroupPerformance]
    confidence: float
    notes: list[str]

    def find(self, version: int, arm: str = "champion") -> GroupPerformance | None:
        """A version's figures in an arm, in all."""
        return next((g for g in self.groups if (g.key.version, g.key.arm) == (version, arm)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        cohort = self.cohort
        return {
            "model": self.model,
            "task": self.task.value,
            "as_of_us": self.as_of_us,
            "confidence": self.confidence,
            "cohort": {
                "maturity_s": None if cohort.maturity_us is None else cohort.maturity_us / 1e6,
                "begin_us": cohort.begin_us,
                "end_us": cohort.end_us,
                "window_s": None if cohort.window_us is None else cohort.window_us / 1e6,
            },
            "label_delay": self.delay.to_json(),
            "groups": [each.to_json() for each in self.groups],
            "windows": [each.to_json() for each in self.windows],
            "segments": [each.to_json() for each in self.segments],
            "notes": self.notes,
        }


def performance_report(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    cohort: Cohort,
    *,
    as_of_us: int,
    version: int | None = None,
    settings: ValueSettings | None = None,
    with_degraded: bool = False,
    confidence: float = CONFIDENCE,
    delay: DelayCurve | None = None,
) -> PerformanceReport:
    """Measure a model.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts.
        cohort: see `Cohort`; `choose_cohort` finds one by how long labels take.
        as_of_us: what came later is not looked at.
        version: only this one.
        settings: the threshold, segments and metrics of `[models.NAME.value]`.
        with_degraded: judge answers that the model did not give itself, too.
        confidence: of the intervals.
        delay: from `choose_cohort`; None: computed.

    Raises:
        OutcomesError: `outcomes` cannot be read, or there would be too many windows.
        DefinitionError: a segment or metric is not SQL over it.
    """
    settings = ValueSettings() if settings is None else settings
    outcomes = Outcomes(
        connection, model, task, as_of_us, version=version, with_degraded=with_degraded, segments=settings.segments
    )
    delay = outcomes.delays() if delay is None else delay
    counts = outcomes.counts(cohort)
    rows = outcomes.rows(cohort, n_used=sum(n.n_used for key, n in counts.items() if key.is_whole))
    custom = custom_metrics(outcomes, cohort, settings.metrics, confidence=confidence)
    found = []
    nothing = np.empty(0, np.int64)
    known: dict[int, Classes] = {}
    for key, n in sorted(counts.items(), key=lambda item: item[0].order):
        members = rows.members.get(key, nothing)
        scores, labels = rows.scores[members], rows.labels[members]
        confused = None
        if rows.class_scores is not None:
            classes = known.setdefault(key.version, classes_of(outcomes, key.version))
            scores, labels = _of_classes(rows.class_scores[members], labels, classes)
            confused = confusion(scores, labels, classes.names) if key.is_whole else None
        metrics = _metrics(task, scores, labels, n, threshold=settings.threshold, confidence=confidence)
        is_curve = task is Task.BINARY and len(scores) and scores.min() >= 0 and scores.max() <= 1
        found.append(
            GroupPerformance(
                key,
                n,
                proportion(n.n_labelled, n.n_cohort, confidence=confidence, nothing="no prediction is old enough"),
                {**metrics, **custom.get(key, {})},
                calibration_bins(scores, labels, confidence=confidence) if is_curve and key.segment is None else [],
                confused,
            )
        )
    whole = [each for each in found if each.key.is_whole]
    notes = _notes(whole, cohort, delay, task, rows.one_in) if whole else absence(outcomes)
    return PerformanceReport(
        model,
        task,
        as_of_us,
        cohort,
        delay,
        whole,
        [each for each in found if each.key.begin_us is not None],
        [each for each in found if each.key.segment is not None],
        confidence,
        notes,
    )


def choose_cohort(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    *,
    as_of_us: int,
    version: int | None = None,
    maturity_us: int | None = None,
    span_us: int | None = None,
    window_us: int | None = None,
) -> tuple[Cohort, DelayCurve]:
    """A cohort that is judged fairly: of the age at which nearly all labels that ever come have come.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts.
        as_of_us: what came later is not looked at.
        version: only this one.
        maturity_us: the age, where it is known better; None: by the delay curve.
        span_us: how far back the judged predictions reach; it ends where they begin to be mature, so that there always are
            some. None: all.
        window_us: of windows; None: none.

    Returns:
        The cohort, and how long labels take. Without labels enough to tell, the cohort has no maturity: all predictions
        are judged by whatever came.
    """
    delay = Outcomes(connection, model, task, as_of_us, version=version).delays()
    if maturity_us is None and delay.n_labelled >= LEAST_LABELS:
        maturity_us = delay.quantile_us(MATURE_SHARE)
    begin_us = None if span_us is None else as_of_us - span_us - (maturity_us or 0)
    if begin_us is not None and window_us is not None:
        begin_us = begin_us // window_us * window_us  # a first window cut off would look like one with little traffic
    return Cohort(maturity_us, begin_us, None, window_us), delay


def _metrics(
    task: Task,
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    counts: Counts,
    *,
    threshold: float,
    confidence: float,
) -> dict[str, Estimate]:
    if task is Task.MULTICLASS:
        found = multiclass_metrics(scores if scores.ndim > 1 else np.empty((0, 0)), labels, confidence=confidence)
    elif task is Task.REGRESSION:
        found = regression_metrics(scores, labels, confidence=confidence)
    else:
        found = binary_metrics(scores, labels, threshold=threshold, confidence=confidence)
    if len(scores):
        return found
    if not counts.n_cohort:
        reason = "no prediction is old enough"
    elif not counts.n_labelled:
        reason = "no labels yet" if not counts.n_late else "every label came later than the maturity"
    else:
        reason = "no label or score that can be used"
    return {name: Estimate.missing(reason) for name in found}


def _of_classes(
    scores: NDArray[np.float64], labels: NDArray[np.float64], classes: Classes
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A version's own columns of scores, and the rows whose label is one of its classes and that have all of them."""
    own = scores[:, list(classes.places)]
    is_good = np.isfinite(own).all(axis=1) & (labels >= 0) & (labels < own.shape[1]) & (labels == np.floor(labels))
    return own[is_good], labels[is_good]


def _notes(groups: list[GroupPerformance], cohort: Cohort, delay: DelayCurve, task: Task, one_in: int) -> list[str]:
    """What qualifies the figures, most important first."""
    total = {name: sum(getattr(g.counts, name) for g in groups) for name in vars(Counts())}
    notes = []
    if not delay.n_labelled:
        notes.append("No labels have come. Send them with `tiercel feedback` or POST /feedback.")
    elif cohort.maturity_us is None:
        few = delay.n_labelled < LEAST_LABELS  # else it was asked for
        notes.append(
            f"{f'Too few labels ({delay.n_labelled}) to tell how long they take: fresh' if few else 'Fresh'} predictions are "
            f"judged by the labels that came first, which may differ from those to come."
        )
    elif not delay.is_level:
        notes.append(
            "Labels were still coming at half the age of the oldest prediction: how long they take is not known well yet."
        )
    if cohort.maturity_us is not None and total["n_late"]:
        notes.append(
            f"{total['n_late']:,} labels came later than the maturity and are left out, in old windows as in new."
        )
    if total["n_bad_label"]:
        what = "neither 0 nor 1" if task is Task.BINARY else "not finite"
        notes.append(f"{total['n_bad_label']:,} labels are {what} and are left out.")
    if total["n_bad_score"]:
        notes.append(
            f"{total['n_bad_score']:,} labelled predictions have a score that is null or not finite and are left out."
        )
    if total["n_degraded"]:
        notes.append(
            f"{total['n_degraded']:,} predictions were not the model's own answer (degraded) and are left out."
        )
    if one_in > 1:
        notes.append(f"Figures are of one request in {one_in}, by a hash of its id; counts are of all.")
    return notes


def absence(outcomes: Outcomes) -> list[str]:
    """What to say where there are no predictions: when the newest were."""
    ((newest,),) = outcomes.run(
        f"SELECT strftime(make_timestamp(max(t)), '%Y-%m-%d %H:%M:%S') FROM ({outcomes.known()})"
    )
    return ["No predictions in this time." + (f" The newest before it is of {newest} UTC." if newest else "")]
