"""Errors of what workers recorded, and of the alerts that follow from it."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class AlertStateError(TiercelError):
    """An alert that is over cannot be acknowledged, silenced or resolved."""

    code = "alert_resolved"


class MonitorError(TiercelError):
    """Base of errors about what workers recorded."""

    code = "monitor_error"


class CounterFileError(MonitorError):
    """A counter file is foreign, was cut short, or has a format that this version does not know."""

    code = "counter_file_unreadable"


class WindowError(MonitorError):
    """Windows of traffic cannot be written; nothing is lost, the next one that can be is longer."""

    code = "windows_unwritable"


class JournalError(MonitorError):
    """A journal segment is damaged, foreign, or has a format that this version does not know."""

    code = "journal_damaged"


class AlertFileError(MonitorError):
    """The file of alerts is damaged, foreign, or of a format that this version does not know."""

    code = "alerts_damaged"


class TableError(MonitorError):
    """The ledger of the prediction table, or of the labels, is damaged or of a format that this version does not know."""

    code = "table_damaged"


class MonitorStorageError(MonitorError):
    """The disk has no room for predictions or labels, or refuses; nothing was accepted that is not on disk."""

    code = "monitor_storage"


class QueryError(MonitorError):
    """A question about the prediction table is not SQL that it can answer."""

    code = "invalid_query"


class CalibrationError(MonitorError):
    """Labelled predictions are too few, or of one class, to learn what scores mean; or a stored calibration is none."""

    code = "cannot_calibrate"


class ConceptStateError(MonitorError):
    """What a concept monitor knew is damaged, foreign, or has a format that this version does not know."""

    code = "concept_state_unreadable"


class OutcomesError(MonitorError):
    """The relation `outcomes` is missing, lacks a column, or cannot be read."""

    code = "outcomes_unreadable"
