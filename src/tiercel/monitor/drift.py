"""Has the input changed? A window's histograms beside a reference's, feature by feature and score by score.

A feature has drifted where its distance from the reference is both larger than chance makes it (see `thresholds`) and large
enough to matter: with a million rows every difference is beyond chance, with twenty none is. Missing values are judged by
themselves, because a feed that breaks is another cause than a population that moved.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.monitor.drift_words import WORDS
from tiercel.monitor.feature_drift import LEAST_SHARE, FeatureDrift, Limits, Verdict, compare
from tiercel.monitor.thresholds import DISTRIBUTION_PART, FalseAlarmBudget, dispersion_of
from tiercel.monitor.window import Window, empty_window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.reference import Reference
    from tiercel.monitor.windows import WindowStore

__all__ = [
    "AGAINST",
    "Compared",
    "DriftReport",
    "FalseAlarmBudget",
    "FeatureDrift",
    "Verdict",
    "drift_of",
    "drift_report",
    "find_compared",
]

#: Smallest distance that matters. Jensen-Shannon's: about a PSI of 0.06, or 2 % of the rows with a value never seen.
#: Kolmogorov-Smirnov's: a tenth of the rows have moved to one side.
LEAST_EFFECT = 0.1
#: What a window can be compared with.
AGAINST = ("training", "previous", "last-week")
_WEEK_US = 7 * 86_400_000_000
#: So many earlier windows are looked at to learn how much windows vary.
_HISTORY = 24


@dataclass(frozen=True)
class DriftReport:
    """A window beside what it is compared with.

    Attributes:
        model, version: registered name and number.
        against: one of `AGAINST`.
        begin_us, end_us: of the window.
        n_requests, n_rows, n_degraded, n_shadow: see `Window`; n_counted rows are in the histograms.
        n_reference: rows compared with.
        alpha: probability of any false alarm in this report by chance.
        features, scores: in the order of the vector and of the outputs.
        notes: what a reader must know of the counts, in sentences.
    """

    model: str
    version: int
    against: str
    begin_us: int
    end_us: int
    n_requests: int
    n_rows: int
    n_counted: int
    n_degraded: int
    n_shadow: int
    n_reference: int
    alpha: float
    features: tuple[FeatureDrift, ...]
    scores: tuple[FeatureDrift, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the whole: the gravest there is."""
        found = {each.verdict for each in (*self.features, *self.scores)}
        order = (Verdict.DRIFT, Verdict.MISSING, Verdict.STABLE, Verdict.TOO_FEW, Verdict.NOT_COMPARABLE)
        return next((verdict for verdict in order if verdict in found), Verdict.NOT_COMPARABLE)

    @property
    def alarms(self) -> tuple[FeatureDrift, ...]:
        """What changed, strongest first; features before scores of the same strength."""
        found = [each for each in (*self.features, *self.scores) if each.is_alarm]
        return tuple(sorted(found, key=lambda each: -each.strength))

    def top(self, n: int = 5) -> tuple[FeatureDrift, ...]:
        """The n features and scores that are furthest from their reference, strongest first."""
        return tuple(sorted((*self.features, *self.scores), key=lambda each: (not each.is_alarm, -each.strength))[:n])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is null."""
        data = {**asdict(self), "verdict": self.verdict}
        for kind in ("features", "scores"):
            data[kind] = _plain(data[kind])
        data["notes"] = list(self.notes)
        return data


def drift_report(
    reference: Reference | Window | None,
    window: Window,
    *,
    against: str = "training",
    budget: FalseAlarmBudget | None = None,
    history: Sequence[Window] = (),
    least_effect: float = LEAST_EFFECT,
    least_share: float = LEAST_SHARE,
    categories: Mapping[str, CategoryBins] | None = None,
) -> DriftReport:
    """Compare a window with a reference.

    Args:
        reference: what to compare with; None where there is nothing: then it is said, not judged.
        window: what is judged. An empty one has no verdict but "too few rows".
        against: what `reference` is, for words.
        budget: of false alarms; by default one per quarter with a window an hour.
        history: earlier windows of the same length, oldest first: they tell how much windows vary when nothing changes.
        least_effect: a smaller distance is no drift however certain it is.
        least_share: likewise a smaller change of a share of missing values.
        categories: the bins of features that are categories; None: what `reference` says, which a window cannot.
    """
    if categories is None:
        categories = {} if reference is None or isinstance(reference, Window) else reference.categories
    budget = budget or FalseAlarmBudget()
    alpha = budget.alpha
    notes = _notes(window)
    if reference is None:
        notes.append(_NOTHING_TO_COMPARE.get(against, "There is nothing to compare with."))
    elif not window.has_edges_of(reference):
        notes.append(f"The window was counted on other bins than {WORDS[against]}: they cannot be compared.")
        reference = None
    dispersion = dispersion_of(history) if reference is not None else None
    if dispersion is not None:
        n_wide = int((np.concatenate(dispersion) > 1.5).sum())
        if n_wide:
            notes.append(
                f"Thresholds of {n_wide} features or scores are widened: from one earlier window to the next they differ "
                f"by more than independent rows would."
            )
    n_tests = len(window.features) + len(window.score_counts)
    limits = Limits(
        against=against,
        alpha=alpha * DISTRIBUTION_PART / n_tests,
        missing_alpha=alpha * (1 - DISTRIBUTION_PART) / n_tests,
        least_effect=least_effect,
        least_share=least_share,
    )
    blank = empty_window(window.model, window.version, window, 0, 0)
    beside = blank if reference is None else reference
    parts = []
    for kind, names, edges, counts, before in (
        ("feature", window.features, window.feature_edges, window.feature_counts, beside.feature_counts),
        ("score", _score_names(len(window.score_counts)), window.score_edges, window.score_counts, beside.score_counts),
    ):
        factors = np.ones(len(names)) if dispersion is None else dispersion[kind == "score"]
        parts.append(
            compare(limits, kind, names, edges, counts, before, factors, categories if kind == "feature" else {})
        )
    return DriftReport(
        model=window.model,
        version=window.version,
        against=against,
        begin_us=window.begin_us,
        end_us=window.end_us,
        n_requests=window.n_requests,
        n_rows=window.n_rows,
        n_counted=window.n_counted,
        n_degraded=window.n_degraded,
        n_shadow=window.n_shadow,
        n_reference=int(beside.score_counts[0].sum()) if len(beside.score_counts) else 0,
        alpha=alpha,
        features=parts[0],
        scores=parts[1],
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class Compared:
    """What a report is made of.

    Attributes:
        window: what is judged.
        beside: what it is compared with; None where there is nothing.
        history: earlier windows of the same length, oldest first.
        against: what `beside` is.
        is_fallback: nothing was recorded in the stretch that was asked for by itself: the window is the newest there is.
        categories: the bins of features that are categories, as far as the version's reference says.
    """

    window: Window
    beside: Reference | Window | None
    history: tuple[Window, ...]
    against: str
    is_fallback: bool = False
    categories: Mapping[str, CategoryBins] = field(default_factory=dict)

    def report(self, budget: FalseAlarmBudget | None = None) -> DriftReport:
        """The report; by default with a budget of one false alarm per quarter, judged once per window."""
        budget = budget or FalseAlarmBudget(every_us=max(1, self.window.end_us - self.window.begin_us))
        report = drift_report(
            self.beside, self.window, against=self.against, budget=budget, history=self.history,
            categories=self.categories,
        )  # fmt: skip
        if not self.is_fallback:
            return report
        note = "Nothing was recorded by itself in the time asked for: this is the newest window there is."
        return replace(report, notes=(note, *report.notes))


def find_compared(
    store: WindowStore,
    reference: Reference | None,
    model: str,
    version: int,
    *,
    begin_us: int,
    end_us: int,
    against: str = "training",
    or_latest: bool = False,
) -> Compared | None:
    """What there is of a stretch of time; None where nothing was ever counted of the version and it has no reference.

    Args:
        store: of the windows.
        reference: the version's, if it has one.
        model: registered name.
        version: registered number.
        begin_us: of the stretch.
        end_us: likewise.
        against: "training", "previous" (the stretch of the same length before) or "last-week" (the same, seven days before).
        or_latest: take the newest window where it overlaps the stretch and none lies in it: a first record spans all the
            time since the first worker's start.

    Raises:
        ValueError: another `against`, or a stretch that does not end after it begins.
    """
    length_us = end_us - begin_us
    if against not in AGAINST or length_us <= 0:
        raise ValueError(
            f"Expected one of {', '.join(AGAINST)} and a stretch of time, got {against} and {length_us} us"
        )
    window = store.merged(model, version, begin_us, end_us)
    is_fallback = False
    if window is None:
        latest = store.latest(model, version)
        if or_latest and latest is not None and begin_us < latest.end_us <= end_us:
            window, is_fallback = latest, True
        else:
            like = reference or latest
            if like is None:
                return None
            window = empty_window(model, version, like, begin_us, end_us)
    beside: Reference | Window | None = reference
    if against != "training":
        back_us = length_us if against == "previous" else _WEEK_US
        beside = store.merged(model, version, begin_us - back_us, end_us - back_us)
    history = store.series(model, version, begin_us - _HISTORY * length_us, begin_us, length_us)
    categories = {} if reference is None else reference.categories
    return Compared(window, beside, tuple(history), against, is_fallback, categories)


def drift_of(
    store: WindowStore,
    reference: Reference | None,
    model: str,
    version: int,
    *,
    begin_us: int,
    end_us: int,
    against: str = "training",
    budget: FalseAlarmBudget | None = None,
) -> DriftReport | None:
    """The report of a stretch of time from stored windows: `find_compared` and its report."""
    found = find_compared(store, reference, model, version, begin_us=begin_us, end_us=end_us, against=against)
    return None if found is None else found.report(budget)


def _notes(window: Window) -> list[str]:
    """What there is to say of the counts, whatever they are compared with."""
    notes = []
    if not window.n_rows:
        notes.append("The window is empty: no prediction was served in it.")
    if window.n_degraded:
        notes.append(
            f"{window.n_degraded:,} of {window.n_rows:,} rows were answered by a last score or a default: they have no "
            f"features and are left out."
        )
    if window.n_shadow:
        notes.append(f"{window.n_shadow:,} of {window.n_requests:,} requests were scored as a shadow and not sent.")
    if window.n_interrupted:
        notes.append(
            f"{window.n_interrupted:,} requests were being counted when a worker was killed, or at the moment: some of "
            f"their features are absent."
        )
    if window.n_elsewhere:
        notes.append(f"{window.n_elsewhere:,} requests were counted on other bins and are left out.")
    if window.n_clock_jumps:
        notes.append(
            f"The clock was set {window.n_clock_jumps} time{'' if window.n_clock_jumps == 1 else 's'} in this window: "
            f"which minute a prediction belongs to is uncertain, their number is not."
        )
    notes += [f"{problem[:1].upper()}{problem[1:]}." for problem in window.problems]
    return notes


def _score_names(n: int) -> list[str]:
    return ["score"] if n == 1 else [f"score[{i}]" for i in range(n)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NOTHING_TO_COMPARE = {
    "training": "The version has no reference: register it with its training set to compare with it.",
    "previous": "Nothing was counted in the period before.",
    "last-week": "Nothing was counted at the same time last week.",
}
