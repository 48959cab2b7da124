"""What a router is asked, and what it gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.serving.ladder import Reason, Rung
from tiercel.types import Tier

if TYPE_CHECKING:
    from typing import Self

    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel.serving.deadline import Deadline
    from tiercel.serving.ladder import Choice

# Flags of a journal record: see PredictionFlag in prediction.pxd.
DEGRADED, CHALLENGER, SHADOW = 4, 8, 16
_RUNG_BITS = {Rung.FALLBACK: 1 << 8, Rung.LAST_SCORE: 2 << 8, Rung.DEFAULT: 3 << 8}
_REASON_BITS = {
    Reason.DEADLINE: 1 << 12, Reason.OVERLOADED: 2 << 12, Reason.UNAVAILABLE: 3 << 12, Reason.FAILED: 4 << 12
}  # fmt: skip


def degrade_flags(rung: Rung, reason: Reason) -> int:
    """Of the record of an answer that somebody else gave."""
    return DEGRADED | _RUNG_BITS[rung] | _REASON_BITS[reason]


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be scored: values by name, scalars or equally long lists, and the time of the read."""

    entities: dict[str, Any]
    features: dict[str, Any]
    now_us: int

    @property
    def n_rows(self) -> int:
        """Rows asked about, as far as one can tell before they are checked; 1 where no list was sent."""
        columns = (*self.entities.values(), *self.features.values())
        return max((len(column) for column in columns if type(column) is list), default=1)

    @property
    def has_lists(self) -> bool:
        """Whether any list was sent, even of one row."""
        return any(type(column) is list for column in (*self.entities.values(), *self.features.values()))

    def first_rows(self, n: int) -> Question:
        """The first `n` rows of it: lists are cut, scalars stay."""
        entities, features = (
            {name: column[:n] if type(column) is list else column for name, column in columns.items()}
            for columns in (self.entities, self.features)
        )
        return Question(entities, features, self.now_us)

    def narrowed(self, plan: ServingPlan, asked: ServingPlan | None) -> Question:
        """What another model than the `asked` one understands of it. What neither knows stays, and is refused."""
        keys, features = plan.join_keys, plan.known_features
        if asked is None:
            return Question(
                {name: value for name, value in self.entities.items() if name in keys},
                {name: value for name, value in self.features.items() if name in features},
                self.now_us,
            )
        other_keys, other_features = asked.join_keys, asked.known_features
        return Question(
            {name: value for name, value in self.entities.items() if name in keys or name not in other_keys},
            {name: value for name, value in self.features.items() if name in features or name not in other_features},
            self.now_us,
        )


@dataclass(frozen=True, slots=True)
class Degraded:
    """Who answered instead of whom, and why; the names are those of `serving/ladder.py`."""

    by: str  # "fallback", "last_score", "default"
    instead_of: str  # "name:version"
    reason: str
    age_us: int | None = None  # of a last score

    def to_json(self) -> dict[str, Any]:
        """As replies carry it."""
        told: dict[str, Any] = {"by": self.by, "instead_of": self.instead_of, "reason": self.reason}
        if self.age_us is not None:
            told["age_ms"] = self.age_us / 1000
        return told


@dataclass(frozen=True, slots=True)
class Served:
    """A scored question, not yet answered: `prepared.reply` or `prepared.record` does that, with `flags`.

    `is_declared`: the model itself was asked, as [models.NAME] has it served, not a certain version of it.
    """

    prepared: Prepared
    deadline: Deadline | None
    flags: int = 0
    degraded: Degraded | None = None
    arm: str = "champion"
    is_declared: bool = False

    @classmethod
    def instead(
        cls, prepared: Prepared, deadline: Deadline | None, choice: Choice, label: str, age_us: int | None = None
    ) -> Self:
        """What somebody answers instead of the version of this `label`; `age_us`: of a last score."""
        why = choice.reason or Reason.UNAVAILABLE
        flags = degrade_flags(choice.rung, why)
        degraded = Degraded(choice.rung.value, label, why.value, age_us)
        return cls(prepared, deadline, flags, degraded, is_declared=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores and where they came from, for protocols that write replies of their own.

    `scores` is one score per row (a list of one number per class for a multiclass model), also where one scalar row was
    asked about; `is_single` tells that. `missing`: feature -> in how many rows it had no value.
    """

    id: str
    model: str
    version: int
    tier: Tier
    scores: list[Any]
    is_single: bool
    classes: tuple[str, ...]
    oldest_age_ms: float | None
    missing: dict[str, int]
    degraded: Degraded | None = None
    arm: str = "champion"
    stage_us: dict[str, float] = field(default_factory=dict)
    deadline: Deadline | None = None
    explanation: dict[str, Any] | None = None  # "reasons" and "explanation" as replies carry them; None: nobody asked

    @classmethod
    def of(cls, served: Served, prediction_id: str, *, is_explained: bool = False) -> Self:
        """What was served and recorded under this id."""
        prepared, plan = served.prepared, served.prepared.plan
        age_us = prepared.oldest_age_us
        return cls(
            prediction_id,
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
            explanation_of(prepared, prediction_id) if is_explained else None,
        )


def explanation_of(prepared: Prepared, prediction_id: str) -> dict[str, Any]:
    """What the reply of this id says of an explained question beside its scores, as plain JSON values."""
    told: dict[str, Any] = json.loads(prepared.explanation(prediction_id))
    del told["id"]
    return told
