"""What a test of whole rows means, in one sentence, and what became of a feature that carries a difference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.classification import auc
from tiercel.monitor.distances import chi_square
from tiercel.monitor.drift_words import WORDS, describe_mix
from tiercel.monitor.tails import chi_square_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins

#: AUC from which a word holds.
_DEGREES = ((0.95, "almost always"), (0.8, "mostly"), (0.65, "often"), (0.55, "somewhat better than by guessing"))
#: Standard deviations beyond which a feature's own change is told.
_BEYOND = 4.0
#: The probability of as much, on both sides together.
_CHANCE = 6.3e-5


def describe_nothing(
    against: str,
    n_available: int,
    n_reference: int,
    n_requests: int,
    n_reference_requests: int,
    least: int,
    masked: Sequence[str] = (),
) -> str:
    """Why there is no verdict.

    Args:
        against: what is compared with.
        n_available: rows of the window.
        n_reference: rows of the other side.
        n_requests: requests of the window's rows.
        n_reference_requests: likewise of the other side.
        least: requests that are needed of either.
        masked: features that the table does not show though the test needs all.
    """
    beside = WORDS[against]
    if not n_available:
        return "Nothing can be said: no prediction with features was served in the window."
    if masked:
        return (
            f"Nothing can be said: a row's leaves need all features, and {', '.join(masked)} "
            f"{'is' if len(masked) == 1 else 'are'} masked in the prediction table ([monitor] drop_columns, hash_columns)."
        )
    if not n_reference and against == "training":
        return "Nothing can be said: no rows of the training set are kept with the version. Register it with its training set."
    if not n_reference:
        return f"Nothing can be said: no prediction with features was served in {beside}."
    if min(n_requests, n_reference_requests) < least:
        return (
            f"Nothing can be said: {many(n_requests, 'request')} in the window and {n_reference_requests:,} in {beside}, "
            f"and {least} of either are needed."
        )
    return "Nothing can be said: no feature has different values in these rows."


def describe_result(
    test: str, against: str, statistic: float, p_value: float, chance_limit: float | None, names: Sequence[str]
) -> str:
    """One sentence.

    Args:
        test: "classifier", "mmd" or "leaves".
        against: what is compared with.
        statistic: AUC, MMD^2 or chi-square.
        p_value: of it.
        chance_limit: that chance exceeds once in a hundred times, if known.
        names: of the features that carry the difference, most first; none: there is no difference beyond chance.
    """
    beside = WORDS[against]
    chance = f"chance does as much with a probability of {_probability(p_value)}"
    if test == "classifier":
        pairs = f"of a row of each it picks the window's {100 * statistic:.0f} times of 100, where guessing does 50"
        if not names and p_value > 0.01:
            return f"No difference beyond chance: a model cannot tell the window's rows from those of {beside} ({pairs}; {chance})."
        degree = next((word for least, word in _DEGREES if statistic >= least), "a little better than by guessing")
        return f"A model tells the window's rows from those of {beside} {degree}{_chiefly(names)}: {pairs}; {chance}."
    if test == "leaves":
        if not names and p_value > 0.01:
            return f"No difference beyond chance: rows end in the leaves of the model's trees as often as in {beside} ({chance})."
        far = (
            ""
            if not chance_limit
            else f", {statistic / chance_limit:.1f} times what chance stays below 99 times of 100"
        )
        return (
            f"Rows end in other leaves of the model's trees than in {beside}{_chiefly(names)}: the chi-square distance is "
            f"{statistic:.2g} of 1{far}; {chance}."
        )
    if not names and p_value > 0.01:
        return (
            f"No difference beyond chance: rows lie no further from those of {beside} than from each other ({chance})."
        )
    times = (
        ""
        if chance_limit is None or chance_limit <= 0
        else f", {statistic / chance_limit:.1f} times what chance stays below 99 times of 100"
    )
    return f"Rows as wholes lie elsewhere than in {beside}{_chiefly(names)}: MMD^2 is {statistic:.2g}{times}; {chance}."


def describe_change(
    now: NDArray[np.float64],
    before: NDArray[np.float64],
    partner: str | None,
    correlation: float,
    known: float,
    against: str,
    categories: CategoryBins | None = None,
) -> str:
    """What became of a feature, as far as it is beyond chance.

    Args:
        now: its values in the window, float64 (n,), NaN where missing.
        before: likewise of what is compared with.
        partner: a feature whose correlation with it changed, if there is one.
        correlation: with it, rank correlation in the window.
        known: likewise in what is compared with.
        against: what that is.
        categories: its bins, where the values are codes of a category: then which are more and less often.
    """
    parts = []
    shares = [float(np.isnan(values).mean()) for values in (now, before)]
    pooled = (np.isnan(now).sum() + np.isnan(before).sum()) / (len(now) + len(before))
    error = math.sqrt(pooled * (1 - pooled) * (1 / len(now) + 1 / len(before)))
    if error > 0 and abs(shares[0] - shares[1]) > _BEYOND * error:
        parts.append(f"missing in {_percent(shares[0])} of the rows, {_percent(shares[1])} before")
    new, old = now[~np.isnan(now)], before[~np.isnan(before)]
    if len(new) and len(old) and categories is not None:
        counts = categories.count(old), categories.count(new)
        statistic, freedom = chi_square(*counts)
        if chi_square_tail(float(statistic), int(freedom)) < _CHANCE:
            parts.append(describe_mix(categories, *counts, WORDS[against]))
    elif len(new) and len(old):
        area = auc(np.concatenate([new, old]), np.arange(len(new) + len(old)) < len(new)).value or 0.5
        # Mann and Whitney's deviation; ties make it smaller, so this errs on the quiet side.
        if abs(area - 0.5) > _BEYOND * math.sqrt((len(new) + len(old) + 1) / (12 * len(new) * len(old))):
            way = "higher" if area > 0.5 else "lower"
            parts.append(f"{way}: median {np.median(new):.4g}, {np.median(old):.4g} before")
    if partner is not None:
        parts.append(f"correlation with {partner} {correlation:.2f}, {known:.2f} before")
    if not parts and categories is not None:
        return f"no category more or less often than in {WORDS[against]}: together with others, if at all"
    return (
        "; ".join(parts)
        or f"neither higher nor lower than in {WORDS[against]}: differently spread, or together with others"
    )


def many(n: int, noun: str) -> str:
    """A count with its noun."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _chiefly(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = names[:3]
    return f", chiefly by {shown[0]}" if len(shown) == 1 else f", chiefly by {', '.join(shown[:-1])} and {shown[-1]}"


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
