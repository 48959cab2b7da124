"""Which features moved the mean score, and by how much each.

Attributions add up: a row's margin is what is expected plus a part for each feature. So the difference of two samples' mean
margins is, exactly, the sum of the differences of the features' mean attributions; "17 of 50 features drifted" becomes "the
score rose by 0.31, of which 0.24 through the delay". A feature that drifted and moved nothing has no part in it.

How rows are explained is a function that is passed in; this module knows no model. Rows are drawn from the prediction table,
or kept from the training set. Uncertainty is that of the draw: rows of one request share what they are asked about, so
requests count as the units (a ratio estimator; Cochran 1977, section 9A).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.monitor.drift_words import WORDS
from tiercel.monitor.multivariate import draw_both
from tiercel.monitor.multivariate_words import describe_change, many
from tiercel.monitor.row_samples import feature_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import duckdb
    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.journal import PlanDeclaration
    from tiercel.monitor.row_samples import RowSample
    from tiercel.monitor.training_rows import TrainingRows
    from tiercel.types import Attributions

    Explain = Callable[[NDArray[np.float32]], Attributions]

#: Rows of either side that are explained by default.
ROWS: Final = 2_000
#: Requests of either side without which nothing is said.
LEAST_REQUESTS: Final = 20
#: Standard errors from which a shift is not chance.
CERTAIN: Final = 3.0
#: Features that sentences name.
N_NAMED: Final = 3


@dataclass(frozen=True)
class FeatureShift:
    """One feature's part.

    Attributes:
        name: of the feature.
        shift: difference of its mean attributions.
        standard_error: of that.
        mean, reference_mean: its mean attribution in the window and in what it is compared with.
        median, reference_median: of its present values; None without values, and of a category.
        change: what became of its values, in words.
    """

    name: str
    shift: float
    standard_error: float
    mean: float
    reference_mean: float
    median: float | None
    reference_median: float | None
    change: str

    @property
    def is_certain(self) -> bool:
        """Whether chance does not explain it."""
        return abs(self.shift) > CERTAIN * self.standard_error


@dataclass(frozen=True)
class ScoreShift:
    """What moved a version's mean score between a window and what it is compared with.

    Attributes:
        model, version: registered name and number.
        against: "training", "previous" or "last-week".
        begin_us, end_us, reference_begin_us, reference_end_us: the stretches; 0 and 0 of the training set.
        n_rows, n_reference: rows explained of each; n_requests, n_reference_requests: requests that they belong to.
        n_available, n_reference_available: rows that they were drawn from.
        kind, scale, output: of the attributions, "" and None where nothing was explained.
        margin, reference_margin: mean of what the attributions add up to; None where nothing was explained.
        shift, standard_error: of it.
        score, reference_score: mean score that was answered for these rows; None where that is not known.
        features: all of them, the largest part first; empty where nothing was explained. They add up to `shift`.
        meaning: one sentence.
        notes: what a reader must know, in sentences.
    """

    model: str
    version: int
    against: str
    begin_us: int
    end_us: int
    reference_begin_us: int
    reference_end_us: int
    n_rows: int
    n_reference: int
    n_requests: int
    n_reference_requests: int
    n_available: int
    n_reference_available: int
    kind: str
    scale: str
    output: str | None
    margin: float | None
    reference_margin: float | None
    shift: float | None
    standard_error: float | None
    score: float | None
    reference_score: float | None
    features: tuple[FeatureShift, ...]
    meaning: str
    notes: tuple[str, ...]

    @property
    def is_certain(self) -> bool:
        """Whether chance does not explain the whole."""
        return self.shift is not None and abs(self.shift) > CERTAIN * (self.standard_error or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is null."""
        return {
            **asdict(self),
            "is_certain": self.is_certain,
            "features": [asdict(each) for each in self.features],
            "notes": list(self.notes),
        }


def score_shift(
    connection: duckdb.DuckDBPyConnection,
    plan: PlanDeclaration,
    explain: Explain,
    *,
    begin_us: int,
    end_us: int,
    against: str = "previous",
    most_rows: int = ROWS,
    seed: int = 0,
    training: TrainingRows | None = None,
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
) -> ScoreShift:
    """Draw rows of a window and of what it is compared with, explain them, and compare the means.

    Args:
        connection: with the view `predictions`.
        plan: what the version declared.
        explain: of the version: rows, float32 (n, n_features) -> attributions.
        begin_us: of the window, microseconds since the epoch.
        end_us: likewise; rows of this moment are not in it.
        against: "previous", "last-week" or "training".
        most_rows: drawn of either side.
        seed: of the draw.
        training: the version's own rows, for "training"; None: none are kept.
        categories: the bins of features that are categories.

    Raises:
        ValueError: a stretch that does not end after it begins, or a bound that is none.
        OutcomesError: the predictions cannot be read.
        ModelError: the rows cannot be explained.
    """
    if end_us <= begin_us or most_rows < 1:
        raise ValueError(f"Expected a stretch of time and rows, got {end_us - begin_us} us and {most_rows}")
    columns, masked = feature_columns(connection, plan)
    window, beside = draw_both(
        connection, columns, plan, begin_us=begin_us, end_us=end_us, against=against, most=most_rows, seed=seed,
        training=training, with_scores=plan.n_outputs == 1,
    )  # fmt: skip
    return shift_of_samples(
        plan.model, plan.version, tuple(columns), window, beside, explain, against=against, masked=masked,
        categories=categories,
    )  # fmt: skip


def shift_of_samples(
    model: str,
    version: int,
    features: Sequence[str],
    window: RowSample,
    beside: RowSample,
    explain: Explain,
    *,
    against: str,
    masked: Sequence[str] = (),
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
) -> ScoreShift:
    """Explain two samples and compare the means.

    Args:
        model: registered name.
        version: registered number.
        features: of the samples' columns, as the model takes them.
        window: rows of the window.
        beside: rows that it is compared with.
        explain: see `score_shift`.
        against: what `beside` is.
        masked: features that the table does not show: then nothing can be explained.
        categories: see `score_shift`.

    Raises:
        ModelError: the rows cannot be explained.
    """
    problem = _problem(window, beside, against, masked)
    found: tuple[FeatureShift, ...] = ()
    kind, scale, output = "", "", None
    margins: tuple[float, float] | None = None
    error = math.nan
    if not problem:
        now, before = (explain(np.ascontiguousarray(side.values, np.float32)) for side in (window, beside))
        kind, scale, output = now.kind, now.scale, now.output
        found = _by_feature(features, window, beside, now, before, against, categories)
        sides = [_Side.of(sample, each) for sample, each in ((window, now), (beside, before))]
        margins = sides[0].mean, sides[1].mean
        error = math.hypot(sides[0].error, sides[1].error)
    scores = [_mean_score(side) for side in (window, beside)]
    return ScoreShift(
        model=model,
        version=version,
        against=against,
        begin_us=window.begin_us,
        end_us=window.end_us,
        reference_begin_us=beside.begin_us,
        reference_end_us=beside.end_us,
        n_rows=window.n,
        n_reference=beside.n,
        n_requests=window.n_requests,
        n_reference_requests=beside.n_requests,
        n_available=window.n_available,
        n_reference_available=beside.n_available,
        kind=kind,
        scale=scale,
        output=output,
        margin=None if margins is None else margins[0],
        reference_margin=None if margins is None else margins[1],
        shift=None if margins is None else margins[0] - margins[1],
        standard_error=None if margins is None else error,
        score=scores[0],
        reference_score=scores[1],
        features=found,
        meaning=problem
        or describe_shift_of_score(found, margins or (0.0, 0.0), error, (scores[0], scores[1]), scale, against),
        notes=_notes(window, beside),
    )


def describe_shift_of_score(
    features: Sequence[FeatureShift],
    margins: tuple[float, float],
    error: float,
    scores: tuple[float | None, float | None],
    scale: str,
    against: str,
) -> str:
    """One sentence.

    Args:
        features: the largest part first.
        margins: means now and before.
        error: standard error of their difference.
        scores: mean scores now and before, where they are known.
        scale: "margin" or "probability".
        against: what is compared with.
    """
    shift = margins[0] - margins[1]
    what = "mean margin" if scale == "margin" else "mean score"
    told = f"{shift:+.3g} from {margins[1]:.3g} in {WORDS[against]}"
    moved = [each for each in features if each.is_certain][:N_NAMED]
    parts = ", ".join(f"{each.name} {each.shift:+.3g}" for each in moved)
    if abs(shift) <= CERTAIN * error:
        text = f"The {what} is not moved beyond chance ({told}, standard error {error:.2g})"
        return f"{text}; parts that cancel out: {parts}." if parts else f"{text}."
    way = "rose" if shift > 0 else "fell"
    answered = ""
    if scale == "margin" and scores[0] is not None and scores[1] is not None:
        answered = f" (mean score {scores[0]:.3g}, was {scores[1]:.3g})"
    chiefly = f", chiefly through {parts}" if parts else ", through many features a little"
    return f"The {what} {way}: {told}{answered}{chiefly}."


@dataclass(frozen=True)
class _Side:
    """Mean of the margins of one sample, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, sample: RowSample, attributed: Attributions) -> _Side:
        margins = attributed.values.sum(axis=1) + attributed.expected
        return cls(float(margins.mean()), float(_errors(margins[:, None], sample.requests)[0]))


def _by_feature(
    features: Sequence[str],
    window: RowSample,
    beside: RowSample,
    now: Attributions,
    before: Attributions,
    against: str,
    categories: Mapping[str, CategoryBins],
) -> tuple[FeatureShift, ...]:
    """All features, the largest part first."""
    means = now.values.mean(axis=0), before.values.mean(axis=0)
    squares = np.zeros(len(features))
    for sample, each in ((window, now), (beside, before)):
        squares += _errors(each.values, sample.requests) ** 2
        if each.standard_error is not None:  # of the draws within rows, on top of that of the rows
            squares += (each.standard_error**2).sum(axis=0) / sample.n**2
    shifts, errors = means[0] - means[1], np.sqrt(squares)
    found = []
    for i in np.argsort(-np.abs(shifts), kind="stable").tolist():
        values = window.values[:, i], beside.values[:, i]
        mix = categories.get(features[i])
        medians = [
            float(np.median(present)) if mix is None and len(present := side[~np.isnan(side)]) else None
            for side in values
        ]
        found.append(
            FeatureShift(
                name=features[i],
                shift=float(shifts[i]),
                standard_error=float(errors[i]),
                mean=float(means[0][i]),
                reference_mean=float(means[1][i]),
                median=medians[0],
                reference_median=medians[1],
                change=describe_change(values[0], values[1], None, 0.0, 0.0, against, mix),
            )
        )
    return tuple(found)


def _errors(values: NDArray[np.float64], requests: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard errors of the columns' means over rows, with requests as units: float64 (n_columns,)."""
    n, n_requests = len(values), int(requests.max()) + 1
    if n_requests < 2:
        return np.full(values.shape[1], np.inf)
    apart = values - values.mean(axis=0)
    if n_requests < n:
        sums = np.zeros((n_requests, values.shape[1]))
        np.add.at(sums, requests, apart)
        apart = sums
    return np.asarray(np.sqrt((apart * apart).sum(axis=0) * n_requests / (n_requests - 1)) / n)


def _problem(window: RowSample, beside: RowSample, against: str, masked: Sequence[str]) -> str:
    """Why nothing can be said; empty where something can."""
    nothing = "What moved the score cannot be said:"
    if masked:
        return f"{nothing} {', '.join(masked)} {'is' if len(masked) == 1 else 'are'} masked in the prediction table."
    if not window.n:
        return f"{nothing} no prediction with features was served in the window."
    if not beside.n:
        kept = "no rows of the training set are kept with the version" if against == "training" else ""
        return f"{nothing} {kept or f'no prediction with features was served in {WORDS[against]}'}."
    if min(window.n_requests, beside.n_requests) < LEAST_REQUESTS:
        n, of = window.n_requests, "requests" if beside.end_us else "rows"
        return (
            f"{nothing} {many(n, 'request')} in the window and {beside.n_requests:,} {of} in {WORDS[against]}, and "
            f"{LEAST_REQUESTS} of either are needed."
        )
    return ""


def _mean_score(sample: RowSample) -> float | None:
    if sample.scores is None or not np.isfinite(sample.scores).any():
        return None
    return float(np.mean(sample.scores[np.isfinite(sample.scores)]))


def _notes(window: RowSample, beside: RowSample) -> tuple[str, ...]:
    notes = []
    for what, sample in (("window", window), ("comparison", beside)):
        if sample.n_without:
            notes.append(f"{many(sample.n_without, 'row')} of the {what} had no features (a last score or a default).")
        if sample.n < sample.n_available:
            notes.append(f"{sample.n:,} of the {what}'s {sample.n_available:,} rows were drawn and explained.")
    return tuple(notes)
