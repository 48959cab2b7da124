"""What has become of the journal's segments and of feedback, as Prometheus metrics: read from the two ledgers.

They are counted when they are converted and collected, so these metrics follow the workers' own by as long as that takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tiercel.errors import TableError
from tiercel.monitor.label_ledger import LabelLedger
from tiercel.monitor.prediction_ledger import TableLedger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.core import Metric


class TablesCollector(Collector):
    """One reading of the ledgers as metric families.

    Args:
        state_dir: of the project.
    """

    def __init__(self, state_dir: Path) -> None:
        self._n_unreadable = 0
        try:
            self._table = TableLedger.read(state_dir / "predictions").totals
        except (TableError, OSError):
            self._n_unreadable += 1
            self._table = TableLedger().totals
        try:
            self._labels = LabelLedger.read(state_dir / "labels").totals
        except (TableError, OSError):
            self._n_unreadable += 1
            self._labels = LabelLedger().totals

    def collect(self) -> Iterator[Metric]:
        """All families."""
        table, labels = self._table, self._labels
        yield _counter(
            "tiercel_prediction_table_rows",
            "Rows of the journal in the prediction table: converted, and of those removed by retention.",
            "event",
            {"converted": table.rows, "removed": table.rows_removed},
        )
        yield CounterMetricFamily(
            "tiercel_prediction_table_records", "Journaled predictions in the prediction table.", value=table.records
        )
        yield _counter(
            "tiercel_prediction_table_segments",
            "Segments of the journal: converted, damaged, or removed by the journal before they were converted.",
            "event",
            {"converted": table.segments, "damaged": table.segments_damaged, "lost": table.segments_lost},
        )
        yield _counter(
            "tiercel_feedback_events",
            "Accepted feedback: first labels, repeated, corrected, and completed ones.",
            "kind",
            {
                "first": labels.first,
                "duplicate": labels.duplicates,
                "correction": labels.corrections,
                "addition": labels.additions,
            },
        )
        yield _counter("tiercel_feedback_refused", "Feedback that was not accepted.", "code", labels.refused)
        yield _counter("tiercel_feedback_odd", "Feedback with something odd about it, and what.", "what", labels.notes)
        yield CounterMetricFamily("tiercel_labels_expired", "Labels removed by retention.", value=labels.rows_expired)
        yield GaugeMetricFamily(
            "tiercel_ledgers_unreadable", "Of predictions and labels: those that are damaged.", value=self._n_unreadable
        )


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, n in values.items():
        family.add_metric([value], n)
    return family
