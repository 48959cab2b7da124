"""What moves a version, over rows that it was asked for; and a challenger on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiercel.explain.global_view import GlobalView, view_rows
from tiercel.insight.churns import churn_of_rows
from tiercel.insight.rows import Rows, find_rows, matching

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tiercel.explain.churn import ReasonChurn
    from tiercel.insight.versions import ExplainedVersion
    from tiercel.settings import Settings

#: Rows that are explained, and what that may take of each version.
MOST_ROWS: Final = 2_000
WITHIN_US: Final = 10_000_000.0


@dataclass(frozen=True)
class ComparedViews:
    """One version, or a champion and who would follow it.

    Attributes:
        views: of each; the champion first.
        churn: how many decisions the second explains otherwise; None of one version, or where that cannot be said.
        note: why it cannot be said; "" otherwise.
    """

    views: tuple[GlobalView, ...]
    churn: ReasonChurn | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "views": [each.to_json() for each in self.views],
            "churn": None if self.churn is None else self.churn.to_json(),
            "note": self.note,
        }


def find_global_views(
    settings: Settings,
    version: ExplainedVersion,
    other: ExplainedVersion | None = None,
    *,
    begin_us: int,
    end_us: int,
    most_rows: int = MOST_ROWS,
    within_us: float = WITHIN_US,
    seed: int = 0,
    threads: int | None = None,
    exactly: bool = True,
) -> ComparedViews:
    """Look at one version, or at two by the same rows. Takes seconds: never on an event loop.

    Args:
        settings: the project.
        version: whose rows, too.
        other: compared with it on the same rows, where it takes the same features; on its own otherwise.
        begin_us: rows asked from then on.
        end_us: and before then.
        most_rows: rows.
        within_us: that explaining them may take for each version, as measured.
        seed: of the draw.
        threads: of DuckDB; None: as many as cores.
        exactly: compute interactions, which takes some seconds more; else they are estimated.

    Raises:
        OutcomesError, TableError: there are no rows, or the prediction table cannot be read.
        ModelError: rows cannot be explained.
    """
    most = min(each.rows.most_rows(within_us, most_rows) for each in (version, other) if each is not None)
    span: dict[str, Any] = {"begin_us": begin_us, "end_us": end_us, "most": most, "seed": seed, "threads": threads}
    rows = find_rows(settings, version, **span)
    shown: dict[str, Any] = {"hidden": settings.monitor.masked, "exactly": exactly}
    views = [_view(version, rows, rows.values, **shown)]
    if other is None:
        return ComparedViews(tuple(views))
    same = matching(rows, version.features, other.features)
    if same is None:
        own = find_rows(settings, other, **span)
        views.append(_view(other, own, own.values, **shown))
        lacking = ", ".join(name for name in other.features if name not in version.features)
        note = f"Version {other.record.version} takes {lacking}, which version {version.record.version} does not: each is shown on its own rows."
        return ComparedViews(tuple(views), None, note)
    views.append(_view(other, rows, same, **shown))
    threshold = settings.model(version.record.name).value.threshold
    return ComparedViews(tuple(views), churn_of_rows(version, other, rows.values, same, rows.source, threshold))


def _view(
    version: ExplainedVersion, rows: Rows, values: NDArray[np.float32], *, hidden: frozenset[str], exactly: bool
) -> GlobalView:
    record = version.record
    return view_rows(
        record.name, record.version, version.features, values, version.rows.explain(values), source=rows.source,
        begin_us=rows.begin_us, end_us=rows.end_us, n_available=rows.n_available, groups=version.rows.groups,
        interact=version.rows.interact if exactly else None, notes=rows.notes, hidden=hidden,
    )  # fmt: skip
