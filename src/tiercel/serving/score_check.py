"""Whether what a model answered are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.errors import ScoreError
from tiercel.serving.rollout import is_finite

if TYPE_CHECKING:
    from tiercel._hot.plan import Prepared


def require_finite(prepared: Prepared) -> None:
    """Refuse scores that are no numbers, where another can answer.

    Raises:
        ScoreError: there is one.
    """
    scores = prepared.scores()
    if is_finite(scores):
        return
    row = next(i for i, score in enumerate(scores) if not is_finite([score]))
    where = "" if prepared.is_single else f" for row {row}"
    raise ScoreError(
        f"Expected finite scores of model '{prepared.plan.model}' version {prepared.plan.version}, got {scores[row]}{where}. "
        f"Ask within the range of its training data, or register a version that scores it",
        row=None if prepared.is_single else row,
    )
