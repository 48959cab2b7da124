"""How well models did and what it was worth, for pages: the reports of `tiercel performance`, made when somebody looks.

They read the prediction table as it is. Bringing it up to date is the control process's other work.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from tiercel.errors import ConceptStateError
from tiercel.types import Task

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from tiercel.monitor.business import GroupValue, ValueReport
    from tiercel.monitor.concept_state import ConceptState
    from tiercel.monitor.estimation import EstimationReport
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.performance import GroupPerformance, PerformanceReport
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

#: How far back, by the length of a window: about as many windows as a chart shows well.
SPANS = {"7d": (7 * 86_400_000_000, 6 * 3_600_000_000), "30d": (30 * 86_400_000_000, 86_400_000_000)}
_PREDICTIONS = "predictions"  # `tiercel.monitor.predictions.PREDICTIONS`
#: Roles in the order they are shown in; `tiercel.monitor.outcomes.ARMS`.
ROLES = ("champion", "challenger", "shadow")
#: The figure that stands for a model where there is room for one.
HEADLINE = {Task.BINARY: ("auc", "AUC"), Task.REGRESSION: ("mae", "MAE"), Task.MULTICLASS: ("macro_auc", "macro AUC")}


@dataclass(frozen=True)
class Judged:
    """A model's reports.

    Attributes:
        performance: its figures.
        value: its money; None where nothing is said of it, and `value_problem` why it cannot be told.
        estimates: before labels; None where they were not asked for, and `estimates_problem` why there are none.
        concept: streams of errors as the watch left them; empty likewise.
    """

    performance: PerformanceReport
    value: ValueReport | None
    value_problem: str = ""
    estimates: EstimationReport | None = None
    estimates_problem: str = ""
    concept: tuple[ConceptState, ...] = ()

    def of(self, version: int, arm: str = "champion") -> GroupPerformance | None:
        """A version's figures."""
        return self.performance.find(version, arm)

    def worth(self, version: int, arm: str = "champion") -> GroupValue | None:
        """A version's money."""
        groups = () if self.value is None else self.value.groups
        return next((g for g in groups if (g.key.version, g.key.arm) == (version, arm)), None)

    def headline(self, version: int, arm: str = "champion") -> tuple[str, Estimate] | None:
        """The title and the figure that stand for a version."""
        group, name = self.of(version, arm), HEADLINE.get(self.performance.task)
        if group is None or name is None or name[0] not in group.metrics:
            return None
        return name[1], group.metrics[name[0]]


def judge(
    settings: Settings,
    version: ModelVersion,
    *,
    span: str = "7d",
    as_of_us: int | None = None,
    with_outlook: bool = False,
) -> Judged | None:
    """The reports of a model; None where the prediction table has nothing of it.

    Args:
        settings: the project.
        version: any of its versions: says what it predicts.
        span: one of `SPANS`.
        as_of_us: what came later is not looked at; None: now.
        with_outlook: with estimates before labels and the streams of errors: what a model's page has room for.

    Raises:
        TableError, OutcomesError, DefinitionError: as `performance_report`.
    """
    name, task = version.name, version.facts.signature.task
    if not (settings.state_dir / _PREDICTIONS / f"model={quote(name, safe='')}").is_dir():
        return None
    # With them come a database and a file format, which the page that first asks for this need not wait for.
    from tiercel.monitor.business import value_report
    from tiercel.monitor.outcomes import open_outcomes
    from tiercel.monitor.performance import choose_cohort, performance_report

    as_of_us = time.time_ns() // 1000 if as_of_us is None else as_of_us
    value_settings = settings.model(name).value
    span_us, window_us = SPANS[span]
    maturity_us = None if value_settings.label_maturity_s is None else round(value_settings.label_maturity_s * 1e6)
    # One thread: what is behind a page must not take a second core from who answers requests.
    with open_outcomes(settings.state_dir, settings.monitor, model=name, threads=1) as connection:
        cohort, delay = choose_cohort(
            connection, name, task, as_of_us=as_of_us, maturity_us=maturity_us, span_us=span_us, window_us=window_us
        )
        performance = performance_report(
            connection, name, task, cohort, as_of_us=as_of_us, settings=value_settings, delay=delay
        )
        value, value_problem = None, ""
        try:
            value = value_report(connection, name, task, cohort, value_settings, as_of_us=as_of_us)
        except Exception as error:  # noqa: BLE001 - figures are worth showing without money
            value_problem = str(error)
        judged = Judged(performance, value, value_problem)
        return _with_outlook(judged, connection, settings, as_of_us) if with_outlook else judged


def _with_outlook(judged: Judged, connection: DuckDBPyConnection, settings: Settings, as_of_us: int) -> Judged:
    from tiercel.monitor.concept_state import ConceptStore
    from tiercel.monitor.estimation import estimation_report

    report = judged.performance
    estimates, problem = None, ""
    try:
        estimates = estimation_report(
            connection,
            report.model,
            report.task,
            report.cohort,
            as_of_us=as_of_us,
            settings=settings.model(report.model).value,
            coverage=report.delay.final_share or 1.0,
        )
    except Exception as error:  # noqa: BLE001 - as above
        problem = str(error)
    store, states = ConceptStore(settings.state_dir), []
    for group in report.groups:
        # A damaged file begins anew with the watch's next turn, which says so.
        with contextlib.suppress(ConceptStateError, OSError):
            states.append(store.load(report.model, group.key.version, group.key.arm))
    concept = tuple(state for state in states if state is not None)
    return replace(judged, estimates=estimates, estimates_problem=problem, concept=concept)
