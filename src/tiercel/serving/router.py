"""From a question to an answer, whoever asked in whichever protocol: which version, in which tier, within the deadline.

A model without a table in tiercel.toml is simply asked. One with a table may be divided between two arms, and has a degrade
ladder: who answers is chosen up front, by measured cost against what is left of the deadline (`serving/ladder.py`), and
chosen again only if the chosen one fails outright.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from tiercel.errors import (
    CapacityError,
    DeadlineError,
    InvalidNameError,
    ModelUnavailableError,
    NotFoundError,
    RequestError,
    TiercelError,
    TierDeniedError,
)
from tiercel.monitor.counting import WorkerCounters
from tiercel.registry.names import CHAMPION, parse_reference
from tiercel.serving.answers import CHALLENGER, SHADOW, Answer, Degraded, Question, Served
from tiercel.serving.asked import Asked, behind, require_time
from tiercel.serving.cost import CostCurve
from tiercel.serving.durable_answers import make_durable
from tiercel.serving.explaining import Explaining
from tiercel.serving.guard import Guard
from tiercel.serving.ladder import Candidate, Rung, can_degrade, choose
from tiercel.serving.ladder_check import KnownModel, KnownVersion, challenger_fits, check, fallback_misfits
from tiercel.serving.question_check import require_answerable
from tiercel.serving.queues import Queues
from tiercel.serving.ready_answers import ReadyAnswers
from tiercel.serving.rollout import CHALLENGER_ARM, arm_of, assignment_key
from tiercel.serving.rooms import MAX_BODY_BYTES, Rooms
from tiercel.serving.score_check import require_finite, score_here
from tiercel.serving.shadow import ShadowQueue
from tiercel.serving.waiters import Seat, leave_by
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel._hot.reply import ReplyIds
    from tiercel.monitor.group_commit import GroupCommit
    from tiercel.serving.deadline import Budget
    from tiercel.serving.engine import Engine
    from tiercel.serving.explain_request import ExplainRequest
    from tiercel.serving.limits import Limits, Stay
    from tiercel.serving.ready_answers import ReadyAnswer
    from tiercel.serving.schedule import Lines
    from tiercel.settings import ModelSettings

__all__ = ["Answer", "Degraded", "Question", "Router", "Served", "require_time"]

log = logging.getLogger("tiercel.serving")

MAX_SHADOWS = 1024
#: Longer than this nothing is scored where other requests wait.
INLINE_US = Tier.REALTIME.budget_us or 0
QUEUED_US = Tier.NEAR_REALTIME.budget_us or 0
_NO_STAY: AbstractContextManager[None] = nullcontext()


class Router:
    """Answers questions about any loaded model.

    Args:
        engine: what serves.
        ids: of the replies.
        declared: the tables [models.NAME].
        counters: of the worker.
        max_body_bytes: of one request.
        n_cores: that the worker's threads may use.
        commit: makes records durable; None: models that need that do not answer.

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
        commit: GroupCommit | None = None,
    ) -> None:
        self._engine, self._ids, self._commit = engine, ids, commit
        self._counters = WorkerCounters() if counters is None else counters
        self._declared = {each.name: each for each in declared}
        self._queues = Queues(self._cost_of, self._counters)
        self._rooms = Rooms(engine, self._declared, max_body_bytes, n_cores)
        self._routes: object = None
        self._fits: dict[tuple[str, int, str, int], bool] = {}  # see `_may_stand_in`
        self._guards: dict[str, Guard] = {}
        self._ready = ReadyAnswers()
        self._explaining = Explaining()
        self._shadows = ShadowQueue(MAX_SHADOWS, self._is_idle, count=self._counters.add)
        self._told: set[tuple[str, type[Exception]]] = set()

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

    def enter(self, reference: str, n_bytes: int | None) -> AbstractContextManager[Stay | None]:
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

    def enter_job(self, stay: Stay | None, n_bytes: int) -> AbstractContextManager[Stay | None]:
        """A place for a request that turned out to be a job, whatever its model's tier; `stay` is what `enter` gave it.

        Raises:
            CapacityError: there is none.
        """
        try:
            found = self._rooms.enter_job(stay, n_bytes)
        except CapacityError:
            self._counters.add("refused_capacity")
            raise
        return _NO_STAY if found is None else found

    def is_job(self, stay: Stay | None) -> bool:
        """Whether the request that was given this place can only become a job."""
        return self._rooms.is_job(stay)

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
        self._explaining.close()

    # -- answering ----------------------------------------------------------------------------------------------------

    async def answer(
        self, reference: str, question: Question, budget: Budget, explain: ExplainRequest | None = None
    ) -> Answer:
        """Score what is asked, explain it where that is asked too, and record it.

        Raises:
            RequestError: the question does not fit the model.
            NotFoundError: no such model, version, alias or entity.
            DeadlineError, CapacityError: it cannot be answered in time, or there is no room.
        """
        served = await self.serve(reference, question, budget, explain=explain)
        number = served.prepared.record(self._ids, served.flags)
        await self.make_durable(reference, served)
        self.after(served, question)
        return Answer.of(served, number, is_explained=explain is not None)

    def compiled_fallback(self, champion: ServingPlan, *, is_last: bool = False) -> ServingPlan | None:
        """The fallback of a champion, where the compiled path may ask it in its place; `is_last`: and nobody after it."""
        declared = self._declared.get(champion.model)
        if declared is None or declared.fallback is None or (is_last and declared.has_ready_answer):
            return None
        plan = self._engine.find_plan(declared.fallback)
        if (
            plan is None
            or not plan.is_plain
            or plan.is_strict
            or (plan.model, plan.version) == (champion.model, champion.version)
        ):
            return None
        return plan if self._may_stand_in(champion, declared.fallback, plan) else None

    def lines(self, plan: ServingPlan) -> Lines:
        """Of the queue of a plan that `is_queued`: see `Batcher.lines`."""
        self._follow_routes()
        return self._queues.lines(plan)

    def take(self, seat: Seat) -> Seat:
        """Queue a question that the compiled path assembled.

        Raises:
            CapacityError, DeadlineError: refused, and nobody else was asked.
        """
        self._follow_routes()
        return self._queues.take(seat)

    def poll(self) -> None:
        """See `Batcher.poll`; for whoever reads many requests without giving way to the event loop."""
        self._queues.poll()

    def outlasts_tier(self, prepared: Prepared) -> bool:
        """Whether so many rows cannot be promised within their tier's bound."""
        return self._needs_long(prepared.plan, prepared.n_rows) is not None

    async def plan_for_job(self, reference: str, tier: Tier | None) -> ServingPlan | None:
        """The plan of a question that becomes a job: it asks for that, or its model has no other tier. Else None.

        A question that asks for a faster tier is no job, whatever its model is: who wants an answer now is told that there
        is none, not to come back for it.

        Raises:
            RequestError, NotFoundError, TiercelError: see `find`, where a job was asked for.
        """
        if tier is Tier.BATCH:
            return await self.find(reference)
        if tier is not None:
            return None
        plan = self._engine.find_plan(reference)
        if plan is None:
            try:
                plan = await self.find(reference)
            except TiercelError:  # `serve` meets it again, and may have a stand-in
                return None
        return plan if plan.tier == Tier.BATCH else None

    async def serve(
        self,
        reference: str,
        question: Question,
        budget: Budget,
        tier: Tier | None = None,
        explain: ExplainRequest | None = None,
    ) -> Served:
        """Score what is asked, to be answered by the caller, who then calls `after`. Raises as `answer`.

        Args:
            reference: of a model.
            question: see there.
            budget: of the request.
            tier: that it asks for; None: its model's. A faster tier than the model's is refused by the ladder's means: it
                is a deadline.
            explain: what the reply is to say beside the scores. It takes what they leave of the budget, and fails nothing.
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
        if explain is not None:
            await self._explaining.explain(served, explain)
        return served

    async def _serve(self, reference: str, question: Question, budget: Budget) -> Served:
        self._follow_routes()
        declared, is_champion = self._settings_of(reference)
        if declared is not None and is_champion:
            return await self._serve_declared(declared, reference, question, budget)
        plan = await self.find(reference)
        asked = Asked.of(budget, Tier(plan.tier), declared)
        return Served(await self._score(plan, question, asked), asked.deadline)

    def _settings_of(self, reference: str) -> tuple[ModelSettings | None, bool]:
        """(the table of the model that is named, whether it is the champion that is asked), however it is spelled."""
        if not self._declared:
            return None, False
        declared = self._declared.get(reference)
        if declared is not None:
            return declared, True
        try:
            name, selector = parse_reference(reference)
        except InvalidNameError:  # `find` says what is wrong
            return None, False
        return self._declared.get(name), selector is None or selector == CHAMPION

    async def make_durable(self, reference: str, served: Served) -> None:
        """Return once an answer that was just recorded may be given. Raises AuditUnavailableError: it may not."""
        declared, _ = self._settings_of(reference)
        if served.prepared.plan.is_strict or (declared is not None and declared.is_strict):
            await make_durable(served.prepared, self._commit)

    def after(self, served: Served, question: Question) -> None:
        """What may be done once the reply is written: remember the score, let the shadow score too. Never raises."""
        plan = served.prepared.plan
        declared = self._declared.get(plan.model)
        # What somebody asked of a certain version by its number or alias is not what the model answers.
        if declared is None or not served.is_declared or served.degraded is not None:
            return
        self._ready.remember(declared, served.prepared, question)
        if declared.shadow is not None:
            self._offer_shadow(declared.shadow, plan, question)

    async def _serve_declared(
        self, declared: ModelSettings, reference: str, question: Question, budget: Budget
    ) -> Served:
        champion: ServingPlan | None = None
        refusal: TiercelError | None = None
        try:
            champion = await self.find(reference)
        except TiercelError as error:
            if not can_degrade(error):
                raise
            refusal = error.with_traceback(None)
        asked = Asked.of(budget, Tier.REALTIME if champion is None else Tier(champion.tier), declared)
        blamed: tuple[int, Exception] | None = None
        plans: dict[int, ServingPlan] = {}  # by place in `candidates`
        ready: dict[int, ReadyAnswer] = {}  # likewise
        if champion is None:
            candidates = [Candidate(Rung.CHAMPION, declared.name, None, 0, refusal)]
        else:
            served, blamed = await self._serve_challenger(declared, champion, question, asked)
            if served is not None:
                return served
            plans[0] = champion
            candidates = [self._candidate(Rung.CHAMPION, champion, question, asked)]
        willing = None  # who would be in time itself, and keep others from it
        if champion is not None and asked.is_behind(champion, question.n_rows, can_degrade=declared.has_stand_in):
            willing = candidates[0]
            candidates[0] = willing.refused(behind(willing.label))
        while True:
            left_us, deadline = asked.left_us(), asked.deadline  # one moment for the look and the choice
            if len(candidates) == 1 and not candidates[0].fits(left_us):
                await self._add_fallback(declared, champion, question, asked, candidates, plans)
                if champion is not None and declared.has_stand_in:
                    require_answerable(champion, question)
                    ready = self._ready.offer(declared, champion, question, candidates)
                left_us = asked.left_us()
                if willing is not None and not any(each.fits(left_us) for each in candidates):
                    candidates[0], willing = willing, None
            choice = choose(candidates, left_us, None if deadline is None else deadline.budget_us)
            place = candidates.index(choice.candidate)
            if place in ready:
                return ready[place].serve(choice, candidates[0].label, question, asked)
            plan = plans[place]
            try:
                if choice.rung is Rung.CHAMPION:
                    prepared = await self._score(plan, question, asked, can_leave=declared.has_stand_in)
                    if declared.has_stand_in:
                        require_finite(prepared)
                    if blamed is not None:  # the question was right after all
                        self._settle(declared.name, *blamed)
                    return Served(prepared, asked.deadline, is_declared=True)
                prepared = await self._score(plan, question.narrowed(plan, champion), asked)
                require_finite(prepared)
            except Exception as error:
                # What a stand-in finds wrong with a question says nothing about the question: it was put to another model.
                if choice.rung is Rung.CHAMPION and not can_degrade(error):
                    raise
                self._tell(choice.candidate, error)
                # Without its frames: they lead back to the candidates, and only the collector would free them.
                candidates[place] = choice.candidate.refused(error.with_traceback(None))
                continue
            return Served.instead(prepared, asked.deadline, choice, candidates[0].label)

    def _tell(self, candidate: Candidate, error: Exception) -> None:
        """Say once for each version and kind of failure why it did not answer: clients hear of it in one word."""
        if isinstance(error, DeadlineError | CapacityError):
            return
        what = candidate.label, type(error)
        if what not in self._told:
            self._told.add(what)
            log.error("Model %s: another answers for it: %s", candidate.label, error, exc_info=error)

    async def _score(self, plan: ServingPlan, question: Question, asked: Asked, *, can_leave: bool = False) -> Prepared:
        """Read and score. `can_leave`: others are asked, in time, where it cannot be scored by a certain deadline."""
        if plan.tier == Tier.BATCH:
            raise TierDeniedError(
                f"Expected a model that can answer while a request waits, got '{plan.model}' version {plan.version}, which "
                f"serves batch jobs only: an answer takes {plan.need_us(question.n_rows) / 1000:.3f} ms, as measured. POST it "
                f"to /predict/{plan.model}:{plan.version} without a tier, or with tier {Tier.BATCH}, which makes a job of it"
            )
        needed_us = plan.need_us(question.n_rows)
        deadline = asked.deadline if asked.is_asked else None
        if deadline is not None:
            require_time(deadline, needed_us, plan.model)
        prepared = plan.prepare(question.entities, question.features, question.now_us, asked.begin_ns)
        if _is_inline(plan, prepared.n_rows):
            if deadline is not None:
                require_time(deadline, plan.score_us(prepared.n_rows), plan.model)
            score_here(prepared)
            return prepared
        due_ns = self._due_ns(plan, prepared.n_rows, asked.begin_ns) if deadline is None else deadline.due_ns
        can_leave = deadline is not None and can_leave
        if deadline is not None and can_leave:
            due_ns = leave_by(due_ns, 1000 * deadline.budget_us, int(1000 * needed_us), 0)
        try:
            scores = await self._queues.score(plan, prepared.rows(), due_ns, can_leave=can_leave)
        except DeadlineError as error:
            if asked.deadline is None:
                raise
            # The queue knows when the answer is due, not how long the request was given.
            raise DeadlineError(str(error), budget_us=asked.deadline.budget_us, needed_us=error.needed_us) from None
        prepared.give_scores(scores)
        self._counters.add("near_realtime_requests")
        return prepared

    def _due_ns(self, plan: ServingPlan, n_rows: int, begin_ns: int) -> int:
        """When a queued question is due that nobody set a deadline for."""
        needed_us = self._needs_long(plan, n_rows)
        if needed_us is None:
            return begin_ns + 1000 * QUEUED_US
        # So many rows cannot keep the tier's bound: they are done when they are done.
        return time.monotonic_ns() + 2000 * (self._queues.wait_us(plan, n_rows) + needed_us)

    def _needs_long(self, plan: ServingPlan, n_rows: int) -> int | None:
        """What so many rows take, in microseconds, where that is too long for their tier's bound."""
        needed_us = int(max(plan.need_us(n_rows), self._queues.need_us(plan, n_rows)))
        return None if 2 * needed_us <= QUEUED_US else needed_us

    # -- the ladder ---------------------------------------------------------------------------------------------------

    def _candidate(self, rung: Rung, plan: ServingPlan, question: Question, asked: Asked) -> Candidate:
        n_rows = question.n_rows
        needed_us = plan.need_us(n_rows)
        if _is_inline(plan, n_rows) or plan.tier == Tier.BATCH:
            return Candidate(rung, plan.model, plan.version, int(needed_us))
        wait_us, left_us = self._queues.wait_us(plan, n_rows), asked.left_us()
        needed_us = max(needed_us, float(self._queues.need_us(plan, n_rows)))
        refusal = None
        if left_us is not None and needed_us <= left_us < wait_us:
            # It is not slow, others are before it: who is refused for that must hear when there will be room.
            refusal = CapacityError(
                f"Model '{plan.model}' version {plan.version} has no room: an answer would be ready in "
                f"{wait_us / 1000:.3f} ms and is due in {left_us / 1000:.3f} ms. Try again later",
                predicted_wait_us=wait_us - left_us,
            )
        return Candidate(rung, plan.model, plan.version, int(max(needed_us, wait_us)), refusal)

    async def _add_fallback(
        self,
        declared: ModelSettings,
        champion: ServingPlan | None,
        question: Question,
        asked: Asked,
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
        if champion is not None and (plan.model, plan.version) == (champion.model, champion.version):
            return
        if champion is not None and not self._may_stand_in(champion, declared.fallback, plan):
            return  # `problems` says why
        plans[len(candidates)] = plan
        candidates.append(self._candidate(Rung.FALLBACK, plan, question, asked))

    def _may_stand_in(self, champion: ServingPlan, reference: str, plan: ServingPlan) -> bool:
        """Whether a fallback's scores mean what the champion's do, of a question that was made for the champion."""
        key = champion.model, champion.version, plan.model, plan.version
        fits = self._fits.get(key)
        if fits is None:
            fits = not fallback_misfits(champion.model, _known(champion), reference, _known(plan))
            self._fits[key] = fits
        return fits

    # -- arms ---------------------------------------------------------------------------------------------------------

    async def _serve_challenger(
        self, declared: ModelSettings, champion: ServingPlan, question: Question, asked: Asked
    ) -> tuple[Served | None, tuple[int, Exception] | None]:
        """The challenger's answer, where it is its turn and it has one; nothing that it does is felt otherwise.

        Returns:
            (its answer or None, what it found wrong with the question). Whose fault the latter is shows when the champion
            is asked the same.
        """
        plan = self._challenger(declared, champion, question)
        if plan is None:
            return None, None
        left_us = asked.left_us()
        candidate = self._candidate(Rung.CHAMPION, plan, question, asked)
        # Should it fail after all its time is over, the champion must still be in time.
        both_us = candidate.needed_us + self._candidate(Rung.CHAMPION, champion, question, asked).needed_us
        if candidate.refusal is not None or (left_us is not None and both_us > left_us):
            return None, None
        ticket = self._guards.setdefault(declared.name, Guard(declared.name)).admit(plan.version)
        if ticket is None:
            return None, None
        try:
            prepared = await self._score(plan, question.narrowed(plan, champion), asked)
            require_finite(prepared)
        except (RequestError, NotFoundError) as error:
            return None, (ticket, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the champion answers
            if not isinstance(error, DeadlineError | CapacityError):  # those are nobody's failure
                self._settle(declared.name, ticket, error)
            return None, None
        self._guards[declared.name].settle(ticket)
        return Served(prepared, asked.deadline, CHALLENGER, None, CHALLENGER_ARM, is_declared=True), None

    def _challenger(self, declared: ModelSettings, champion: ServingPlan, question: Question) -> ServingPlan | None:
        """The challenger, where it is its turn."""
        if declared.challenger_weight <= 0:
            return None
        plan = self._engine.find_plan(f"{declared.name}@challenger")
        if plan is None or plan.version == champion.version or plan.tier == Tier.BATCH:
            return None
        if not challenger_fits(_known(champion), _known(plan)):
            return None
        key = assignment_key(question.entities, question.features)
        return plan if arm_of(declared.name, key, declared.challenger_weight) == CHALLENGER_ARM else None

    def _settle(self, name: str, ticket: int, error: Exception) -> None:
        """Tell the guard that the challenger failed."""
        self._counters.add("challenger_failed")
        self._guards[name].settle(ticket, f"{type(error).__name__}: {error}")

    def _offer_shadow(self, alias: str, plan: ServingPlan, question: Question) -> None:
        reference = f"{plan.model}@{alias.lower()}"
        offered = self._engine.find_plan(reference)
        if offered is None or offered.version == plan.version:
            return
        made: list[Prepared] = []

        async def work() -> list[Any]:
            # Looked up again: what was live when the reply was written may be gone, and its queue with it.
            shadow = self._engine.find_plan(reference)
            if shadow is None:
                raise ModelUnavailableError(f"Expected a model at '{reference}', got one that is gone")
            narrow = question.narrowed(shadow, plan)
            prepared = shadow.prepare(narrow.entities, narrow.features, narrow.now_us)
            n_rows = prepared.n_rows
            if _is_inline(shadow, n_rows):
                prepared.score()
            else:
                due_ns = self._due_ns(shadow, n_rows, time.monotonic_ns())
                prepared.give_scores(await self._queues.score(shadow, prepared.rows(), due_ns))
            made.append(prepared)
            return prepared.scores()

        def record(_scores: Any) -> None:
            made[0].record(self._ids, SHADOW)

        n_bytes = 100 * question.n_rows * (len(question.entities) + len(question.features))
        self._shadows.offer(f"{offered.model}:{offered.version}", work, record, n_bytes=n_bytes)

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


def _known(plan: ServingPlan) -> KnownVersion:
    features = plan.signature.features if plan.schema is None else [f.name for f in plan.schema.request_fields]
    return KnownVersion(plan.signature, plan.join_keys, frozenset(features))


def _is_inline(plan: ServingPlan, n_rows: int) -> bool:
    """Whether so many rows may be scored where other requests wait, as the compiled path judges: reading is done there."""
    return plan.is_inline and plan.score_us(n_rows) <= INLINE_US
