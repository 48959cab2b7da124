"""One feature, or one output's score, beside its reference: distances, limits, and the judgement with its reason."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.monitor import distances
from tiercel.monitor.drift_words import WORDS, describe_missing, describe_shift
from tiercel.monitor.reference import MISSING
from tiercel.monitor.tails import chi_square_tail
from tiercel.monitor.thresholds import distribution_noise, share_noise, value_bins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Smallest change of a share of missing values that matters.
LEAST_SHARE = 0.01


class Verdict(enum.StrEnum):
    """What is to be said of one feature or score."""

    STABLE = "stable"
    DRIFT = "drift"  # its values are distributed otherwise
    MISSING = "missing"  # it is missing more often, or less, than it was
    TOO_FEW = "too few rows"  # no distance could be told from chance
    NOT_COMPARABLE = "not comparable"  # there is nothing to compare with


@dataclass(frozen=True)
class FeatureDrift:
    """One feature, or one output's score, beside its reference. Shares and distances are NaN where nothing is known.

    Attributes:
        name: of the feature; `score` or `score[i]`.
        kind: "feature" or "score".
        verdict, reason: the judgement, and one sentence why.
        effect: Jensen-Shannon distance to base 2 between present values, 0 to 1.
        threshold: `effect` from which it is drift, for this number of rows.
        p_value: probability of such an effect by chance.
        n_rows, n_missing: of the window.
        n_reference: rows of the reference with a value.
        psi, kolmogorov_smirnov, cramers_v: of the same bins.
        wasserstein: in the feature's unit.
        wasserstein_sd: ... in standard deviations of the reference.
        chi_square, chi_square_freedom, chi_square_p: of the table of both samples.
        missing_share, reference_missing_share: of all rows.
        missing_low, missing_high: the share of missing values outside of which it is not chance.
        missing_p: probability of the share by chance.
        out_of_range_share: of present values, outside of the reference's edges.
        reference_out_of_range_share: likewise of the reference; 0 for training.
        new_category_share: the same share for a feature that has a bin per value; None for others.
        median, reference_median: from the bins.
    """

    name: str
    kind: str
    verdict: Verdict
    reason: str
    effect: float
    threshold: float
    p_value: float
    n_rows: int
    n_missing: int
    n_reference: int
    psi: float
    kolmogorov_smirnov: float
    cramers_v: float
    wasserstein: float
    wasserstein_sd: float
    chi_square: float
    chi_square_freedom: int
    chi_square_p: float
    missing_share: float
    reference_missing_share: float
    missing_low: float
    missing_high: float
    missing_p: float
    out_of_range_share: float
    reference_out_of_range_share: float
    new_category_share: float | None
    median: float
    reference_median: float

    @property
    def is_alarm(self) -> bool:
        """Whether it says that something changed."""
        return self.verdict in {Verdict.DRIFT, Verdict.MISSING}

    @property
    def strength(self) -> float:
        """Effect in thresholds: what features are ranked by. A change of missing values counts by its share."""
        strength = self.effect / self.threshold if math.isfinite(self.effect) and self.threshold > 0 else 0.0
        if self.verdict is Verdict.MISSING:
            strength = max(strength, 1 + abs(self.missing_share - self.reference_missing_share) / LEAST_SHARE)
        return strength


@dataclass(frozen=True)
class Limits:
    """What all features of a report are judged by. `alpha`s are of one feature."""

    against: str
    alpha: float
    missing_alpha: float
    least_effect: float


def compare(
    limits: Limits,
    kind: str,
    names: Sequence[str],
    edges: NDArray[Any],
    counts: NDArray[np.uint64],
    before: NDArray[np.uint64],
    dispersion: NDArray[np.float64],
) -> tuple[FeatureDrift, ...]:
    """All features, or all scores."""
    bins, known = value_bins(counts), value_bins(before)
    missing, known_missing = counts[:, MISSING].astype(np.int64), before[:, MISSING].astype(np.int64)
    at = distances.places(edges)
    discrete = distances.is_discrete(edges)
    n_finite = np.isfinite(edges).sum(axis=1)
    exists = np.arange(bins.shape[1]) <= n_finite[:, None]
    effects = distances.jensen_shannon(known, bins)
    psi = distances.psi(known, bins, used=exists)
    ks, v = distances.kolmogorov_smirnov(known, bins), distances.cramers_v(known, bins)
    moved, spread = distances.wasserstein(known, bins, at), distances.spread(known, at)
    statistic, freedom = distances.chi_square(known, bins)
    outside, known_outside = _outside(bins, n_finite), _outside(known, n_finite)
    found = []
    for i, name in enumerate(names):
        n, m = int(bins[i].sum()), int(known[i].sum())
        n_missing, n_known_missing = int(missing[i]), int(known_missing[i])
        has_edges = bool(n_finite[i])
        limit, p_value = math.nan, math.nan
        if n and m and has_edges:
            noise = distribution_noise(
                known[i], bins[i], limits.alpha, float(dispersion[i]), has_values=bool(discrete[i])
            )
            limit, p_value = noise.limit, noise.p_value
        low, high, missing_p = -1.0, 2.0, math.nan
        if n + n_missing and m + n_known_missing:
            low, high, missing_p = share_noise(
                n + n_missing,
                n_missing,
                n_known_missing,
                m + n_known_missing,
                limits.missing_alpha,
                float(dispersion[i]),
            )
        share = n_missing / (n + n_missing) if n + n_missing else math.nan
        known_share = n_known_missing / (m + n_known_missing) if m + n_known_missing else math.nan
        effect = float(effects[i]) if has_edges else math.nan
        threshold = max(limits.least_effect, limit)
        is_missing = (share >= high or share <= low) and abs(
            share - known_share
        ) >= LEAST_SHARE  # False where either is NaN
        is_drift = effect >= threshold and threshold <= 1
        middles = _median(bins[i], edges[i], bool(discrete[i])), _median(known[i], edges[i], bool(discrete[i]))
        verdict, reason = _judge(
            limits.against,
            is_drift=is_drift,
            is_missing=is_missing,
            rows=(n, n_missing, m, n_known_missing),
            distance=(effect, threshold, limit),
            has_edges=has_edges,
            is_constant=m > 0 and int(known[i].max()) == m,
            drift_words=describe_shift(
                edges[i].astype(np.float64), bool(discrete[i]), known[i], bins[i], WORDS[limits.against]
            )
            if n and m and has_edges
            else "",
            missing_words=describe_missing(share, known_share, WORDS[limits.against]),
        )
        found.append(
            FeatureDrift(
                name=name,
                kind=kind,
                verdict=verdict,
                reason=reason,
                effect=effect,
                threshold=threshold if has_edges and n and m else math.nan,
                p_value=p_value,
                n_rows=n,
                n_missing=n_missing,
                n_reference=m,
                psi=float(psi[i]) if has_edges else math.nan,
                kolmogorov_smirnov=float(ks[i]) if has_edges else math.nan,
                cramers_v=float(v[i]) if has_edges else math.nan,
                wasserstein=float(moved[i]) if has_edges else math.nan,
                wasserstein_sd=float(moved[i] / spread[i]) if has_edges and spread[i] > 0 else math.nan,
                chi_square=float(statistic[i]) if has_edges else math.nan,
                chi_square_freedom=int(freedom[i]),
                chi_square_p=chi_square_tail(float(statistic[i]), int(freedom[i]))
                if n and m and has_edges
                else math.nan,
                missing_share=share,
                reference_missing_share=known_share,
                missing_low=low,
                missing_high=high,
                missing_p=missing_p,
                out_of_range_share=float(outside[i]) if has_edges else math.nan,
                reference_out_of_range_share=float(known_outside[i]) if has_edges else math.nan,
                new_category_share=float(outside[i]) if discrete[i] else None,
                median=middles[0],
                reference_median=middles[1],
            )
        )
    return tuple(found)


def _judge(
    against: str,
    *,
    is_drift: bool,
    is_missing: bool,
    rows: tuple[int, int, int, int],
    distance: tuple[float, float, float],
    has_edges: bool,
    is_constant: bool,
    drift_words: str,
    missing_words: str,
) -> tuple[Verdict, str]:
    """The verdict on one feature and the sentence that explains it."""
    n, n_missing, m, n_known_missing = rows
    effect, threshold, limit = distance
    words = WORDS[against]
    if is_drift and is_missing:
        return Verdict.DRIFT, f"{drift_words}; it is also {missing_words}"
    if is_drift:
        return Verdict.DRIFT, drift_words
    if is_missing:
        return Verdict.MISSING, missing_words[:1].upper() + missing_words[1:]
    if not m + n_known_missing:
        return Verdict.NOT_COMPARABLE, f"Nothing was counted in {words}"
    if not n + n_missing:
        return Verdict.TOO_FEW, "No rows in this window"
    if not has_edges or not m:
        if not n or not (has_edges or m):
            return Verdict.STABLE, f"Always missing, as in {words}"
        return Verdict.NOT_COMPARABLE, f"{words[:1].upper()}{words[1:]} has no values of it to compare with"
    if not n:
        return Verdict.TOO_FEW, f"No present values in {n_missing:,} rows; {missing_words}"
    if threshold > 1:
        return Verdict.TOO_FEW, f"{n:,} rows are too few: chance alone could make any distance"
    if is_constant and effect == 0:
        return Verdict.STABLE, f"One value only, as in {words}"
    if effect >= limit:
        return Verdict.STABLE, f"Differs from {words} for certain, but by too little to matter"
    return Verdict.STABLE, f"As far from {words} as chance puts it"


def _median(bins: NDArray[np.float64], edges: NDArray[Any], discrete: bool) -> float:
    """Median from bins, straight between edges; the edge itself where bins are values. NaN when empty."""
    finite = edges[np.isfinite(edges)].astype(np.float64)
    total = bins.sum()
    if not total or not len(finite):
        return math.nan
    cumulative = np.cumsum(bins)
    i = int(np.searchsorted(cumulative, total / 2))
    if i == 0:
        return float(finite[0])
    if i >= len(finite):
        return float(finite[-1])
    if discrete:
        return float(finite[i - 1])
    before = cumulative[i - 1]
    return float(finite[i - 1] + (finite[i] - finite[i - 1]) * (total / 2 - before) / bins[i])


def _outside(bins: NDArray[np.float64], n_finite: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of values below the first edge or from the last one on."""
    above = np.where(np.arange(bins.shape[1]) >= n_finite[:, None], bins, 0).sum(axis=1)
    total = bins.sum(axis=1)
    below = np.where(n_finite > 0, bins[:, 0], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, (below + above) / total, np.nan))
