"""Do a window's rows differ from earlier ones as wholes? The heavier tests, on rows of the prediction table.

Histograms see one feature at a time. Where two features begin to move apart, or a group of rows vanishes that no single value
marks, every histogram may stay as it was; a classifier that is asked which row is of when (`domain_classifier`), distances
between whole rows (`mean_discrepancy`), and the leaves of the model's own trees (`leaf_occupancy`) see that. They take seconds
to minutes, so they run in a command of their own.

Everything is drawn by a seed: the same stretch, bound and seed give the same report, as long as the table has the same rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.monitor.domain_classifier import measure_separation
from tiercel.monitor.exchanges import Units
from tiercel.monitor.feature_drift import Verdict
from tiercel.monitor.leaf_occupancy import measure_occupancy, rank_by_leaves
from tiercel.monitor.mean_discrepancy import ComparableRows, measure_discrepancy, rank_features
from tiercel.monitor.multivariate_words import describe_change, describe_nothing, describe_result, many
from tiercel.monitor.row_samples import draw_rows, empty_sample, feature_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import duckdb
    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.journal import PlanDeclaration
    from tiercel.monitor.leaf_occupancy import Leaves
    from tiercel.monitor.row_samples import RowSample
    from tiercel.monitor.training_rows import TrainingRows

TESTS: Final = ("classifier", "mmd", "leaves")
#: What rows can be compared with: earlier ones, or the sample of the training set that is kept with a version.
AGAINST: Final = ("previous", "last-week", "training")
#: What each test measures.
MEASURES: Final = {"classifier": "auc", "mmd": "mmd2", "leaves": "chi2"}
#: Rows of either side that are drawn by default, and at most.
ROWS, MOST_ROWS = 4_000, 20_000
#: Requests of either side without which there is no verdict: fewer do not fill folds, and chance does too much.
LEAST_REQUESTS: Final = 50
#: Probability of a difference by chance at which it is called drift.
LEVEL: Final = 0.01
#: Features that are named: so many at most, ...
N_TOP: Final = 10
#: ... and only with this part of the strongest one's loss. Less is what shuffling does by itself.
_LEAST_LOSS: Final = 0.1
_WEEK_US, _DAY_US = 7 * 86_400_000_000, 86_400_000_000


@dataclass(frozen=True)
class FeatureShare:
    """What one feature does for the difference.

    Attributes:
        name: of the feature.
        loss: by how much the statistic (AUC, or MMD^2) falls when the feature's values are shuffled.
        median, reference_median: of present values in the window and in what it is compared with; None without values, and
            of a category.
        missing_share, reference_missing_share: of the rows.
        partner: the feature whose rank correlation with this one changed most, where that is beyond chance; otherwise None.
        correlation, reference_correlation: with it.
        change: in words.
    """

    name: str
    loss: float
    median: float | None
    reference_median: float | None
    missing_share: float
    reference_missing_share: float
    partner: str | None
    correlation: float | None
    reference_correlation: float | None
    change: str


@dataclass(frozen=True)
class MultivariateReport:
    """One test of one window.

    Attributes:
        model, version: registered name and number.
        test, against: of `TESTS` and `AGAINST`.
        begin_us, end_us, reference_begin_us, reference_end_us: the two stretches; the training set has none, 0 and 0.
        n_rows, n_reference: rows drawn of each; n_requests, n_reference_requests: requests that they belong to.
        n_available, n_reference_available: rows that there are with features.
        most_rows, seed: of the draw.
        measure: what `statistic` is, of `MEASURES`; "chi2" is half the symmetric chi-square between shares of rows by leaf,
            mean over the trees, from 0 to 1. None is known where nothing was tested.
        statistic: as measured.
        effect: AUC - 0.5, MMD^2, or chi-square beyond what chance has on average: 0 where nothing differs.
        psi: population stability index by leaf, mean over the trees; None of other tests.
        p_value: probability by chance of a statistic as large.
        chance_limit: statistic that chance exceeds once in a hundred times; None where that many were not drawn.
        n_exchanges: of requests between the sides, that p is counted among.
        level: p at and below which it is called drift.
        verdict, meaning: the judgement, and one sentence of what it means.
        features: that carry the difference, most first; empty unless the verdict is drift.
        notes: what a reader must know of the rows, in sentences.
    """

    model: str
    version: int
    test: str
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
    most_rows: int
    seed: int
    measure: str
    statistic: float | None
    effect: float | None
    psi: float | None
    p_value: float | None
    chance_limit: float | None
    n_exchanges: int
    level: float
    verdict: Verdict
    meaning: str
    features: tuple[FeatureShare, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is null."""
        return {**asdict(self), "features": [asdict(each) for each in self.features], "notes": list(self.notes)}


@dataclass(frozen=True)
class _Measured:
    """What a test says. `losses` is of the usable features, in order; empty where there is no difference."""

    statistic: float
    effect: float
    p_value: float
    chance_limit: float | None
    n_exchanges: int
    losses: NDArray[np.float64]
    psi: float | None = None


def multivariate_report(
    connection: duckdb.DuckDBPyConnection,
    plan: PlanDeclaration,
    test: str,
    *,
    begin_us: int,
    end_us: int,
    against: str = "previous",
    most_rows: int = ROWS,
    seed: int = 0,
    leaves_of: Leaves | None = None,
    training: TrainingRows | None = None,
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
    progress: Callable[[int, int], None] | None = None,
) -> MultivariateReport:
    """Draw rows of a window and of what it is compared with, and test them.

    Args:
        connection: with the view `predictions`.
        plan: what the version declared: whose rows, and its features.
        test: one of `TESTS`.
        begin_us: of the window, microseconds since the epoch.
        end_us: likewise; rows of this moment are not in it.
        against: "previous" (the stretch of the same length before), "last-week" (the same, seven days before) or "training".
        most_rows: drawn of either side, up to `MOST_ROWS`.
        seed: of everything that is drawn.
        leaves_of: of the version's forest: rows, float32 (n, n_features) -> leaves, int32 (n, n_trees); for "leaves".
        training: the version's own; for "training".
        categories: the bins of features that are categories, for words.
        progress: called with (done, total).

    Raises:
        ValueError: another test or comparison, a stretch that does not end after it begins, a bound that is none, or no
            `leaves_of` or `training` where they are needed.
        OutcomesError: the predictions cannot be read.
        MissingExtraError: the classifier needs LightGBM.
    """
    if test not in TESTS or against not in AGAINST or end_us <= begin_us or not 0 < most_rows <= MOST_ROWS:
        raise ValueError(
            f"Expected one of {', '.join(TESTS)} against one of {', '.join(AGAINST)}, a stretch of time and 1 to "
            f"{MOST_ROWS} rows; got {test}, {against}, {end_us - begin_us} us and {most_rows}"
        )
    if against == "training" and training is None:
        raise ValueError("Expected rows of the training set to compare with")
    columns, masked = feature_columns(connection, plan)
    window, beside = draw_both(
        connection, columns, plan, begin_us=begin_us, end_us=end_us, against=against, most=most_rows, seed=seed,
        training=training,
    )  # fmt: skip
    return compare_samples(
        plan.model, plan.version, tuple(columns), window, beside, test=test, against=against, masked=masked,
        most_rows=most_rows, seed=seed, leaves_of=leaves_of, categories=categories, progress=progress,
    )  # fmt: skip


def draw_both(
    connection: duckdb.DuckDBPyConnection,
    columns: Mapping[str, str],
    plan: PlanDeclaration,
    *,
    begin_us: int,
    end_us: int,
    against: str,
    most: int,
    seed: int = 0,
    training: TrainingRows | None = None,
    with_scores: bool = False,
) -> tuple[RowSample, RowSample]:
    """Rows of a window and of what it is compared with; see `multivariate_report` and `draw_rows` for the arguments.

    Raises:
        OutcomesError: the predictions cannot be read.
    """
    back_us = end_us - begin_us if against == "previous" else _WEEK_US
    window, *earlier = (
        draw_rows(
            connection, columns, plan.model, plan.version,
            begin_us=begin_us - back, end_us=end_us - back, most=most, seed=seed, with_scores=with_scores,
        )
        for back in ((0,) if against == "training" else (0, back_us))
    )  # fmt: skip
    if training is None:
        return window, earlier[0] if earlier else empty_sample(len(columns))
    if against != "training":
        return window, earlier[0]
    return window, training.sample(tuple(columns))


def compare_samples(
    model: str,
    version: int,
    features: Sequence[str],
    window: RowSample,
    beside: RowSample,
    *,
    test: str,
    against: str,
    masked: Sequence[str] = (),
    most_rows: int = ROWS,
    seed: int = 0,
    leaves_of: Leaves | None = None,
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
    progress: Callable[[int, int], None] | None = None,
) -> MultivariateReport:
    """Test two samples.

    Args:
        model: registered name.
        version: registered number.
        features: of the samples' columns.
        window: rows of the window, in random order.
        beside: rows that it is compared with, likewise.
        test: one of `TESTS`.
        against: one of `AGAINST`.
        masked: features that the table does not show.
        most_rows: that the samples were drawn with.
        seed: of everything that is drawn.
        leaves_of: for "leaves", see `multivariate_report`; it takes all features in the samples' order.
        categories: see `multivariate_report`.
        progress: called with (done, total).

    Raises:
        ValueError: no `leaves_of` for "leaves".
        MissingExtraError: the classifier needs LightGBM.
    """
    if test == "leaves" and leaves_of is None:
        raise ValueError("Expected leaves_of, which the test of leaves needs")
    rows = np.concatenate([beside.values, window.values])
    usable, notes = _usable(features, rows, masked)
    notes = [*_notes(window, beside, most_rows, seed), *notes]
    verdict, meaning = Verdict.STABLE, ""
    if not window.n_available or not beside.n_available:
        verdict = Verdict.TOO_FEW if not window.n_available else Verdict.NOT_COMPARABLE
    elif min(window.n_requests, beside.n_requests) < LEAST_REQUESTS:
        verdict = Verdict.TOO_FEW
    elif not usable or (test == "leaves" and masked):
        verdict = Verdict.NOT_COMPARABLE
    measured = None
    found: tuple[FeatureShare, ...] = ()
    if verdict is not Verdict.STABLE:
        meaning = describe_nothing(
            against, window.n_available, beside.n_available, window.n_requests, beside.n_requests, LEAST_REQUESTS,
            masked if test == "leaves" else (),
        )  # fmt: skip
    else:
        units = Units.of(beside.requests, window.requests)
        if test == "leaves" and leaves_of is not None:
            measured = _occupy(rows, usable, units, leaves_of, seed, progress)
        else:
            measured = (_classify if test == "classifier" else _measure)(rows[:, usable], units, seed, progress)
        if measured.p_value <= LEVEL:
            verdict = Verdict.DRIFT
            told = [features[i] for i in usable]
            found = _shares(told, rows[:, usable], units.rows(), measured.losses, against, categories)
            if against == "previous" and window.end_us - window.begin_us < _DAY_US:
                notes.append("Hours differ by the time of day: --against last-week compares with the same hours.")
        names = [each.name for each in found]
        meaning = describe_result(test, against, measured.statistic, measured.p_value, measured.chance_limit, names)
    return MultivariateReport(
        model=model,
        version=version,
        test=test,
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
        most_rows=most_rows,
        seed=seed,
        measure=MEASURES[test],
        statistic=None if measured is None else measured.statistic,
        effect=None if measured is None else measured.effect,
        psi=None if measured is None else measured.psi,
        p_value=None if measured is None else measured.p_value,
        chance_limit=None if measured is None else measured.chance_limit,
        n_exchanges=0 if measured is None else measured.n_exchanges,
        level=LEVEL,
        verdict=verdict,
        meaning=meaning,
        features=found,
        notes=tuple(notes),
    )


def _classify(
    rows: NDArray[np.float64], units: Units, seed: int, progress: Callable[[int, int], None] | None
) -> _Measured:
    found = measure_separation(rows, units, seed=seed, rank_at=LEVEL, progress=progress)
    return _Measured(found.auc, found.auc - 0.5, found.p_value, found.chance_limit, found.n_exchanges, found.losses)


def _measure(
    rows: NDArray[np.float64], units: Units, seed: int, progress: Callable[[int, int], None] | None
) -> _Measured:
    comparable = ComparableRows.of(rows)
    found = measure_discrepancy(comparable, units, seed=seed, progress=progress)
    losses = np.empty(0)
    if found.p_value <= LEVEL:
        losses = rank_features(comparable, units.rows(), found.bandwidth, seed=seed)
    return _Measured(found.mmd2, found.mmd2, found.p_value, found.chance_limit, found.n_exchanges, losses)


def _occupy(
    rows: NDArray[np.float64],
    usable: Sequence[int],
    units: Units,
    leaves_of: Leaves,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> _Measured:
    vectors = np.ascontiguousarray(rows, np.float32)
    found = measure_occupancy(leaves_of(vectors), units, seed=seed, progress=progress)
    losses = np.empty(0)
    if found.p_value <= LEVEL:
        losses = rank_by_leaves(vectors, units.rows(), leaves_of, seed=seed)[list(usable)]
    effect = found.distance - found.chance_mean
    return _Measured(found.distance, effect, found.p_value, found.chance_limit, found.n_exchanges, losses, found.psi)


def _usable(features: Sequence[str], rows: NDArray[np.float64], masked: Sequence[str]) -> tuple[list[int], list[str]]:
    """Features that could tell rows apart, and sentences on the others."""
    usable, empty, constant = [], [], []
    for i, name in enumerate(features):
        missing = np.isnan(rows[:, i])
        present = rows[~missing, i]
        if not len(present):
            empty.append(name)
        elif missing.any() or (present != present[0]).any():
            usable.append(i)
        else:
            constant.append(name)
    notes = []
    for names, reason in (
        (empty, "no value in any of these rows"),
        (constant, "the same value in all of these rows"),
        (masked, "no numbers in the prediction table, because of [monitor] drop_columns or hash_columns"),
    ):
        if names and len(rows):
            notes.append(f"Left out: {', '.join(names)} ({reason}).")
    return usable, notes


def _notes(window: RowSample, beside: RowSample, most_rows: int, seed: int) -> list[str]:
    """What there is to say of the rows."""
    notes = []
    for what, sample in (("window", window), ("comparison", beside)):
        if sample.n < sample.n_available and not sample.end_us:
            notes.append(f"Compared with {sample.n:,} rows drawn from {sample.n_available:,} of the training set.")
        elif sample.n < sample.n_available:
            notes.append(
                f"{sample.n:,} of the {what}'s {sample.n_available:,} rows were drawn, each as likely as any other "
                f"(at most {most_rows:,} of either side, by seed {seed})."
            )
        if sample.n_without:
            notes.append(
                f"{many(sample.n_without, 'row')} of the {what} {'was' if sample.n_without == 1 else 'were'} answered by a "
                f"last score or a default: without features, left out."
            )
        if sample.n_shadow:
            notes.append(f"{many(sample.n_shadow, 'row')} of the {what} scored as a shadow and not sent, counted in.")
    if window.n > window.n_requests or beside.n > beside.n_requests:
        notes.append("Rows of one request are taken as one piece: they do not vary independently.")
    return notes


def _shares(
    names: Sequence[str],
    rows: NDArray[np.float64],
    is_window: NDArray[np.bool_],
    losses: NDArray[np.float64],
    against: str,
    categories: Mapping[str, CategoryBins],
) -> tuple[FeatureShare, ...]:
    """The features that carry the difference, most first, with what became of each."""
    top = [
        i for i in np.argsort(-losses, kind="stable")[:N_TOP].tolist() if losses[i] > max(0, _LEAST_LOSS * losses.max())
    ]
    partners = _partners(rows, is_window, [name in categories for name in names])
    found = []
    for i in top:
        now, before = rows[is_window, i], rows[~is_window, i]
        mix = categories.get(names[i])
        medians = [
            float(np.median(values)) if len(values) and mix is None else None
            for values in (_present(now), _present(before))
        ]
        missing = float(np.isnan(now).mean()), float(np.isnan(before).mean())
        j, correlation, known = partners[i]
        partner = None if j is None else names[j]
        found.append(
            FeatureShare(
                name=names[i],
                loss=float(losses[i]),
                median=_plain(medians[0]),
                reference_median=_plain(medians[1]),
                missing_share=missing[0],
                reference_missing_share=missing[1],
                partner=partner,
                correlation=None if partner is None else correlation,
                reference_correlation=None if partner is None else known,
                change=describe_change(now, before, partner, correlation, known, against, mix),
            )
        )
    return tuple(found)


def _partners(
    rows: NDArray[np.float64], is_window: NDArray[np.bool_], is_category: Sequence[bool]
) -> list[tuple[int | None, float, float]]:
    """Of each feature the other whose rank correlation with it changed most, and the correlation now and before.

    A category has no rank, and so no partner. A change counts where Fisher's transforms lie 4.5 standard deviations apart: about one in a hundred thousand by chance.
    """
    comparable = ComparableRows.of(rows)
    scores = np.zeros(rows.shape)
    for i, columns in enumerate(comparable.columns):
        if columns and not is_category[i] and np.isfinite(rows[:, i]).any():
            scores[:, i] = comparable.values[:, columns[0]]
    now, before = (_correlations(scores[side]) for side in (is_window, ~is_window))
    with np.errstate(divide="ignore"):
        apart = np.abs(np.arctanh(now) - np.arctanh(before))
    error = math.sqrt(sum(1 / max(1, n - 3) for n in (int(is_window.sum()), int((~is_window).sum()))))
    best = np.argmax(apart, axis=1)
    return [
        (int(j) if apart[i, j] > 4.5 * error else None, float(now[i, j]), float(before[i, j]))
        for i, j in enumerate(best.tolist())
    ]


def _correlations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's, 0 with a constant and with itself, kept off 1 where Fisher's transform ends."""
    apart = scores - scores.mean(axis=0)
    spread = np.sqrt((apart * apart).sum(axis=0))
    scaled = apart / np.where(spread > 1e-9, spread, np.inf)
    found = np.clip(scaled.T @ scaled, -0.9999, 0.9999)
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
