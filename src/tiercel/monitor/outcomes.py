"""Predictions with what became of them, brought up to date; and how many labels there are of what, and what is wrong with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tiercel.monitor.labels import LabelStore
from tiercel.monitor.predictions import PredictionTable

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from tiercel.monitor.label_ledger import LabelTotals
    from tiercel.monitor.prediction_ledger import TableTotals
    from tiercel.settings import MonitorSettings

#: A label that came more than this long after its prediction is counted as late. It counts as a label all the same.
LATE_DAYS = 365


def refresh(state_dir: Path, settings: MonitorSettings, *, waits: bool = False) -> tuple[int, int]:
    """Convert what the journal has and collect what came as feedback; returns (new rows, collected events).

    Raises:
        MonitorStorageError: the disk refuses. TableError: a ledger is damaged.
    """
    n_rows = PredictionTable(state_dir, settings).convert(waits=waits)
    store = LabelStore(state_dir)
    try:
        return n_rows, store.collect(settings, waits=waits)
    finally:
        store.close()


def catch_up(state_dir: Path, settings: MonitorSettings, *, patience_s: float, labels: bool = True) -> list[str]:
    """As `refresh`, for who shows what is found: says in words what is not in it, which is nothing as a rule.

    Args:
        state_dir: of the project.
        settings: of the project.
        patience_s: how long to wait for another process, which converts in small steps, for either of both.
        labels: collect them too.

    Raises:
        MonitorStorageError: the disk refuses. TableError: a ledger is damaged.
    """
    notes = []
    if not PredictionTable(state_dir, settings).catch_up(patience_s):
        notes.append("predictions of the last moments are not in this: another process is converting them")
    if labels:
        store = LabelStore(state_dir)
        try:
            if not store.catch_up(settings, patience_s):
                notes.append("labels of the last moments are not in this: another process is collecting them")
        finally:
            store.close()
    return notes


def open_outcomes(
    state_dir: Path, settings: MonitorSettings, *, model: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views of `prediction_views`, over what was converted and collected so far.

    Raises:
        MonitorStorageError: a file cannot be read. TableError: a ledger is damaged.
    """
    return PredictionTable(state_dir, settings).connect(model, threads=threads)


@dataclass(frozen=True)
class VersionLabels:
    """Labels of one version's answers; shadows' are not among them.

    Attributes:
        rows, labelled: answered rows, and those of them that have a usable label.
        out_of_range, unknown_class, row_missing: labels that are not usable, by reason.
        late: labels that came more than LATE_DAYS after the prediction.
        early: labels of a time before the prediction.
        delay_p50_s, delay_p90_s: from the prediction to the label's time; None without labels.
    """

    model: str
    version: int
    rows: int
    labelled: int
    out_of_range: int
    unknown_class: int
    row_missing: int
    late: int
    early: int
    delay_p50_s: float | None
    delay_p90_s: float | None

    @property
    def coverage(self) -> float:
        """Share of rows with a usable label."""
        return self.labelled / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class LabelReport:
    """How far labels have come.

    Attributes:
        versions: by model and version.
        labels: keys (id, row) that have one.
        unknown: of those, keys of no prediction in the table: never made, not converted yet, past retention, or dropped.
        label_totals, table_totals: how it adds up since the beginning.
    """

    versions: tuple[VersionLabels, ...]
    labels: int
    unknown: int
    label_totals: LabelTotals
    table_totals: TableTotals

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"versions": [{**asdict(each), "coverage": each.coverage} for each in self.versions]}


def label_report(state_dir: Path, settings: MonitorSettings) -> LabelReport:
    """Count labels over what was converted and collected so far.

    Raises:
        MonitorStorageError: a file cannot be read. TableError: a ledger is damaged.
    """
    table, store = PredictionTable(state_dir, settings), LabelStore(state_dir)
    connection = table.connect()
    try:
        versions = connection.execute(
            f"""
            SELECT model, version, count(*), count(label),
                count(*) FILTER (label_problem = 'out_of_range'), count(*) FILTER (label_problem = 'unknown_class'),
                count(*) FILTER (label_problem = 'row_missing'),
                count(*) FILTER (label_received > time + INTERVAL {LATE_DAYS} DAY), count(*) FILTER (label_time < time),
                quantile_cont(epoch(label_time - time), 0.5) FILTER (label IS NOT NULL),
                quantile_cont(epoch(label_time - time), 0.9) FILTER (label IS NOT NULL)
            FROM outcomes WHERE NOT is_shadow GROUP BY model, version ORDER BY model, version
            """  # noqa: S608 - a constant
        ).fetchall()
        n_labels, n_unknown = connection.execute(
            """
            SELECT count(*), count(*) FILTER (p.id IS NULL) FROM labels l
            LEFT JOIN (SELECT DISTINCT id, "row" FROM predictions SEMI JOIN labels USING (id, "row")) p
            ON l.id = p.id AND l."row" = p."row"
            """
        ).fetchone() or (0, 0)
        return LabelReport(
            versions=tuple(VersionLabels(*row) for row in versions),
            labels=n_labels,
            unknown=n_unknown,
            label_totals=store.ledger().totals,
            table_totals=table.ledger().totals,
        )
    finally:
        connection.close()
        store.close()
