"""Whether what scores mean has changed: detectors on the stream of errors, in the order of predictions, across runs.

A prediction joins the stream when it is as old as labels need, with the label it has by then: fast labels do not come first,
so a stream that begins with them is not taken for a change.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import ConceptStateError
from tiercel.monitor.cohorts import ARMS, Cohort, Outcomes
from tiercel.monitor.concept_state import DAY_US, TRUSTED, Alarm, ConceptState, ConceptStore
from tiercel.settings import ValueSettings
from tiercel.types import Task

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger("tiercel.monitor")

#: Rows of one run and arm; the next run goes on. One takes about 0.1 ms.
MAX_ROWS_PER_RUN: Final = 200_000


@dataclass(frozen=True)
class ConceptStatus:
    """A version's stream in one arm, as of a run.

    Attributes:
        state: what is known.
        n_new: predictions that joined in this run.
        n_missed: judged predictions that came to be known after their place in the stream had passed; they never join.
        is_behind: more are waiting for the next run.
    """

    state: ConceptState
    n_new: int
    n_missed: int
    is_behind: bool

    def changes(self, since_us: int) -> list[Alarm]:
        """Trusted alarms from a time on."""
        return [alarm for alarm in self.state.alarms if alarm.is_trusted and alarm.time_us >= since_us]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        state = self.state
        return {
            "version": state.version,
            "arm": state.arm,
            "maturity_s": state.maturity_us / 1e6,
            "until_us": state.until_us if state.n_rows else None,
            "n_rows": state.n_rows,
            "n_new": self.n_new,
            "n_missed": self.n_missed,
            "is_behind": self.is_behind,
            "is_warm": state.scale is not None,
            "detectors": {
                key: {
                    "alarms": state.n_alarms.get(key, 0),
                    "is_warning": each.has_warned,
                    "is_trusted": key in TRUSTED,
                }
                for key, each in state.detectors.items()
            },
            "alarms": [alarm.to_json() for alarm in state.alarms],
        }


def watch_concept(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    *,
    as_of_us: int,
    maturity_us: int,
    store: ConceptStore | None,
    keep: bool = True,
    version: int | None = None,
    settings: ValueSettings | None = None,
    most_rows: int = MAX_ROWS_PER_RUN,
) -> list[ConceptStatus]:
    """Let the predictions that have become old enough join their streams.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts; a multiclass model has no stream.
        as_of_us: now.
        maturity_us: age at which predictions join, for streams that begin; others keep theirs.
        store: where the streams are kept; None: begin anew and keep nothing.
        keep: save what this run adds; false only looks.
        version: only this one.
        settings: the threshold of decisions.
        most_rows: of one version and arm; the next run goes on.

    Returns:
        One status per version and arm that answered.

    Raises:
        OutcomesError: `outcomes` cannot be read.
        OSError: a file cannot be read or written.
    """
    if task is Task.MULTICLASS:
        return []
    settings = ValueSettings() if settings is None else settings
    basis = f"{task.value} {settings.threshold!r}" if task is Task.BINARY else task.value
    found = []
    every = Outcomes(connection, model, task, as_of_us, version=version)
    for number, role in every.run(f"SELECT DISTINCT version, role FROM ({every.known()}) ORDER BY 1, 2"):
        outcomes = Outcomes(connection, model, task, as_of_us, version=int(number))
        state = _load(store, model, int(number), ARMS[role], basis)
        if state is None:
            state = ConceptState(int(number), ARMS[role], maturity_us, basis)
        status = _advance(outcomes, int(role), state, settings.threshold, most_rows)
        if store is not None and keep and status.n_new:
            store.save(model, state)
        found.append(status)
    return found


def _advance(outcomes: Outcomes, role: int, state: ConceptState, threshold: float, most: int) -> ConceptStatus:
    cohort = Cohort(state.maturity_us)
    judged = f"""
        SELECT * FROM ({outcomes.judged(cohort)})
        WHERE role = {role} AND in_cohort AND in_time AND good_label AND good_score
    """
    before = outcomes.run(f"SELECT t // {DAY_US}, count(*) FROM ({judged}) WHERE t <= {state.until_us} GROUP BY 1")
    first_day = min(state.joined, default=0)
    # By day, for rows that retention removed meanwhile must not make up for rows that were missed.
    n_missed = sum(max(0, int(n) - state.joined.get(int(day), 0)) for day, n in before if int(day) >= first_day)
    arrays = outcomes.columns(
        f"SELECT t, score, y FROM ({judged}) WHERE t > {state.until_us} ORDER BY t, id, row LIMIT {int(most)}"
    )
    times = np.asarray(arrays["t"], np.int64)
    is_behind = len(times) == most
    n = len(times)
    if is_behind and times[0] < times[-1]:
        n = int(np.searchsorted(times, times[-1]))  # rows of the same time join together, or their order would be lost
    if n:
        state.add(
            outcomes.task,
            threshold,
            times[:n],
            np.asarray(arrays["score"], np.float64)[:n],
            np.asarray(arrays["y"], np.float64)[:n],
        )
        state.until_us = int(times[n - 1])
    return ConceptStatus(state, n, n_missed, is_behind)


def _load(store: ConceptStore | None, model: str, version: int, arm: str, basis: str) -> ConceptState | None:
    if store is None:
        return None
    try:
        state = store.load(model, version, arm)
    except ConceptStateError as error:
        log.warning("%s. The stream begins anew.", error)
        return None
    if state is not None and state.basis != basis:
        log.info("Streams of %s version %d (%s) begin anew: %s instead of %s", model, version, arm, basis, state.basis)
        return None
    return state
