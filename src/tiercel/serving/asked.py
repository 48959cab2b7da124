"""The time that a question has, and whether something fits into it."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

from tiercel.errors import DeadlineError

if TYPE_CHECKING:
    from typing import Self

    from tiercel.serving.deadline import Budget, Deadline
    from tiercel.settings import ModelSettings
    from tiercel.types import Tier


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
            f"got {max(left_us, 0) / 1000:.3f} ms: what is left of {deadline.budget_us / 1000:g} ms from "
            f"{deadline.source}. Allow more time, or declare a quicker stand-in under [models.{model}] in tiercel.toml.",
            budget_us=deadline.budget_us,
            needed_us=int(needed_us),
        )
