"""Everything about how a model is doing, in one call: performance, money, estimates and changes of meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tiercel.monitor.business import ValueReport, value_report
from tiercel.monitor.cohorts import Cohort, Outcomes
from tiercel.monitor.concept import MAX_ROWS_PER_RUN, ConceptStatus, watch_concept
from tiercel.monitor.estimation import EstimationReport, estimation_report
from tiercel.monitor.frozen_outcomes import frozen_outcomes
from tiercel.monitor.intervals import CONFIDENCE
from tiercel.monitor.performance import PerformanceReport, absence, choose_cohort, performance_report

if TYPE_CHECKING:
    import duckdb

    from tiercel.monitor.concept_state import ConceptStore
    from tiercel.settings import ValueSettings
    from tiercel.types import Task


#: How far back a review reads, beyond the predictions it judges: so many times their span, and twice the labels' maturity or,
#: where that is not known, twice this.
HISTORY_SPANS: Final = 3
HISTORY_US: Final = 30 * 86_400_000_000


@dataclass(frozen=True)
class Review:
    """How a model is doing, as it was known at a moment.

    Attributes:
        performance: its figures.
        value: its money; None where the settings say nothing of it.
        estimates: before labels; None where they were not asked for or there are no predictions.
        concept: per version and arm; empty likewise.
    """

    performance: PerformanceReport
    value: ValueReport | None
    estimates: EstimationReport | None
    concept: list[ConceptStatus]

    @property
    def notes(self) -> list[str]:
        """What a reader must know, of all parts."""
        parts = [self.performance, self.value, self.estimates]
        notes = [note for part in parts if part is not None for note in part.notes]
        for status in self.concept:
            who = f"Version {status.state.version} ({status.state.arm})"
            if status.n_missed:
                notes.append(
                    f"{who}: {status.n_missed:,} labelled predictions came too late to be looked at for a change."
                )
            if status.is_behind:
                notes.append(f"{who}: not all predictions have been looked at for a change yet.")
        return notes

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: those of the performance, and the other parts under their names."""
        return {
            **self.performance.to_json(),
            "value": None if self.value is None else self.value.to_json(),
            "estimates": None if self.estimates is None else self.estimates.to_json(),
            "concept": [status.to_json() for status in self.concept],
            "notes": self.notes,
        }


def review(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    settings: ValueSettings,
    *,
    as_of_us: int,
    version: int | None = None,
    span_us: int | None = None,
    window_us: int | None = None,
    maturity_us: int | None = None,
    all_labels: bool = False,
    with_degraded: bool = False,
    with_estimates: bool = True,
    confidence: float = CONFIDENCE,
    store: ConceptStore | None = None,
    keep: bool = False,
    most_rows: int = MAX_ROWS_PER_RUN,
) -> Review:
    """Look at a model.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts.
        settings: `[models.NAME.value]`.
        as_of_us: what came later is not looked at.
        version: only this one.
        span_us: how far back the judged predictions reach; None: all.
        window_us: length of windows; None: none, and no estimates.
        maturity_us: age at which predictions are judged; None: the setting, or as labels come.
        all_labels: judge all predictions by whatever labels have come.
        with_degraded: judge answers the model did not give itself, too.
        with_estimates: estimate windows before labels.
        confidence: of the intervals.
        store: where the streams of errors are kept; None: streams are not looked at.
        keep: save the streams; of all callers only one may, the control process.
        most_rows: predictions that join a stream in one go.

    Raises:
        OutcomesError: `outcomes` cannot be read, or there would be too many windows.
        DefinitionError: a segment, metric or value of the settings is not one.
        OSError: a stream's file cannot be read or written.
    """
    if maturity_us is None and settings.label_maturity_s is not None:
        maturity_us = round(settings.label_maturity_s * 1e6)
    begin_us = None
    if span_us is not None:  # what is older teaches calibrations and the delay of labels
        begin_us = as_of_us - HISTORY_SPANS * span_us - 2 * (HISTORY_US if maturity_us is None else maturity_us)
    expressions = [sql for _, sql in (*settings.segments, *settings.metrics)]
    if settings.column is not None:
        expressions.append('"' + settings.column.replace('"', '""') + '"')
    with frozen_outcomes(connection, model, as_of_us=as_of_us, begin_us=begin_us, expressions=expressions):
        cohort, delay = choose_cohort(
            connection,
            model,
            task,
            as_of_us=as_of_us,
            version=version,
            maturity_us=0 if all_labels else maturity_us,
            span_us=span_us,
            window_us=window_us,
        )
        if all_labels:
            cohort = Cohort(None, cohort.begin_us, cohort.end_us, cohort.window_us)
        performance = performance_report(
            connection,
            model,
            task,
            cohort,
            as_of_us=as_of_us,
            version=version,
            settings=settings,
            with_degraded=with_degraded,
            confidence=confidence,
            delay=delay,
        )
        value = value_report(
            connection, model, task, cohort, settings, as_of_us=as_of_us, version=version, confidence=confidence
        )
        estimates = None
        if with_estimates and window_us is not None and performance.groups:
            estimates = estimation_report(
                connection,
                model,
                task,
                cohort,
                as_of_us=as_of_us,
                version=version,
                settings=settings,
                coverage=delay.final_share or 1.0,
                confidence=confidence,
            )
        concept = []
        # Without a maturity labels would join in the order of their haste.
        if store is not None and cohort.maturity_us is not None:
            concept = watch_concept(
                connection,
                model,
                task,
                as_of_us=as_of_us,
                maturity_us=cohort.maturity_us,
                store=store,
                keep=keep,
                version=version,
                settings=settings,
                most_rows=most_rows,
            )
    if not performance.groups:  # the newest prediction may be older than what was read
        notes = absence(Outcomes(connection, model, task, as_of_us, version=version))
        performance = replace(performance, notes=notes)
    return Review(performance, value, estimates, concept)
