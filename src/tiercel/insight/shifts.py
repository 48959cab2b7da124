"""What moved a version's mean score, of what was served: for reports, alerts and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tiercel.monitor.outcomes import open_outcomes
from tiercel.monitor.row_samples import declared_plan
from tiercel.monitor.score_moves import Explained
from tiercel.monitor.score_shift import ROWS, score_shift

if TYPE_CHECKING:
    from tiercel.insight.versions import ExplainedVersion
    from tiercel.monitor.score_shift import ScoreShift
    from tiercel.settings import Settings

#: What explaining both sides may take; there are fewer rows where a model is slow to explain.
WITHIN_US: Final = 5_000_000.0


def find_score_shift(
    settings: Settings,
    explained: ExplainedVersion,
    *,
    begin_us: int,
    end_us: int,
    against: str = "training",
    most_rows: int = ROWS,
    seed: int = 0,
    within_us: float = WITHIN_US,
    threads: int | None = None,
) -> ScoreShift:
    """Draw rows of the prediction table as it is, explain them, and compare. Takes seconds: never on an event loop.

    Args:
        settings: the project.
        explained: whose scores.
        begin_us: of the window.
        end_us: likewise.
        against: "training", "previous" or "last-week".
        most_rows: of either side.
        seed: of the draw.
        within_us: that explaining may take, as measured.
        threads: of DuckDB; None: as many as cores.

    Raises:
        OutcomesError, TableError: the prediction table cannot be read.
        ModelError: rows cannot be explained.
    """
    record = explained.record
    plan = declared_plan(settings.state_dir, record.name, record.version, record.facts.signature)
    with open_outcomes(settings.state_dir, settings.monitor, model=record.name, threads=threads) as connection:
        return score_shift(
            connection, plan, explained.rows.explain, begin_us=begin_us, end_us=end_us, against=against, seed=seed,
            most_rows=explained.rows.most_rows(within_us / 2, most_rows), training=explained.training,
            categories=explained.categories,
        )  # fmt: skip


def watched(version: ExplainedVersion) -> Explained:
    """How the watch explains rows of a version."""
    rows = version.rows
    most_rows = rows.most_rows(WITHIN_US / 2, ROWS)
    return Explained(rows.signature, rows.explain, version.training, most_rows, version.categories)
