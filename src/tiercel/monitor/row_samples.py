"""Rows of the prediction table for tests that need rows, not histograms: a bounded sample in which each is as likely as any other.

A row's place in the draw is a hash of a seed, its id and its number, so the same seed draws the same rows of the same table,
whatever order DuckDB reads files in, and the choice knows nothing of what is in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from tiercel.errors import OutcomesError
from tiercel.monitor.journal import PlanDeclaration
from tiercel.monitor.label_query import quote, quote_name
from tiercel.monitor.prediction_columns import column_names
from tiercel.monitor.prediction_ledger import TableLedger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.types import Signature

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
        scores: float64 (n,): the one score of each row, NaN where it has none; None where there are several, or nobody answered.
    """

    values: NDArray[np.float64]
    requests: NDArray[np.int64]
    begin_us: int
    end_us: int
    n_available: int
    n_without: int = 0
    n_shadow: int = 0
    scores: NDArray[np.float64] | None = None

    @property
    def n(self) -> int:
        """Rows drawn."""
        return len(self.values)

    @property
    def n_requests(self) -> int:
        """Requests that they belong to."""
        return int(self.requests.max()) + 1 if len(self.requests) else 0


def empty_sample(n_features: int) -> RowSample:
    """No rows, of no time."""
    return RowSample(np.empty((0, n_features)), np.empty(0, np.int64), 0, 0, 0)


def declared_plan(state_dir: Path, model: str, version: int, signature: Signature) -> PlanDeclaration:
    """What a version declared when it answered; what was registered, where it never did.

    Args:
        state_dir: of the project.
        model: registered name.
        version: registered number.
        signature: as registered.

    Raises:
        TableError: the ledger of the prediction table is damaged.
    """
    known = TableLedger.read(state_dir / "predictions").versions.get(f"{model}:{version}")
    registered = {
        "features": signature.features, "join_keys": (), "n_outputs": signature.n_outputs,
        "task": signature.task.value, "classes": signature.classes,
    }  # fmt: skip
    head = {"model": model, "version": version, "service": None, "service_fingerprint": None, "base": None}
    return PlanDeclaration.from_json(head | (known or registered))


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
    with_scores: bool = False,
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
        with_scores: take the column `score`, which a version of one score has.

    Raises:
        OutcomesError: the predictions cannot be read.
    """
    chosen = (
        f"model = {quote(model)} AND version = {int(version)} "
        f"AND time >= make_timestamp({int(begin_us)}) AND time < make_timestamp({int(end_us)})"
    )
    selected = "".join(f", {quote_name(name)}::DOUBLE AS v{i}" for i, name in enumerate(columns.values()))
    selected += ", score::DOUBLE AS score" if with_scores else ""
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
        values[:, i] = _filled(found[f"v{i}"])
    scores = _filled(found["score"]) if with_scores else None
    _, requests = np.unique(np.asarray(found["id"], dtype=np.str_), return_inverse=True)
    return RowSample(
        values, requests.astype(np.int64), begin_us, end_us, n_available, n_all - n_available, n_shadow, scores
    )


def _filled(column: Any) -> NDArray[np.float64]:
    return np.asarray(np.ma.filled(np.ma.asarray(column, np.float64), np.nan))
