"""Explanations made again from recorded vectors, for replays: the same version says the same, or what changed."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel._hot.plan import ServingPlan
from tiercel.errors import NotReplayableError
from tiercel.serving.answers import explanation_of
from tiercel.serving.bindings import explained_bindings
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.explaining import explain_here
from tiercel.serving.version_explainer import make_explanations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.serving.replaying import Reproduced
    from tiercel.settings import Settings

#: Plans that are kept. Each holds its explainer in memory.
MOST_KEPT: Final = 4


class ExplainedAgain:
    """What `Replayer` asks for a version's explanation of rows.

    Args:
        settings: of the project.

    Threads: one at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plans: OrderedDict[tuple[str, int, object], ServingPlan] = OrderedDict()

    def __call__(self, reproduced: Reproduced, rows: NDArray[np.float32]) -> dict[str, Any] | None:
        """Reasons and contributions of rows, as a reply has them; None: the version has none to give.

        Raises:
            NotReplayableError: its explanations follow from something else than they did (`explainer_changed`).
        """
        plan = self._plan(reproduced)
        now = explained_bindings(plan.explanations)
        if not now:
            return None
        receipt = reproduced.receipt
        changed = [name for name, value in now.items() if receipt.bindings.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {receipt.bindings.get(name)} then and {now[name]} now" for name in changed)
            raise NotReplayableError(
                f"Prediction {receipt.id}: expected its explanations to follow from what they did, got {told}: "
                f"[models.{receipt.model}.explain] was changed",
                code="explainer_changed",
            )
        scores = np.ascontiguousarray(reproduced.model.scorer.score(rows), np.float64)
        prepared = plan.recall(np.ascontiguousarray(rows), scores, is_single=not receipt.is_many)
        explain_here(prepared, ExplainRequest(is_full=True))
        return explanation_of(prepared, receipt.id)

    def _plan(self, reproduced: Reproduced) -> ServingPlan:
        receipt, model = reproduced.receipt, reproduced.model
        key = receipt.model, receipt.version, receipt.bindings.get("model_digest")
        plan = self._plans.get(key)
        if plan is None:
            label = f"{receipt.model}:{receipt.version}"
            explanations = make_explanations(
                model, reproduced.artifacts, self._settings.model(receipt.model), label=label
            )
            plan = ServingPlan(receipt.model, receipt.version, model.signature, model.scorer, explanations=explanations)
            self._plans[key] = plan
            if len(self._plans) > MOST_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan
