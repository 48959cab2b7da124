"""A population that moved, and what that did to the score: parts by feature beside a finding.

Which features drifted says nothing of whether it matters. Rows of the finding's window are drawn from the prediction table and
explained, so the alert says how far the mean score moved, and through which features. It takes seconds, so the watch does it
for the few findings that say a population moved, never at every look.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tiercel.monitor.alert import AlertClass, Finding, TopFeature
from tiercel.monitor.outcomes import open_outcomes
from tiercel.monitor.row_samples import declared_plan
from tiercel.monitor.score_shift import score_shift

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.score_shift import Explain, ScoreShift
    from tiercel.monitor.training_rows import TrainingRows
    from tiercel.settings import MonitorSettings
    from tiercel.types import Signature

#: Rows of either side.
ROWS: Final = 1_000
#: Features that a finding names.
MAX_MOVES: Final = 5


@dataclass(frozen=True, eq=False)
class Explained:
    """How a version's rows are explained.

    Attributes:
        signature: as registered.
        explain: rows -> attributions.
        training: rows of its training set; None where none are kept.
        most_rows: that are explained at once: what takes long is given fewer.
        categories: the bins of features that are categories.
    """

    signature: Signature
    explain: Explain
    training: TrainingRows | None
    most_rows: int = ROWS
    categories: Mapping[str, CategoryBins] = field(default_factory=dict)


def with_moves(
    finding: Finding,
    explained: Callable[[], Explained | None],
    against: str,
    state_dir: Path,
    settings: MonitorSettings,
) -> Finding:
    """The finding with what moved the score, where it is of a population and that can be said; otherwise as it is.

    Args:
        finding: of a version and a window.
        explained: how its rows are; None: they cannot be. It is called only if it is needed.
        against: what the window was compared with: "training", or else earlier rows.
        state_dir: of the project, with the prediction table brought up to the window's end.
        settings: of monitoring.

    Raises:
        TiercelError: the table cannot be read, or the rows cannot be explained.
    """
    if finding.alert_class is not AlertClass.POPULATION or finding.version is None:
        return finding
    how = explained()
    if how is None:
        return finding
    plan = declared_plan(state_dir, finding.model, finding.version, how.signature)
    # One thread: whoever answers predictions needs the others.
    with open_outcomes(state_dir, settings, model=finding.model, threads=1) as connection:
        shift = score_shift(
            connection, plan, how.explain, begin_us=finding.begin_us, end_us=finding.end_us,
            against=against if against != "training" or how.training is not None else "previous",
            most_rows=min(ROWS, how.most_rows), training=how.training, categories=how.categories,
        )  # fmt: skip
    if shift.shift is None:
        return finding
    moved = [each for each in shift.features if each.is_certain][:MAX_MOVES]
    return replace(
        finding,
        message=f"{finding.message} {shift.meaning}",
        moves=tuple(
            TopFeature(each.name, each.shift, _reason(shift, each.mean, each.reference_mean, each.change))
            for each in moved
        ),
    )


def _reason(shift: ScoreShift, mean: float, before: float, change: str) -> str:
    of = "margin" if shift.scale == "margin" else "score"
    return f"{mean:+.3g} of the {of} on average, {before:+.3g} before; {change}"
