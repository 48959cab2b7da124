"""The explanation of a prediction that was answered before, from the vector its receipt holds.

The receipt has what was scored and the scores, so nothing is read or scored again: the version's explainer and reasons, which
are files of the version, say today what they would have said then. What [models.NAME.explain] changed about them since is
undone where the receipt tells it; each reply says which it is.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel._hot.plan import ServingPlan
from tiercel.errors import CapacityError, NotReplayableError, ReceiptCorruptError, TiercelError
from tiercel.priority import stand_back
from tiercel.serving.answers import explanation_of
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.explaining import explain_here
from tiercel.serving.receipts import find_receipt
from tiercel.serving.version_explainer import bound_by, make_explanations
from tiercel.serving.version_shelf import VersionShelf

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from numpy.typing import NDArray

    from tiercel.explain.receipts import Receipt
    from tiercel.serving.replaying import Explain, Reproduced
    from tiercel.settings import Settings

    PlanOf = Callable[[str], Awaitable[ServingPlan]]

#: What explaining a recorded request may take; nobody waits for more.
MOST_US: Final = 60_000_000
#: Explainers that replays keep.
MAX_EXPLAINERS: Final = 8
#: Requests that may wait for the one thread.
MOST_WAITING: Final = 16
#: ... and when the next one may come back.
RETRY_US: Final = 1_000_000
#: What explanations follow from, as bindings name it.
_BOUND: Final = ("explainer_kind", "reference_digest", "policy_digest")


class RecordedExplanations:
    """Explains recorded predictions, one at a time, in a thread of its own.

    Args:
        settings: of the project.
        plan_of: the plan of a reference such as "fraud:3", with its explainer.

    Threads: the event loop's only.
    """

    def __init__(self, settings: Settings, plan_of: PlanOf) -> None:
        self._settings, self._plan_of = settings, plan_of
        self._shelf = VersionShelf(settings, most=1)
        self._beside = ThreadPoolExecutor(1, "tiercel-recorded", stand_back)
        self._n_waiting = 0

    async def find(self, prediction_id: str, asked: ExplainRequest) -> dict[str, Any]:
        """What is known of a prediction and why it came out so: see `explain_receipt`.

        Raises:
            RequestError: no reply has such an id. NotFoundError: no receipt is kept, or no such version any more.
            JournalError, ReceiptCorruptError: the receipt cannot be read. CapacityError: too many wait for such an answer.
        """
        if self._n_waiting >= MOST_WAITING:
            raise CapacityError(
                f"Expected at most {MOST_WAITING} explanations of earlier predictions at a time, got one more. Try again later",
                predicted_wait_us=RETRY_US,
            )
        self._n_waiting += 1
        loop = asyncio.get_running_loop()
        try:
            receipts = await loop.run_in_executor(self._beside, find_receipt, self._settings, prediction_id)
            plan = await self._plan_of(f"{receipts[0].model}:{receipts[0].version}")
            return await loop.run_in_executor(
                self._beside, lambda: explain_receipt(plan_of_then(plan, receipts[0], self._shelf), receipts, asked)
            )
        finally:
            self._n_waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._beside.shutdown(wait=False, cancel_futures=True)
        self._shelf.close()


def plan_of_then(plan: ServingPlan, receipt: Receipt, shelf: VersionShelf) -> ServingPlan:
    """The plan whose explanations follow from what they did when a receipt was made, where there can still be one.

    Args:
        plan: of the version that answered, by today's settings; given back where that explains as then, and where what
            explained then is not known or cannot be made again.
        receipt: of the prediction.
        shelf: where the version is loaded by other settings than today's. Slow: never call it on an event loop.
    """
    then = _bound_then(receipt)
    if not then or dict(bound_by(plan.explanations)) == then:
        return plan
    try:
        again = shelf.find(f"{receipt.model}:{receipt.version}", then)
    except TiercelError:  # today's explanation, which says that it is today's, is better than none
        return plan
    return again if dict(bound_by(again.explanations)) == then else plan


def _bound_then(receipt: Receipt) -> dict[str, Any]:
    """What explanations followed from; empty: nothing was explained, or the receipt is older than that in them."""
    if receipt.bindings.get("explainer_kind") is None:
        return {}
    return {name: receipt.bindings.get(name) for name in _BOUND}


def _explained_by(plan: ServingPlan, receipt: Receipt) -> dict[str, Any]:
    then, now = _bound_then(receipt), dict(bound_by(plan.explanations))
    told: dict[str, Any] = {"settings": "unknown" if not then else "then" if now == then else "now", **now}
    if told["settings"] == "now":
        told["then"] = then
    return told


def explain_receipt(plan: ServingPlan, receipts: Sequence[Receipt], asked: ExplainRequest) -> dict[str, Any]:
    """Explain one recorded request, however long that takes, within `MOST_US`.

    Args:
        plan: of the version that answered; its base does not matter.
        receipts: of `find_receipt`.
        asked: how.

    Returns:
        "id", "model", "version", "score" or "scores", "reasons" and "explanation" as the reply had them. "explained_by" has
        the plan's explainer_kind, reference_digest and policy_digest, and under "settings" whether they are those of the
        prediction ("then"), others, beside which "then" has the prediction's ("now"), or that is not known ("unknown").

    Raises:
        ReceiptCorruptError: the receipts are not of this plan.
    """
    first = receipts[0]
    rows, scores = np.concatenate([each.rows for each in receipts]), np.concatenate([each.scores for each in receipts])
    if first.features != tuple(plan.signature.features) or scores.shape[1] != plan.n_outputs:
        raise ReceiptCorruptError(
            f"Prediction {first.id}: expected the {plan.n_features} features of model '{plan.model}' version {plan.version}, its "
            f"receipt has {len(first.features)} others: the registry is not the one it was answered from"
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
    by = _explained_by(plan, first)
    return {"id": first.id, "model": plan.model, "version": plan.version, **score, **told, "explained_by": by}


def explain_again(settings: Settings) -> Explain:
    """What a `Replayer` explains with: the explanation of rows by a version as it answered; None where it has none.

    It raises NotReplayableError (`explainer_changed`) where settings make explanations from something else by now.
    """
    kept: dict[str, ServingPlan] = {}

    def explain(reproduced: Reproduced, rows: NDArray[np.float32]) -> object:
        receipt, model = reproduced.receipt, reproduced.model
        label = f"{receipt.model}:{receipt.version}"
        plan = kept.get(label)
        if plan is None:
            made = make_explanations(model, reproduced.artifacts, settings.model(receipt.model), label=label)
            plan = ServingPlan(receipt.model, receipt.version, model.signature, model.scorer, explanations=made)
            if len(kept) == MAX_EXPLAINERS:  # one may be large; the arms of a rollout take turns
                del kept[next(iter(kept))]
            kept[label] = plan
        if plan.explanations.explainer is None:
            return None
        now = bound_by(plan.explanations)
        changed = [name for name, value in now.items() if receipt.bindings.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {receipt.bindings.get(name)} then and {now[name]} now" for name in changed)
            raise NotReplayableError(
                f"Prediction {receipt.id}: expected its explanations to follow from what they did, got {told}: "
                f"[models.{receipt.model}.explain] was changed",
                code="explainer_changed",
            )
        prepared = plan.recall(rows, model.scorer.score(rows), is_single=False)
        explain_here(prepared, ExplainRequest(is_full=True))
        explained = explanation_of(prepared, receipt.id)
        # Two that were not explained are alike in nothing.
        return None if explained["explanation"]["method"] == "none" else explained

    return explain
