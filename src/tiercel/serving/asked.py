"""The time that a question has, and whether something fits into it."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

from tiercel.errors import CapacityError, DeadlineError
from tiercel.types import Tier

if TYPE_CHECKING:
    from typing import Self

    from tiercel._hot.plan import ServingPlan
    from tiercel.serving.deadline import Budget, Deadline
    from tiercel.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Asked:
    """The time of one question. `is_asked`: somebody set the deadline; else it is its tier's.

    A tier's is a promise about one row, not a reason to refuse many, so it decides nothing.
    """

    begin_ns: int
    deadline: Deadline | None
    is_asked: bool

    @classmethod
    def of(cls, budget: Budget, tier: Tier, declared: ModelSettings | None) -> Self:
        """What a request's budget comes to in a tier, for a model with this table (None: without one)."""
        default_us = None if declared is None or declared.deadline_ms is None else int(1000 * declared.deadline_ms)
        is_asked = budget.budget_us is not None or default_us is not None
        return cls(budget.begin_ns, budget.over(tier, default_us), is_asked)

    def left_us(self) -> int | None:
        """What is left; None: nobody set a deadline."""
        return self.deadline.remaining_us() if self.is_asked and self.deadline is not None else None

    def is_behind(self, plan: ServingPlan, n_rows: int, *, can_degrade: bool) -> bool:
        """Whether `plan` scores inline, and takes so much of the event loop's time that others would be late for it.

        Each single answer may be in time and the server overloaded all the same: with 5 ms for each and 10 ms of time, who
        asks 300 times a second makes everybody late. So the model's use of the loop is followed, and where somebody else
        can answer, it is asked only as often as leaves those who wait meanwhile the time for them.
        """
        return (
            can_degrade
            and self.is_asked
            and self.deadline is not None
            and plan.is_behind(n_rows, self.deadline.budget_us, monotonic_ns() - self.begin_ns)
        )


def behind(label: str) -> CapacityError:
    """Why a version is not asked that is behind."""
    return CapacityError(
        f"Model {label} is scored where other requests wait, and uses more of that time than they can spare. Try again later",
        predicted_wait_us=Tier.REALTIME.budget_us or 0,
    )


def require_time(deadline: Deadline, needed_us: float, model: str) -> None:
    """Refuse what will be late before it is begun; `needed_us` is at least 0.

    Raises:
        DeadlineError: less is left than is needed.
    """
    # PERF: asked before every stage, so no call but the clock's, and floats: integers this large compare with them slowly.
    left_us = (deadline.begin_ns - monotonic_ns()) * 1e-3 + deadline.budget_us
    if left_us < needed_us:
        raise DeadlineError(
            f"Expected {needed_us / 1000:.3f} ms for an answer of model '{model}' (as measured, 99 of 100 take no longer), "
            f"got {max(left_us, 0) / 1000:.3f} ms: what is left of {deadline.budget_us / 1000:g} ms "
            f"{deadline.origin}. Allow more time, or declare a quicker stand-in under [models.{model}] in tiercel.toml.",
            budget_us=deadline.budget_us,
            needed_us=int(needed_us),
        )
