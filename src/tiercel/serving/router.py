"""From a question to an answer, whoever asked in whichever protocol: which version, in which tier, within the deadline."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.types import Tier

if TYPE_CHECKING:
    from tiercel._hot.plan import ServingPlan
    from tiercel._hot.reply import ReplyIds
    from tiercel.serving.deadline import Budget
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

    async def answer(self, reference: str, question: Question, budget: Budget) -> Answer:
        """Score what is asked.

        Raises:
            RequestError: the question does not fit the model.
            NotFoundError: no such model, version, alias or entity.
            DeadlineError, CapacityError: it cannot be answered in time, or there is no room.
        """
        plan = await self.find(reference)
        single, scores, age_us, missing = plan.predict(question.entities, question.features, question.now_us)
        return Answer(
            secrets.token_hex(12),
            plan.model,
            plan.version,
            Tier.REALTIME,
            [scores] if single else scores,
            single,
            plan.signature.classes,
            None if age_us is None else age_us / 1000,
            dict(missing),
        )
