"""From a question to an answer, whoever asked in whichever protocol: which version, in which tier, within the deadline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.errors import DeadlineError
from tiercel.types import Tier

if TYPE_CHECKING:
    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel._hot.reply import ReplyIds
    from tiercel.serving.deadline import Budget, Deadline
    from tiercel.serving.engine import Engine


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be scored: values by name, scalars or equally long lists, and the time of the read."""

    entities: dict[str, Any]
    features: dict[str, Any]
    now_us: int


@dataclass(frozen=True, slots=True)
class Degraded:
    """Who answered instead of whom, and why: a stable name."""

    by: str  # "fallback", "last_score", "default"
    instead_of: str  # "name:version"
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores and where they came from.

    `scores` is one score per row (a list of one number per class for a multiclass model), also where one scalar row was
    asked about; `is_single` tells that.
    """

    id: str
    model: str
    version: int
    tier: Tier
    scores: list[Any]
    is_single: bool
    classes: tuple[str, ...]
    oldest_age_ms: float | None
    missing: dict[str, int]  # feature -> in how many rows it had no value
    degraded: Degraded | None = None
    arm: str = "champion"
    stage_us: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """A scored question, not yet answered: `prepared.reply` or `prepared.record` does that, with `flags`."""

    prepared: Prepared
    deadline: Deadline | None
    flags: int = 0
    degraded: Degraded | None = None
    arm: str = "champion"


class Router:
    """Answers questions about any loaded model.

    Threads: the event loop's only.
    """

    def __init__(self, engine: Engine, ids: ReplyIds) -> None:
        self._engine = engine
        self._ids = ids

    async def find(self, reference: str) -> ServingPlan:
        """The plan that a reference ("name", "name@alias", "name:version") names.

        Raises:
            RequestError, NotFoundError, TiercelError: see `Engine.load_plan`.
        """
        plan = self._engine.find_plan(reference)
        return await self._engine.load_plan(reference) if plan is None else plan

    async def serve(self, reference: str, question: Question, budget: Budget) -> Served:
        """Score what is asked. Raises as `answer`."""
        plan = await self.find(reference)
        deadline = budget.over(Tier(plan.tier))
        prepared = plan.prepare(question.entities, question.features, question.now_us, budget.begin_ns)
        if budget.budget_us is not None and deadline is not None:
            require_time(deadline, plan.need_us(prepared.n_rows))
        prepared.score()
        return Served(prepared, deadline)

    async def answer(self, reference: str, question: Question, budget: Budget) -> Answer:
        """Score what is asked, and record it.

        Raises:
            RequestError: the question does not fit the model.
            NotFoundError: no such model, version, alias or entity.
            DeadlineError, CapacityError: it cannot be answered in time, or there is no room.
        """
        served = await self.serve(reference, question, budget)
        prepared, plan = served.prepared, served.prepared.plan
        age_us = prepared.oldest_age_us
        number = prepared.record(self._ids, served.flags)
        return Answer(
            number,
            plan.model,
            plan.version,
            Tier(plan.tier),
            prepared.scores(),
            prepared.is_single,
            plan.signature.classes,
            None if age_us is None else age_us / 1000,
            dict(prepared.missing()),
            served.degraded,
            served.arm,
            prepared.stage_us(),
        )


def require_time(deadline: Deadline, needed_us: float) -> None:
    """Refuse what will be late before it is begun.

    Raises:
        DeadlineError: less is left than is needed.
    """
    left_us = deadline.remaining_us()
    if left_us < max(needed_us, 0):
        raise DeadlineError(
            f"Expected {needed_us / 1000:.3f} ms for an answer (as measured, 99 of 100 take no longer), got "
            f"{max(left_us, 0) / 1000:.3f} ms: what is left of {deadline.budget_us / 1000:g} ms from {deadline.source}. "
            f"Send a longer deadline, or name a fallback in tiercel.toml",
            budget_us=deadline.budget_us,
            needed_us=int(needed_us),
        )
