"""The degrade ladder: champion -> a simpler model -> the last score of this entity -> the declared default.

Whoever answers is chosen **before** anything is begun, by what answering takes at its 99th percentile. A rung that is tried
until its time is over has used up the time of the next one; so time is never found out by running out of it. Only a rung
that fails outright (an error, a score that is no number) is left after it was begun, and then the choice is made again
with what remains.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tiercel.errors import (
    CapacityError,
    DeadlineError,
    ModelError,
    NotFoundError,
    RequestError,
    ScoreError,
    ScoringFailedError,
    StoreError,
    TierDeniedError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Rung(enum.StrEnum):
    """Who may answer, best first. The values are names that replies and journals carry."""

    CHAMPION = "champion"  # the version that was asked for; the challenger, where it is its turn
    FALLBACK = "fallback"
    LAST_SCORE = "last_score"
    DEFAULT = "default"


class Reason(enum.StrEnum):
    """Why the first candidate did not answer. Stable names."""

    DEADLINE = "deadline"  # answering takes longer than what is left
    OVERLOADED = "overloaded"  # its tier has no room
    UNAVAILABLE = "unavailable"  # it could not be loaded, or what it reads is not published
    FAILED = "failed"  # it was asked, and raised or gave something that is no number


_READY = frozenset({Rung.LAST_SCORE, Rung.DEFAULT})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to answer.

    Attributes:
        rung: where it stands.
        name: of the model that it is an answer of.
        version: of that model; None for what no version made.
        needed_us: from now to its answer at the 99th percentile, with what waits before it; 0 for an answer that exists.
        refusal: why it cannot be asked at all; None: it can.
    """

    rung: Rung
    name: str
    version: int | None
    needed_us: int = 0
    refusal: Exception | None = None

    @property
    def is_available(self) -> bool:
        """Whether it can be asked, given the time."""
        return self.refusal is None

    def fits(self, remaining_us: int | None) -> bool:
        """Whether it can be asked and its answer is in time; None: no promise was made.

        An answer that exists always is: when it is too late for it, it is too late for a refusal as well, and of the two
        the answer is what a client that still waits can use.
        """
        return self.is_available and (remaining_us is None or self.needed_us <= remaining_us or self.rung in _READY)

    @property
    def label(self) -> str:
        """As replies name it: "fraud:3"."""
        return self.name if self.version is None else f"{self.name}:{self.version}"

    def refused(self, error: Exception) -> Candidate:
        """The same one after it was asked in vain."""
        return replace(self, refusal=error)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers; `reason` is why it is not the first candidate, None if it is."""

    candidate: Candidate
    reason: Reason | None = None

    @property
    def rung(self) -> Rung:
        """Where the chosen one stands."""
        return self.candidate.rung


def choose(candidates: Sequence[Candidate], remaining_us: int | None, budget_us: int | None = None) -> Choice:
    """The first candidate that `fits`: it can be asked, and its answer is still in time.

    Args:
        candidates: best first; at least one. The first is who should answer.
        remaining_us: until the reply is due; None: no promise was made.
        budget_us: what the request was given in all, for the message; None: what remains.

    Raises:
        DeadlineError: what can be asked takes too long, the quickest of them `needed_us`.
        Exception: the first candidate's refusal, where it is not for time that nobody answers: who is refused for want
            of room must hear when there will be some, not that a stand-in would have been late too.
    """
    first = candidates[0]
    left_us = math.inf if remaining_us is None else remaining_us
    for candidate in candidates:
        if candidate.fits(remaining_us):
            return Choice(candidate, None if candidate is first else _reason(first))
    if first.refusal is not None:
        raise first.refusal
    quickest = min((each for each in candidates if each.is_available), key=lambda each: each.needed_us)
    given_us = int(left_us) if budget_us is None else budget_us
    if quickest.needed_us == 0:  # an answer that exists: only a deadline that is over already is too short for it
        raise DeadlineError(
            f"Expected time to answer about model '{first.name}', got a deadline of {given_us / 1000:g} ms that was over "
            f"{-left_us / 1000:g} ms before anybody could be chosen to answer. Allow more time.",
            budget_us=given_us,
            needed_us=quickest.needed_us,
        )
    raise DeadlineError(
        f"Expected at least {quickest.needed_us / 1000:g} ms for the quickest answer about model '{first.name}' "
        f"({quickest.rung}, {quickest.label}), {max(left_us, 0) / 1000:g} ms are left of {given_us / 1000:g} ms. "
        f"Allow more time, or declare a quicker stand-in under [models.{first.name}] in tiercel.toml.",
        budget_us=given_us,
        needed_us=quickest.needed_us,
    )


def too_late(candidates: Sequence[Candidate], budget_us: int) -> DeadlineError:
    """What `choose` says once the deadline is over: of candidates that could be asked, and have no answer already."""
    try:
        choose(candidates, -1, budget_us)
    except DeadlineError as error:
        return error
    raise AssertionError("Nobody is in time once the deadline is over")


def can_degrade(error: Exception) -> bool:
    """Whether another rung may answer after this error: not where the question itself is wrong, for it stays so."""
    return not isinstance(error, RequestError | NotFoundError)


def reason_of(refusal: Exception) -> Reason:
    """The name of why a candidate cannot be asked, or was asked in vain."""
    if isinstance(refusal, CapacityError):
        return Reason.OVERLOADED
    if isinstance(refusal, DeadlineError | TierDeniedError):
        return Reason.DEADLINE
    # It was asked: what cannot be loaded has another class.
    if type(refusal) is ModelError or isinstance(refusal, ScoreError | ScoringFailedError):
        return Reason.FAILED
    if isinstance(refusal, ModelError | StoreError | NotFoundError):
        return Reason.UNAVAILABLE
    return Reason.FAILED


def _reason(first: Candidate) -> Reason:
    return Reason.DEADLINE if first.refusal is None else reason_of(first.refusal)
