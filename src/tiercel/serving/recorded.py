"""The explanation of a prediction that was answered before, from the vector its record holds.

The record has what was scored and the scores, so nothing is read or scored again: the version's explainer and reasons, which
are files of the version, say today what they would have said then.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import CapacityError, JournalError
from tiercel.monitor.lookup import find_records
from tiercel.priority import stand_back
from tiercel.serving.answers import explanation_of
from tiercel.serving.explaining import explain_here

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tiercel._hot.plan import ServingPlan
    from tiercel.monitor.journal import Record
    from tiercel.serving.explain_request import ExplainRequest

    PlanOf = Callable[[str], Awaitable[ServingPlan]]

#: What explaining a recorded request may take; nobody waits for more.
MOST_US: Final = 60_000_000
#: Requests that may wait for the one thread.
MOST_WAITING: Final = 16
#: ... and when the next one may come back.
RETRY_US: Final = 1_000_000


class RecordedExplanations:
    """Explains recorded predictions, one at a time, in a thread of its own.

    Args:
        journal: a state's `journal` directory.
        plan_of: the plan of a reference such as "fraud:3", with its explainer.

    Threads: the event loop's only.
    """

    def __init__(self, journal: Path, plan_of: PlanOf) -> None:
        self._journal, self._plan_of = journal, plan_of
        self._beside = ThreadPoolExecutor(1, "tiercel-recorded", stand_back)
        self._n_waiting = 0

    async def find(self, prediction_id: str, asked: ExplainRequest) -> dict[str, Any]:
        """What is known of a prediction and why it came out so: see `explain_record`.

        Raises:
            RequestError: no reply has such an id. NotFoundError: no record, or no such version any more.
            JournalError: the record cannot be read. CapacityError: too many wait for such an answer.
        """
        if self._n_waiting >= MOST_WAITING:
            raise CapacityError(
                f"Expected at most {MOST_WAITING} explanations of earlier predictions at a time, got one more. Try again later",
                predicted_wait_us=RETRY_US,
            )
        self._n_waiting += 1
        loop = asyncio.get_running_loop()
        try:
            records = await loop.run_in_executor(self._beside, find_records, self._journal, prediction_id)
            plan = await self._plan_of(f"{records[0].plan.model}:{records[0].plan.version}")
            return await loop.run_in_executor(self._beside, explain_record, plan, records, asked)
        finally:
            self._n_waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._beside.shutdown(wait=False, cancel_futures=True)


def explain_record(plan: ServingPlan, records: Sequence[Record], asked: ExplainRequest) -> dict[str, Any]:
    """Explain one recorded request, however long that takes, within `MOST_US`.

    Args:
        plan: of the version that answered; its base does not matter.
        records: of `find_records`.
        asked: how.

    Returns:
        "id", "model", "version", "score" or "scores", "reasons" and "explanation" as the reply had them.

    Raises:
        JournalError: the records are not of this plan.
    """
    first = records[0]
    rows, scores = np.concatenate([each.rows for each in records]), np.concatenate([each.scores for each in records])
    if first.plan.features != tuple(plan.signature.features) or scores.shape[1] != plan.n_outputs:
        raise JournalError(
            f"Prediction {first.id}: expected the {plan.n_features} features of model '{plan.model}' version {plan.version}, its "
            f"record has {len(first.plan.features)} others: the registry is not the one it was answered from"
        )
    prepared = plan.recall(rows, scores, is_single=not first.is_many)
    need_us = plan.explanations.need_us(len(rows))
    if first.degraded in {"last_score", "default"}:
        prepared.explain_not()
    elif need_us > MOST_US:
        prepared.explain_not(f"explaining {len(rows)} rows would take {need_us / 1e6:.0f} s")
    else:
        explain_here(prepared, asked)
    told = explanation_of(prepared, first.id)
    values = prepared.scores()
    score = {"score": values[0]} if prepared.is_single else {"scores": values}
    return {"id": first.id, "model": plan.model, "version": plan.version, **score, **told}
