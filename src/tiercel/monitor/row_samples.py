"""Rows of the prediction table for tests that need rows, not histograms: a bounded sample in which each is as likely as any other.

A row's place in the draw is a hash of a seed, its id and its number, so the same seed draws the same rows of the same table,
whatever order DuckDB reads files in, and the choice knows nothing of what is in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from tiercel.errors import OutcomesError
from tiercel.monitor.label_query import quote, quote_name
from tiercel.monitor.prediction_columns import column_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tiercel.monitor.journal import PlanDeclaration

#: What a last score or a default answered has no features; a fallback's answers are rows of the fallback's own version.
_HAS_FEATURES = "coalesce(degraded, 'fallback') = 'fallback'"
_NUMBERS = ("FLOAT", "REAL", "DOUBLE", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "BOOLEAN")


@dataclass(frozen=True, eq=False)
class RowSample:
    """Rows that one version was asked for between two moments.

    Attributes:
        values: float64 (n, n_features), NaN where missing.
        requests: int64 (n,): which of `n_requests` requests a row belongs to.
        begin_us, end_us: the stretch.
        n_available: rows of it that have features; `n` of them were drawn.
        n_without: rows of it that have none and are left out.
        n_shadow: of the available ones, scored as a shadow and not sent.
    """

    values: NDArray[np.float64]
    requests: NDArray[np.int64]
    begin_us: int
    end_us: int
    n_available: int
    n_without: int = 0
    n_shadow: int = 0

    @property
    def n(self) -> int:
        """Rows drawn."""
        return len(self.values)

    @property
    def n_requests(self) -> int:
        """Requests that they belong to."""
        return int(self.requests.max()) + 1 if len(self.requests) else 0


def feature_columns(connection: duckdb.DuckDBPyConnection, plan: PlanDeclaration) -> tuple[dict[str, str], list[str]]:
    """Where the features of a version are in the view `predictions`.

    Args:
        connection: with the view.
        plan: what the version declared.

    Returns:
        The column of each feature that can be read as numbers; and the features that cannot, because they are masked.

    Raises:
        OutcomesError: there is no such view.
    """
    try:
        found = {name: str(kind) for name, kind, *_ in connection.execute("DESCRIBE predictions").fetchall()}
    except duckdb.Error as error:
        raise OutcomesError(f"Expected a view 'predictions', got: {error}") from error
    named = dict(zip(plan.features, column_names(plan).features, strict=True))
    columns = {feature: column for feature, column in named.items() if found.get(column, "").startswith(_NUMBERS)}
    return columns, [feature for feature in named if feature not in columns]


def draw_rows(
    connection: duckdb.DuckDBPyConnection,
    columns: Mapping[str, str],
    model: str,
    version: int,
    *,
    begin_us: int,
    end_us: int,
    most: int,
    seed: int = 0,
) -> RowSample:
    """A simple random sample of rows without replacement; all of them where there are no more than `most`.

    DuckDB keeps `most` rows at a time, however many there are.

    Args:
        connection: with the view `predictions`.
        columns: by feature, see `feature_columns`.
        model: registered name.
        version: registered number.
        begin_us: of the stretch, microseconds since the epoch.
        end_us: likewise; a row of this moment is not in it.
        most: rows to draw.
        seed: of the draw.

    Raises:
        OutcomesError: the predictions cannot be read.
    """
    chosen = (
        f"model = {quote(model)} AND version = {int(version)} "
        f"AND time >= make_timestamp({int(begin_us)}) AND time < make_timestamp({int(end_us)})"
    )
    selected = "".join(f", {quote_name(name)}::DOUBLE AS v{i}" for i, name in enumerate(columns.values()))
    try:
        ((n_all, n_available, n_shadow),) = connection.execute(
            f"""
            SELECT count(*), count(*) FILTER ({_HAS_FEATURES}), count(*) FILTER ({_HAS_FEATURES} AND is_shadow)
            FROM predictions WHERE {chosen}
            """  # noqa: S608 - numbers and quoted names
        ).fetchall()
        found = connection.execute(
            f"""
            SELECT id{selected} FROM predictions WHERE {chosen} AND {_HAS_FEATURES}
            ORDER BY md5_number_lower(concat_ws('/', {int(seed)}, id, "row")), id, "row", is_shadow LIMIT {int(most)}
            """  # noqa: S608
        ).fetchnumpy()
    except (duckdb.Error, OSError) as error:
        raise OutcomesError(f"{model} version {version}: expected readable predictions, got: {error}") from error
    values = np.full((len(found["id"]), len(columns)), np.nan)
    for i in range(len(columns)):
        values[:, i] = np.ma.filled(np.ma.asarray(found[f"v{i}"], np.float64), np.nan)
    _, requests = np.unique(np.asarray(found["id"], dtype=np.str_), return_inverse=True)
    return RowSample(values, requests.astype(np.int64), begin_us, end_us, n_available, n_all - n_available, n_shadow)
