"""Rows to look at versions by: what was served lately, or what a version was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.errors import OutcomesError
from tiercel.monitor.outcomes import open_outcomes
from tiercel.monitor.row_samples import declared_plan, draw_rows, feature_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.insight.versions import ExplainedVersion
    from tiercel.settings import Settings

#: Fewer rows that were served say less than those it was trained on.
LEAST_SERVED: Final = 100


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one version's features, in random order.

    Attributes:
        values: float32 (n, n_features).
        source: "predictions" or "training".
        begin_us, end_us: when they were asked; 0 and 0 of training rows.
        n_available: that they were drawn from.
        notes: what a reader must know of them, in sentences.
    """

    values: NDArray[np.float32]
    source: str
    begin_us: int
    end_us: int
    n_available: int
    notes: tuple[str, ...] = ()


def find_rows(
    settings: Settings,
    version: ExplainedVersion,
    *,
    begin_us: int,
    end_us: int,
    most: int,
    seed: int = 0,
    threads: int | None = None,
) -> Rows:
    """Rows that the version was asked for, or of its training set where those are few.

    Args:
        settings: the project.
        version: whose.
        begin_us: of the stretch.
        end_us: likewise.
        most: rows.
        seed: of the draw.
        threads: of DuckDB; None: as many as cores.

    Raises:
        OutcomesError: there are no rows at all, or the prediction table cannot be read.
    """
    record = version.record
    plan = declared_plan(settings.state_dir, record.name, record.version, record.facts.signature)
    with open_outcomes(settings.state_dir, settings.monitor, model=record.name, threads=threads) as connection:
        columns, masked = feature_columns(connection, plan)
        served = draw_rows(
            connection, columns, record.name, record.version, begin_us=begin_us, end_us=end_us, most=most, seed=seed
        )
    usable = not masked and tuple(columns) == version.features
    if usable and (served.n_available >= LEAST_SERVED or (served.n and version.training is None)):
        values = np.ascontiguousarray(served.values, np.float32)
        return Rows(values, "predictions", served.begin_us, served.end_us, served.n_available)
    why = f"{served.n_available} rows were served"
    if masked and served.n_available:  # of no rows there are no columns either
        why = f"{', '.join(masked)} masked in the prediction table"
    if version.training is None:
        raise OutcomesError(
            f"{record.name} version {record.version}: expected rows to look at, got none: {why} in this time, and it was "
            f"registered without a training set. Serve it for a while, or register it with its training set."
        )
    kept = version.training
    order = np.random.default_rng([seed, 7]).permutation(len(kept.rows))[:most]
    note = f"Rows are of the training set, because {why} in this time."
    return Rows(kept.rows[order], "training", 0, 0, kept.n_all, (note,))


def matching(rows: Rows, have: tuple[str, ...], want: tuple[str, ...]) -> NDArray[np.float32] | None:
    """The same rows as another version takes them; None where it takes a feature that they lack."""
    if not set(want) <= set(have):
        return None
    return np.ascontiguousarray(rows.values[:, [have.index(name) for name in want]])
