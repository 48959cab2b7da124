"""Who explains a scored question, and when: here and now, in a thread beside the event loop, or later.

What an explanation may take is what is left of the request's deadline, else of its tier's bound for each row. Costs are
those that were measured when the version was loaded, so the choice is made before anything is begun. A prediction never
fails because its explanation did.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from tiercel.errors import RequestError
from tiercel.priority import stand_back
from tiercel.serving.deadline import TIER_DEFAULT
from tiercel.serving.ladder import Rung
from tiercel.types import Tier

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel.serving.answers import Served
    from tiercel.serving.explain_request import ExplainRequest

log = logging.getLogger("tiercel.serving")

#: What takes longer is explained in a thread: it would hold up everybody else.
INLINE_US: Final = 1000.0
#: What explaining may take where nobody set a deadline, however many rows there are.
MOST_US: Final = 1_000_000
#: Values that an explained request may have where it is read and its reply put together on the event loop, as Python values:
#: each feature of each row, and each contribution. On a small cloud machine such a request of V1 or the Open Inference
#: Protocol kept the loop for 31 to 56 ms: of 5, 50 and 300 features, with reasons or all contributions.
MOST_VALUES: Final = 40_000
#: What the reasons of a row cost there, in values.
REASONS_VALUES: Final = 12
#: Said where the reason is a bug or an exhausted machine: the log has it, the client need not.
FAILED: Final = "the explainer failed; the server's log has the reason"
#: Said where contributions are not those of the score: they are checked before they are sent.
WRONG: Final = "the contributions do not add up to the model's margin within one part in a million"


class Attributed(NamedTuple):
    """Contributions to one margin of some rows."""

    values: NDArray[np.float64]  # (n, n_features)
    expected: float
    output: int
    standard_error: NDArray[np.float64] | None
    adds_up: bool = True  # to the rows' margins


class Explaining:
    """Explains what one worker answered.

    Threads: the event loop's only. Attributions that take long are computed in one thread of its own.
    """

    def __init__(self) -> None:
        self._beside: ThreadPoolExecutor | None = None
        self._waiting_us = 0.0  # what the thread has before it, as measured
        self._told: set[tuple[str, int]] = set()

    async def explain(self, served: Served, asked: ExplainRequest) -> None:
        """Have a scored question's reply say what was asked; raises nothing but its own cancellation."""
        prepared = served.prepared
        try:
            await self._explain(served, asked)
        except Exception:
            key = prepared.plan.model, prepared.plan.version
            if key not in self._told:  # once: a request that fails again would fill the disk
                self._told.add(key)
                log.exception("Model %s:%s: its predictions cannot be explained", *key)
            prepared.explain_not(FAILED)

    async def _explain(self, served: Served, asked: ExplainRequest) -> None:
        prepared, plan = served.prepared, served.prepared.plan
        if served.degraded is not None and served.degraded.by in {Rung.LAST_SCORE.value, Rung.DEFAULT.value}:
            prepared.explain_not()
            return
        explainer = plan.explanations.explainer
        if explainer is None:
            prepared.explain(is_full=asked.is_full)
            return
        left_us = self._due_us(served) - time.monotonic_ns() / 1000
        need_us = plan.explanations.need_us(prepared.n_rows)
        if need_us > left_us:
            prepared.explain_later()
        elif plan.explanations.is_inline and need_us <= INLINE_US:
            explain_here(prepared, asked)
        elif self._waiting_us + need_us > left_us:
            prepared.explain_later()
        else:
            await self._explain_beside(prepared, asked, need_us)

    async def _explain_beside(self, prepared: Prepared, asked: ExplainRequest, need_us: float) -> None:
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "tiercel-explain", stand_back)
        work = asyncio.get_running_loop().run_in_executor(self._beside, explain_here, prepared, asked)
        self._waiting_us += need_us
        work.add_done_callback(lambda _: self._done(need_us))
        # A client that leaves does not stop the thread, which still writes to the question: nobody else does then.
        await asyncio.shield(work)

    def _done(self, need_us: float) -> None:
        self._waiting_us = max(0.0, self._waiting_us - need_us)

    @staticmethod
    def _due_us(served: Served) -> float:
        """Until when explaining may take, on the monotonic clock."""
        plan, n_rows, deadline = served.prepared.plan, served.prepared.n_rows, served.deadline
        bound_us = Tier(plan.tier).budget_us or MOST_US
        if deadline is not None and (deadline.source != TIER_DEFAULT or deadline.budget_us != bound_us):
            return deadline.due_ns / 1000
        # Nobody set it: the tier's is a promise about one row.
        return served.prepared.read_ns / 1000 + min(n_rows * bound_us, MOST_US)

    def close(self) -> None:
        """Begin nothing more."""
        if self._beside is not None:
            self._beside.shutdown(wait=False, cancel_futures=True)


def require_tellable(plan: ServingPlan, n_rows: int, asked: ExplainRequest) -> None:
    """Refuse what would keep the event loop for long, before it is scored.

    Args:
        plan: who is asked.
        n_rows: of the question.
        asked: what of them is to be told.

    Raises:
        RequestError: `explanation_too_large`.
    """
    per_row = REASONS_VALUES + plan.n_features * (2 if asked.is_full else 1)
    most_rows = max(1, MOST_VALUES // per_row)
    if n_rows > most_rows:
        what = f"all {plan.n_features} contributions" if asked.is_full else "reasons"
        raise RequestError(
            f"Expected at most {most_rows} rows with {what} of each in one request to model '{plan.model}', got {n_rows}. "
            f"Send them in several requests, or ask /predict/{plan.model}, which explains as many as fit its time",
            code="explanation_too_large",
        )


def explain_here(prepared: Prepared, asked: ExplainRequest) -> None:
    """Explain a scored question in the calling thread, however long it takes.

    Raises:
        Exception: what the explainer raises.
    """
    explanations = prepared.plan.explanations
    explainer = explanations.explainer
    form = explanations.form
    if explainer is not None and (asked.locale is not None or asked.k is not None):
        form = explainer.form_of(asked.locale, asked.k)
    if explanations.is_inline or form is None:
        prepared.explain(is_full=asked.is_full, form=form)
        return
    began_ns = time.monotonic_ns()
    found = explainer.attribute(prepared.rows(), prepared.scores())
    if not found.adds_up:
        prepared.explain_not(WRONG)
        return
    prepared.give_attributions(
        found.values,
        found.expected,
        found.output,
        is_full=asked.is_full,
        form=form,
        standard_error=found.standard_error,
        took_ns=time.monotonic_ns() - began_ns,
    )
