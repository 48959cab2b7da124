"""One feature, or one output's score, beside its reference: distances, limits, and the judgement with its reason."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.monitor import distances
from tiercel.monitor.drift_words import WORDS, describe_missing, describe_mix, describe_shift
from tiercel.monitor.reference import MISSING
from tiercel.monitor.tails import chi_square_tail
from tiercel.monitor.thresholds import EACH_PART, distribution_noise, ordered_noise, share_noise, value_bins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins

#: Smallest change of a share of missing values that matters: with thousands of rows a change of one point is certain, and
#: a feature that is missing for one more entity in a hundred is no broken feed.
LEAST_SHARE = 0.05


class Verdict(enum.StrEnum):
    """What is to be said of one feature or score."""

    STABLE = "stable"
    DRIFT = "drift"  # its values are distributed otherwise
    MISSING = "missing"  # it is missing more often, or less, than it was
    TOO_FEW = "too few rows"  # no distance could be told from chance
    NOT_COMPARABLE = "not comparable"  # there is nothing to compare with


@dataclass(frozen=True)
class CategoryShare:
    """What one bin of a category holds.

    Attributes:
        label: in words: a category, some rare ones, or "new categories".
        names: of the categories, as far as they are known; see `CategoryGroup`.
        n_categories: that the bin is of; None of new categories, and where what codes mean is not known.
        share, reference_share: of present values; NaN where there are none.
    """

    label: str
    names: tuple[str, ...]
    n_categories: int | None
    share: float
    reference_share: float


@dataclass(frozen=True)
class FeatureDrift:
    """One feature, or one output's score, beside its reference. Shares and distances are NaN where nothing is known.

    A feature that is a category has no order: its `kolmogorov_smirnov`, `wasserstein` and medians are NaN, its measure is "js".

    Attributes:
        name: of the feature; `score` or `score[i]`.
        kind: "feature" or "score".
        verdict, reason: the judgement, and one sentence why.
        measure: which of the two distances between present values `effect` is: "js" or "ks", the one that is further beyond,
            or closer to, its threshold.
        effect: of `measure`, 0 to 1.
        threshold: `effect` from which it is drift, for this number of rows.
        p_value: probability by chance of either distance being as improbable.
        jensen_shannon: distance to base 2: any change of the distribution.
        kolmogorov_smirnov: largest difference of the distribution functions: a shift of everything.
        n_rows, n_missing: of the window.
        n_reference: rows of the reference with a value.
        psi, cramers_v: of the same bins.
        wasserstein: in the feature's unit.
        wasserstein_sd: ... in standard deviations of the reference.
        chi_square, chi_square_freedom, chi_square_p: of the table of both samples.
        missing_share, reference_missing_share: of all rows.
        missing_low, missing_high: the share of missing values outside of which it is not chance.
        missing_p: probability of the share by chance.
        out_of_range_share: of present values, outside of the reference's edges.
        reference_out_of_range_share: likewise of the reference; 0 for training.
        new_category_share: the same share for a category and for a feature that has a bin per value; None for others.
        median, reference_median: from the bins.
        categories: of a category, the commonest of the reference first; None for others.
    """

    name: str
    kind: str
    verdict: Verdict
    reason: str
    measure: str
    effect: float
    threshold: float
    p_value: float
    n_rows: int
    n_missing: int
    n_reference: int
    jensen_shannon: float
    kolmogorov_smirnov: float
    psi: float
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
    categories: tuple[CategoryShare, ...] | None = None

    @property
    def is_alarm(self) -> bool:
        """Whether it says that something changed."""
        return self.verdict in {Verdict.DRIFT, Verdict.MISSING}

    @property
    def strength(self) -> float:
        """Effect in thresholds: what features are ranked by. A change of missing values counts by its share."""
        strength = self.effect / self.threshold if math.isfinite(self.effect) and self.threshold > 0 else 0.0
        if self.verdict is Verdict.MISSING:
            strength = max(strength, abs(self.missing_share - self.reference_missing_share) / LEAST_SHARE)
        return strength


@dataclass(frozen=True)
class Limits:
    """What all features of a report are judged by. `alpha`s are of one feature."""

    against: str
    alpha: float
    missing_alpha: float
    least_effect: float
    least_share: float = LEAST_SHARE

    def distance(
        self,
        known: NDArray[np.float64],
        bins: NDArray[np.float64],
        effects: dict[str, float],
        dispersion: float,
        *,
        has_values: bool,
    ) -> _Distance:
        """What chance and what matters make of the distances there are ("js", and "ks" in order): the one to be told of."""
        part = EACH_PART if "ks" in effects else 1.0
        alpha = self.alpha * part
        noises = {"js": distribution_noise(known, bins, alpha, dispersion, has_values=has_values)}
        if "ks" in effects:
            noises["ks"] = ordered_noise(known, bins, alpha, dispersion, has_values=has_values)
        thresholds = {name: max(noise.limit, self.least_effect) for name, noise in noises.items()}
        measure = max(noises, key=lambda name: effects[name] / thresholds[name])
        return _Distance(
            measure=measure,
            effect=effects[measure],
            threshold=thresholds[measure],
            p_value=min(1.0, min(noise.p_value for noise in noises.values()) / part),
            is_certain=any(effects[name] >= noise.limit for name, noise in noises.items()),
            is_constant=bool(known.max() == known.sum()),
        )


def compare(
    limits: Limits,
    kind: str,
    names: Sequence[str],
    edges: NDArray[Any],
    counts: NDArray[np.uint64],
    before: NDArray[np.uint64],
    dispersion: NDArray[np.float64],
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
) -> tuple[FeatureDrift, ...]:
    """Judge all features, or all scores.

    Args:
        limits: what they are judged by.
        kind: "feature" or "score".
        names: n of them.
        edges: (n, 24).
        counts: uint64 (n, 28) of the window.
        before: uint64 (n, 28) of what it is compared with; zeros where there is nothing.
        dispersion: float64 (n,), see `thresholds.dispersion_of`.
        categories: of those that are.
    """
    bins, known = value_bins(counts), value_bins(before)
    discrete, at = distances.is_discrete(edges), distances.places(edges)
    n_finite = np.isfinite(edges).sum(axis=1)
    # Without an edge everything finite is in one bin, and nothing is known of how it is distributed.
    bins[n_finite == 0] *= np.nan
    spread = distances.spread(known, at)
    columns = {
        "jensen_shannon": distances.jensen_shannon(known, bins),
        "psi": distances.psi(known, bins),
        "kolmogorov_smirnov": distances.kolmogorov_smirnov(known, bins),
        "cramers_v": distances.cramers_v(known, bins),
        "wasserstein": distances.wasserstein(known, bins, at),
        "chi_square": distances.chi_square(known, bins)[0],
        "out_of_range_share": _outside(bins, n_finite),
        "reference_out_of_range_share": _outside(known, n_finite),
    }
    freedom = distances.chi_square(known, bins)[1]
    named = [categories[name].on(edges[i]) if name in categories else None for i, name in enumerate(names)]
    for ordered in ("kolmogorov_smirnov", "wasserstein"):
        columns[ordered][[each is not None for each in named]] = np.nan
    found = []
    for i, (name, mix) in enumerate(zip(names, named, strict=True)):
        values = {column: float(array[i]) for column, array in columns.items()}
        share = _MissingShare.of(counts[i], before[i], limits, float(dispersion[i]))
        middles = [
            math.nan if mix is not None else _median(each[i], edges[i], discrete=bool(discrete[i]))
            for each in (bins, known)
        ]
        distance, shift = _Distance(), ""
        effect = {"js": values["jensen_shannon"]}
        if mix is None:
            effect["ks"] = values["kolmogorov_smirnov"]
        if math.isfinite(effect["js"]):
            # Of a category all values that training knew have a bin, alone or with others.
            has_values = bool(discrete[i]) or mix is not None
            distance = limits.distance(known[i], bins[i], effect, float(dispersion[i]), has_values=has_values)
            if mix is not None:
                shift = describe_mix(mix, known[i], bins[i], WORDS[limits.against])
            else:
                shift = describe_shift(
                    edges[i].astype(np.float64), has_values, known[i], bins[i], WORDS[limits.against]
                )
        verdict, reason = _judge(distance, share, shift, WORDS[limits.against])
        found.append(
            FeatureDrift(
                name=name,
                kind=kind,
                verdict=verdict,
                reason=reason,
                measure=distance.measure,
                effect=distance.effect,
                threshold=distance.threshold,
                p_value=distance.p_value,
                n_rows=share.n - share.n_missing,
                n_missing=share.n_missing,
                n_reference=share.known_n - share.known_missing,
                wasserstein_sd=values["wasserstein"] / float(spread[i]) if spread[i] > 0 else math.nan,
                chi_square_freedom=int(freedom[i]),
                chi_square_p=chi_square_tail(values["chi_square"], int(freedom[i])) if shift else math.nan,
                missing_share=share.now,
                reference_missing_share=share.known,
                missing_low=share.low,
                missing_high=share.high,
                missing_p=share.p_value,
                new_category_share=values["out_of_range_share"] if discrete[i] or mix is not None else None,
                median=middles[0],
                reference_median=middles[1],
                categories=None if mix is None else _category_shares(mix, known[i], bins[i]),
                **values,
            )
        )
    return tuple(found)


def _category_shares(
    mix: CategoryBins, known: NDArray[np.float64], bins: NDArray[np.float64]
) -> tuple[CategoryShare, ...]:
    """Both shares of every bin, the commonest of the reference first; new categories last, where there are any."""
    now, before = mix.merged(bins), mix.merged(known)
    shares = distances.shares(now), distances.shares(before)
    behind = max(mix.n_edges, 1)
    places = sorted(range(1, behind), key=lambda place: (-before[place], -now[place], place))
    if now[behind] or before[behind]:
        places.append(behind)
    found = []
    for place in places:
        group = mix.group(place)
        found.append(
            CategoryShare(
                label=mix.label(place),
                names=() if group is None else group.names,
                n_categories=None if group is None else group.n,
                share=float(shares[0][place]),
                reference_share=float(shares[1][place]),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class _MissingShare:
    """Missing values among all rows, now and in what is compared with; NaN where there are no rows."""

    n: int
    n_missing: int
    known_n: int
    known_missing: int
    low: float = -1.0
    high: float = 2.0
    p_value: float = math.nan
    least: float = LEAST_SHARE

    @classmethod
    def of(
        cls, counts: NDArray[np.uint64], before: NDArray[np.uint64], limits: Limits, dispersion: float
    ) -> _MissingShare:
        n, k, of, seen = int(counts.sum()), int(counts[MISSING]), int(before.sum()), int(before[MISSING])
        if not n or not of:
            return cls(n, k, of, seen)
        low, high, p_value = share_noise(n, k, seen, of, limits.missing_alpha, dispersion)
        return cls(n, k, of, seen, low, high, p_value, limits.least_share)

    @property
    def now(self) -> float:
        return self.n_missing / self.n if self.n else math.nan

    @property
    def known(self) -> float:
        return self.known_missing / self.known_n if self.known_n else math.nan

    @property
    def has_moved(self) -> bool:
        is_chance = self.low < self.now < self.high
        return not is_chance and abs(self.now - self.known) >= self.least  # NaN is no move


@dataclass(frozen=True)
class _Distance:
    """Between present values; NaN where one side has none, or there are no bins."""

    measure: str = "js"
    effect: float = math.nan
    threshold: float = math.nan
    p_value: float = math.nan
    is_certain: bool = False  # beyond chance, whether it matters or not
    is_constant: bool = False  # what is compared with has one value only


def _judge(distance: _Distance, share: _MissingShare, shift: str, beside: str) -> tuple[Verdict, str]:
    """The verdict on one feature and the sentence that explains it.

    Args:
        distance: of its present values.
        share: of missing ones.
        shift: how the values moved, in words; empty where there is no distance.
        beside: what is compared with, in words.
    """
    missing = describe_missing(share.now, share.known, beside)
    is_drift = distance.threshold <= min(1.0, distance.effect)
    if is_drift:
        return Verdict.DRIFT, f"{shift}; also {missing}" if share.has_moved else shift
    if share.has_moved:
        return Verdict.MISSING, missing[:1].upper() + missing[1:]
    if not share.known_n:
        return Verdict.NOT_COMPARABLE, f"Nothing was counted in {beside}"
    if not share.n:
        return Verdict.TOO_FEW, "No rows in this window"
    if not shift:
        return _without_values(share, beside)
    if distance.threshold > 1:
        return Verdict.TOO_FEW, f"{share.n:,} rows are too few: by chance alone any distance is possible"
    if distance.is_constant and distance.effect == 0:
        return Verdict.STABLE, f"One value only, as in {beside}"
    if distance.is_certain:
        return Verdict.STABLE, f"Differs from {beside} for certain, but by too little to matter"
    return Verdict.STABLE, f"No further from {beside} than chance puts it"


def _without_values(share: _MissingShare, beside: str) -> tuple[Verdict, str]:
    """Of a feature that has rows on both sides, and no distance because of no values, or no bins for them."""
    has_values, had_values = share.n > share.n_missing, share.known_n > share.known_missing
    if not has_values and not had_values:
        return Verdict.STABLE, f"Always missing, as in {beside}"
    if not has_values:
        return Verdict.TOO_FEW, f"All of {share.n:,} rows miss it: too few to say more"
    if not had_values:
        return Verdict.NOT_COMPARABLE, f"It has values now, and {beside} had none to compare with"
    return Verdict.NOT_COMPARABLE, "No bins: the version was registered without its training set"


def _median(bins: NDArray[np.float64], edges: NDArray[Any], *, discrete: bool) -> float:
    """Median from bins, straight between edges; the edge itself where bins are values. NaN when empty."""
    finite = edges[np.isfinite(edges)].astype(np.float64)
    total = bins.sum()
    if not total > 0 or not len(finite):
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
