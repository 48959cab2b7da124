"""From a question to an answer, whoever asked in whichever protocol: which version, in which tier, within the deadline.

A model without a table in tiercel.toml is simply asked. One with a table may be divided between two arms, and has a degrade
ladder: who answers is chosen up front, by measured cost against what is left of the deadline (`serving/ladder.py`), and
chosen again only if the chosen one fails outright.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tiercel.errors import CapacityError, DeadlineError, ParityError, TiercelError, TierDeniedError
from tiercel.monitor.counting import WorkerCounters
from tiercel.registry.names import CHAMPION
from tiercel.serving.answers import Answer, Degraded, Question, Served
from tiercel.serving.cost import CostCurve
from tiercel.serving.entity_key import keys_of
from tiercel.serving.guard import Guard
from tiercel.serving.ladder import Candidate, Reason, Rung, can_degrade, choose
from tiercel.serving.ladder_check import KnownModel, KnownVersion, challenger_fits, check, fallback_misfits
from tiercel.serving.last_scores import LastScores
from tiercel.serving.queues import Queues
from tiercel.serving.rollout import CHALLENGER_ARM, CHAMPION_ARM, arm_of, assignment_key, is_finite
from tiercel.serving.rooms import MAX_BODY_BYTES, Rooms
from tiercel.serving.shadow import ShadowQueue
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel._hot.reply import ReplyIds
    from tiercel.serving.deadline import Budget, Deadline
    from tiercel.serving.engine import Engine
    from tiercel.serving.limits import Limits
    from tiercel.settings import ModelSettings

__all__ = ["Answer", "Degraded", "Question", "Router", "Served", "require_time"]

#: Of the last scores of all models in one worker.
LAST_SCORES_BYTES = 64 << 20
MAX_SHADOWS = 1024
#: Longer than this nothing is scored where other requests wait.
INLINE_US = Tier.REALTIME.budget_us or 0
_NO_STAY = nullcontext()

# Flags of a journal record: see PredictionFlag in prediction.pxd.
DEGRADED, CHALLENGER, SHADOW = 4, 8, 16
_RUNG_BITS = {Rung.FALLBACK: 1 << 8, Rung.LAST_SCORE: 2 << 8, Rung.DEFAULT: 3 << 8}
_REASON_BITS = {
    Reason.DEADLINE: 1 << 12, Reason.OVERLOADED: 2 << 12, Reason.UNAVAILABLE: 3 << 12, Reason.FAILED: 4 << 12
}  # fmt: skip


class Router:
    """Answers questions about any loaded model.

    Args:
        engine: what serves.
        ids: of the replies.
        declared: the tables [models.NAME].
        counters: of the worker.
        max_body_bytes: of one request.
        n_cores: that the worker's threads may use.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        engine: Engine,
        ids: ReplyIds,
        declared: Sequence[ModelSettings] = (),
        counters: WorkerCounters | None = None,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        n_cores: int = 1,
    ) -> None:
        self._engine, self._ids = engine, ids
        self._counters = WorkerCounters() if counters is None else counters
        self._declared = {each.name: each for each in declared}
        self._queues = Queues(self._cost_of)
        self._rooms = Rooms(engine, self._declared, max_body_bytes, n_cores)
        self._routes: object = None
        self._guards: dict[str, Guard] = {}
        self._fits: dict[tuple[str, int, str, int], bool] = {}  # see `_may_stand_in`
        self._last_scores = LastScores(LAST_SCORES_BYTES)
        self._shadows = ShadowQueue(MAX_SHADOWS, self._is_idle)

    @property
    def problems(self) -> list[str]:
        """What is declared in vain, and challengers that are out, in words for `/readyz`."""
        routes = self._engine.routes
        known = {
            name: KnownModel({version: _known(plan) for version, plan in model.plans.items()}, model.aliases)
            for name, model in routes.models.items()
        }
        out = [problem for guard in self._guards.values() if (problem := guard.problem) is not None]
        return [*check(list(self._declared.values()), known), *out]

    @property
    def limits(self) -> Limits:
        """What the models that are served now give."""
        self._follow_routes()
        return self._rooms.limits

    def enter(self, reference: str, n_bytes: int | None) -> AbstractContextManager[object]:
        """A place for a request with a body of `n_bytes` (None: it does not say), asked for before that is read.

        Raises:
            CapacityError: its tier has no room.
        """
        self._follow_routes()
        try:
            plan = self._engine.find_plan(reference)
            stay = self._rooms.enter(None if plan is None else plan.tier, n_bytes)
        except CapacityError:
            self._counters.add("refused_capacity")
            raise
        return _NO_STAY if stay is None else stay

    async def find(self, reference: str) -> ServingPlan:
        """The plan that a reference ("name", "name@alias", "name:version") names.

        Raises:
            RequestError, NotFoundError, TiercelError: see `Engine.load_plan`.
        """
        plan = self._engine.find_plan(reference)
        return await self._engine.load_plan(reference) if plan is None else plan

    async def close(self) -> None:
        """Answer what was accepted; refuse the rest."""
        await self._shadows.close()
        await self._queues.close()

    # -- answering ----------------------------------------------------------------------------------------------------

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
        self.after(served, question)
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
            served.deadline,
        )

    async def plan_for_job(self, reference: str, tier: Tier | None) -> ServingPlan | None:
        """The plan of a question that becomes a job: it asks for that, or its model has no other tier. Else None.

        Whoever asks for a faster tier wants an answer or a refusal, and never a job.

        Raises:
            RequestError, NotFoundError, TiercelError: see `find`, where a job was asked for.
        """
        if tier is Tier.BATCH:
            return await self.find(reference)
        if tier is not None:
            return None
        try:
            plan = await self.find(reference)
        except TiercelError:
            return None  # `serve` raises it too, or knows a stand-in
        return plan if plan.tier == Tier.BATCH else None

    async def serve(self, reference: str, question: Question, budget: Budget, tier: Tier | None = None) -> Served:
        """Score what is asked, to be answered by the caller, who then calls `after`. Raises as `answer`.

        Args:
            reference: of a model.
            question: see there.
            budget: of the request.
            tier: that it asks for; None: its model's. A faster tier than the model's is refused by the ladder's means: it
                is a deadline.
        """
        if tier is not None and tier.budget_us is not None and budget.budget_us is None:
            budget = budget.with_us(tier.budget_us, 1, "$.tier", "$.tier")
        try:
            served = await self._serve(reference, question, budget)
        except DeadlineError:
            self._counters.add("refused_deadline")
            raise
        except CapacityError:
            self._counters.add("refused_capacity")
            raise
        if served.degraded is not None:
            self._counters.add(f"degraded_{served.degraded.by}")
        return served

    async def _serve(self, reference: str, question: Question, budget: Budget) -> Served:
        name, _, alias = reference.partition("@")
        declared = self._declared.get(name) if alias in {"", CHAMPION} else None
        self._follow_routes()
        if declared is None:
            plan = await self.find(reference)
            deadline = budget.over(Tier(plan.tier))
            prepared = await self._score(plan, question, budget, deadline, is_asked=budget.budget_us is not None)
            return Served(prepared, deadline)
        return await self._serve_declared(declared, reference, question, budget)

    def after(self, served: Served, question: Question) -> None:
        """What may be done once the reply is written: remember the score, let the shadow score too. Never raises."""
        plan = served.prepared.plan
        declared = self._declared.get(plan.model)
        if declared is None or served.degraded is not None:
            return
        if declared.last_score_max_age_s > 0:
            keys = keys_of(question.entities, served.prepared.n_rows)
            if keys is not None:
                now_us = time.monotonic_ns() // 1000
                rows = [_row(score) for score in served.prepared.scores()]
                self._last_scores.put_rows(plan.model, keys, plan.version, rows, now_us)
        if declared.shadow is not None:
            self._offer_shadow(declared.shadow, plan, question)

    async def _serve_declared(
        self, declared: ModelSettings, reference: str, question: Question, budget: Budget
    ) -> Served:
        default_us = None if declared.deadline_ms is None else int(1000 * declared.deadline_ms)
        is_asked = budget.budget_us is not None or default_us is not None
        plans: dict[int, ServingPlan] = {}  # by place in `candidates`
        champion, candidates = None, []
        ticket, arm = None, CHAMPION_ARM
        try:
            champion = await self.find(reference)
        except TiercelError as error:
            if not can_degrade(error):
                raise
            candidates.append(Candidate(Rung.CHAMPION, declared.name, None, 0, error))
        else:
            challenger, ticket = self._challenger(declared, champion, question)
            for plan in (challenger, champion):
                if plan is not None:
                    plans[len(candidates)] = plan
                    candidates.append(self._candidate(Rung.CHAMPION, plan, question))
            arm = CHAMPION_ARM if challenger is None else CHALLENGER_ARM
        await self._add_fallback(declared, champion, question, candidates, plans)
        ready = self._add_ready_answers(declared, champion, question, candidates)
        tier = Tier.REALTIME if champion is None else Tier(champion.tier)
        deadline = budget.over(tier, default_us)
        while True:
            # Without a deadline that anybody set, the tier's is a promise about one row, not a reason to refuse many.
            left_us = deadline.remaining_us() if deadline is not None and is_asked else None
            choice = choose(candidates, left_us, None if deadline is None else deadline.budget_us)
            place = candidates.index(choice.candidate)
            if place not in plans:
                return self._served_ready(
                    choice.rung, choice.reason, ready[place], champion, question, budget, deadline
                )
            plan = plans[place]
            asked = question if choice.rung is Rung.CHAMPION else _narrowed(question, plan)
            try:
                prepared = await self._score(plan, asked, budget, deadline, is_asked=is_asked)
                if ticket is not None and place == 0:
                    _require_finite(prepared)
            except Exception as error:
                if place == 0 and ticket is not None:
                    self._settle(declared.name, ticket, error)
                    arm = CHAMPION_ARM
                if not can_degrade(error):
                    raise
                candidates[place] = choice.candidate.refused(error)
                if all(candidate.refusal is not None for candidate in candidates):
                    raise
                continue
            if place == 0 and ticket is not None:
                self._settle(declared.name, ticket, None)
            if choice.rung is Rung.CHAMPION:
                return Served(prepared, deadline, CHALLENGER if arm == CHALLENGER_ARM else 0, None, arm)
            return _degraded(prepared, deadline, choice.rung, choice.reason, candidates[0].label)

    async def _score(
        self, plan: ServingPlan, question: Question, budget: Budget, deadline: Deadline | None, *, is_asked: bool
    ) -> Prepared:
        n_rows = question.n_rows
        needed_us = plan.need_us(n_rows)
        if plan.tier == Tier.BATCH:
            raise TierDeniedError(
                f"Expected a model that can answer while a request waits, got '{plan.model}' version {plan.version}, which "
                f"serves batch jobs only: an answer for {n_rows} row{'' if n_rows == 1 else 's'} takes "
                f"{needed_us / 1000:.3f} ms, as measured. POST it to /predict/{plan.model}:{plan.version} without a tier, "
                f"which makes a job of it."
            )
        if is_asked and deadline is not None:
            require_time(deadline, needed_us, plan.model)
        prepared = plan.prepare(question.entities, question.features, question.now_us, budget.begin_ns)
        if _is_inline(plan, needed_us):
            if is_asked and deadline is not None:
                require_time(deadline, plan.score_us(prepared.n_rows), plan.model)
            prepared.score()
            return prepared
        budget_us = Tier.NEAR_REALTIME.budget_us or 0
        due_ns = budget.begin_ns + 1000 * budget_us if deadline is None else deadline.due_ns
        if not is_asked and 2 * needed_us > budget_us:
            # Nobody asked for a deadline and this many rows cannot keep the tier's: they are done when they are done.
            due_ns = self._unhurried_ns(plan, n_rows, needed_us)
        prepared.give_scores(await self._queues.score(plan, prepared.rows(), due_ns))
        self._counters.add("near_realtime_requests")
        return prepared

    # -- the ladder ---------------------------------------------------------------------------------------------------

    def _candidate(self, rung: Rung, plan: ServingPlan, question: Question) -> Candidate:
        n_rows = question.n_rows
        needed_us = plan.need_us(n_rows)
        if not _is_inline(plan, needed_us):
            needed_us = max(needed_us, float(self._queues.wait_us(plan, n_rows)))
        return Candidate(rung, plan.model, plan.version, int(needed_us))

    async def _add_fallback(
        self,
        declared: ModelSettings,
        champion: ServingPlan | None,
        question: Question,
        candidates: list[Candidate],
        plans: dict[int, ServingPlan],
    ) -> None:
        if declared.fallback is None:
            return
        try:
            plan = await self.find(declared.fallback)
        except TiercelError as error:
            candidates.append(Candidate(Rung.FALLBACK, declared.fallback, None, 0, error))
            return
        if champion is not None and not self._may_stand_in(champion, declared.fallback, plan):
            return  # `problems` says why
        plans[len(candidates)] = plan
        candidates.append(self._candidate(Rung.FALLBACK, plan, question))

    def _may_stand_in(self, champion: ServingPlan, reference: str, plan: ServingPlan) -> bool:
        """Whether a fallback's scores mean what the champion's do, of a question that was made for the champion."""
        key = champion.model, champion.version, plan.model, plan.version
        fits = self._fits.get(key)
        if fits is None:
            fits = not fallback_misfits(champion.model, _known(champion), reference, _known(plan))
            self._fits[key] = fits
        return fits

    def _add_ready_answers(
        self, declared: ModelSettings, champion: ServingPlan | None, question: Question, candidates: list[Candidate]
    ) -> dict[int, tuple[Any, int | None]]:
        """Answers that need no model; returns {place: (scores, age)}. They are given in the champion's name."""
        ready: dict[int, tuple[Any, int | None]] = {}
        if champion is None:
            return ready
        if declared.last_score_max_age_s > 0:
            keys = keys_of(question.entities, question.n_rows)
            max_age_us = int(1e6 * declared.last_score_max_age_s)
            now_us = time.monotonic_ns() // 1000
            found = None if not keys else self._last_scores.get_rows(declared.name, keys, now_us, max_age_us)
            if found and len(found[0].scores) == champion.n_outputs:
                ready[len(candidates)] = [each.scores for each in found], max(each.age_us for each in found)
                candidates.append(Candidate(Rung.LAST_SCORE, declared.name, found[0].version))
        if declared.default_score is not None and champion.n_outputs == 1:
            ready[len(candidates)] = declared.default_score, None
            candidates.append(Candidate(Rung.DEFAULT, declared.name, None))
        return ready

    def _served_ready(
        self,
        rung: Rung,
        reason: Reason | None,
        ready: tuple[Any, int | None],
        champion: ServingPlan | None,
        question: Question,
        budget: Budget,
        deadline: Deadline | None,
    ) -> Served:
        assert champion is not None  # noqa: S101 - ready answers are offered only beside one
        scores, age_us = ready
        n_rows = question.n_rows if question.has_lists else -1
        prepared = champion.blank(question.entities, n_rows, budget.begin_ns)
        prepared.give_scores(scores)
        served = _degraded(prepared, deadline, rung, reason, f"{champion.model}:{champion.version}")
        if served.degraded is None or age_us is None:
            return served
        return replace(served, degraded=replace(served.degraded, age_us=age_us))

    # -- arms ---------------------------------------------------------------------------------------------------------

    def _challenger(
        self, declared: ModelSettings, champion: ServingPlan, question: Question
    ) -> tuple[ServingPlan | None, int | None]:
        """The challenger, where it is its turn, and a ticket of its guard."""
        if declared.challenger_weight <= 0:
            return None, None
        plan = self._engine.find_plan(f"{declared.name}@challenger")
        if plan is None or plan.version == champion.version or not challenger_fits(_known(champion), _known(plan)):
            return None, None
        key = assignment_key(question.entities, question.features)
        if arm_of(declared.name, key, declared.challenger_weight) != CHALLENGER_ARM:
            return None, None
        ticket = self._guards.setdefault(declared.name, Guard(declared.name)).admit(plan.version)
        return (None, None) if ticket is None else (plan, ticket)

    def _settle(self, name: str, ticket: int, error: Exception | None) -> None:
        """Tell the guard how it went. A question that was wrong, or came too late, is nobody's failure."""
        guard = self._guards[name]
        if error is None:
            guard.settle(ticket)
        elif can_degrade(error) and not isinstance(error, DeadlineError | CapacityError):
            self._counters.add("challenger_failed")
            guard.settle(ticket, f"{type(error).__name__}: {error}")

    def _offer_shadow(self, alias: str, plan: ServingPlan, question: Question) -> None:
        shadow = self._engine.find_plan(f"{plan.model}@{alias}")
        if shadow is None or shadow.version == plan.version:
            return
        made: list[Prepared] = []

        async def work() -> list[Any]:
            prepared = shadow.prepare(question.entities, question.features, question.now_us)
            needed_us = shadow.need_us(prepared.n_rows)
            if _is_inline(shadow, needed_us):
                prepared.score()
            else:  # beside the event loop: here it would hold up every request for as long as it takes
                due_ns = self._unhurried_ns(shadow, prepared.n_rows, needed_us)
                prepared.give_scores(await self._queues.score(shadow, prepared.rows(), due_ns))
            made.append(prepared)
            return prepared.scores()

        def record(_scores: Any) -> None:
            made[0].record(self._ids, SHADOW)

        n_bytes = 100 * question.n_rows * (len(question.entities) + len(question.features))
        self._shadows.offer(f"{shadow.model}:{shadow.version}", work, record, n_bytes=n_bytes)

    def _unhurried_ns(self, plan: ServingPlan, n_rows: int, needed_us: float) -> int:
        """When rows that nobody set a deadline for are due: twice what they are expected to take."""
        return time.monotonic_ns() + 2000 * (self._queues.wait_us(plan, n_rows) + int(needed_us))

    def _is_idle(self) -> bool:
        """Whether nobody waits for a score."""
        return all(batcher.n_waiting == 0 for batcher in self._queues.batchers().values())

    # -- what is served -----------------------------------------------------------------------------------------------

    def _cost_of(self, plan: ServingPlan) -> CostCurve | None:
        profile = self._engine.profile_of(plan.model, plan.version)
        return None if profile is None else CostCurve(profile.curve)

    def _follow_routes(self) -> None:
        routes = self._engine.routes
        if routes is not self._routes:
            self._routes = routes
            self._fits.clear()
            self._rooms.follow(routes)
            self._queues.keep(plan for model in routes.models.values() for plan in model.plans.values())


def _is_inline(plan: ServingPlan, needed_us: float) -> bool:
    """Whether so much work may be done on the event loop itself."""
    return plan.is_inline and needed_us <= INLINE_US


def require_time(deadline: Deadline, needed_us: float, model: str) -> None:
    """Refuse what will be late before it is begun.

    Raises:
        DeadlineError: less is left than is needed.
    """
    left_us = deadline.remaining_us()
    if left_us < max(needed_us, 0):
        raise DeadlineError(
            f"Expected {needed_us / 1000:.3f} ms for an answer of model '{model}' (as measured, 99 of 100 take no longer), "
            f"got {max(left_us, 0) / 1000:.3f} ms: what is left of {deadline.budget_us / 1000:g} ms from "
            f"{deadline.source}. Allow more time, or declare a quicker stand-in under [models.{model}] in tiercel.toml.",
            budget_us=deadline.budget_us,
            needed_us=int(needed_us),
        )


def _known(plan: ServingPlan) -> KnownVersion:
    features = plan.signature.features if plan.schema is None else [f.name for f in plan.schema.request_fields]
    return KnownVersion(plan.signature, plan.join_keys, frozenset(features))


def _degraded(
    prepared: Prepared, deadline: Deadline | None, rung: Rung, reason: Reason | None, instead_of: str
) -> Served:
    why = reason or Reason.UNAVAILABLE
    flags = DEGRADED | _RUNG_BITS[rung] | _REASON_BITS[why]
    return Served(prepared, deadline, flags, Degraded(rung.value, instead_of, why.value))


def _require_finite(prepared: Prepared) -> None:
    """A challenger's score must be a number.

    Raises:
        ParityError: it is not.
    """
    if not is_finite(prepared.scores()):
        raise ParityError(f"Expected finite scores of version {prepared.plan.version}, got others")


def _narrowed(question: Question, plan: ServingPlan) -> Question:
    """What a stand-in understands of a question that was made for another model."""
    return Question(
        {name: value for name, value in question.entities.items() if name in plan.join_keys},
        {name: value for name, value in question.features.items() if name in plan.known_features},
        question.now_us,
    )


def _row(score: Any) -> list[float]:
    return score if isinstance(score, list) else [score]
