"""Whether a model answered at all, and whether what it answered are numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tiercel.errors import ScoreError, ScoringFailedError, TiercelError
from tiercel.serving.rollout import is_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tiercel._hot.plan import Prepared, ServingPlan

    Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]

#: Of a runtime's own words.
MAX_REASON = 300
#: Files and folders of whoever built the runtime, or of this host.
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/'\":,()]+){2,}")


def score_here(prepared: Prepared) -> None:
    """Score here and now.

    Raises:
        ScoringFailedError: the model raised; `row` is the first for which it does, where there are several.
    """
    try:
        prepared.score()
    except Exception as error:
        if _says_itself(error):
            raise
        row = None if prepared.is_single else _first_failing(prepared)
        raise _failure(prepared.plan.model, prepared.plan.version, error, row) from error


def _first_failing(prepared: Prepared) -> int | None:
    """The first row that the model raises for by itself; None: for none. Together they are scored no more than once again."""
    score: Score = prepared.plan.scorer.score
    rows = prepared.rows()

    def fails(begin: int, end: int) -> bool:
        try:
            score(rows[begin:end])
        except Exception:  # noqa: BLE001 - the same as before, or another: it has no score to give
            return True
        return False

    begin, end = 0, prepared.n_rows
    while end - begin > 1:
        middle = (begin + end) // 2
        begin, end = (begin, middle) if fails(begin, middle) else (middle, end)
    return begin if fails(begin, end) else None


def predict(
    plan: ServingPlan, entities: dict[str, Any], features: dict[str, Any], now_us: int
) -> tuple[bool, Any, int | None, list[tuple[str, int]]]:
    """`ServingPlan.predict` of at least one row.

    Raises:
        ScoringFailedError: the model raised.
    """
    prepared = plan.prepare(entities, features, now_us)
    score_here(prepared)
    scores = prepared.scores()
    return prepared.is_single, scores[0] if prepared.is_single else scores, prepared.oldest_age_us, prepared.missing()


def named(plan: ServingPlan) -> Score:
    """The scorer of a plan, for where nobody knows any more whose it is. It raises as `score_here`.

    The plan itself is not kept: that would keep its base mapped.
    """
    score: Score = plan.scorer.score
    model, version = plan.model, plan.version

    def score_named(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        try:
            return score(rows)
        except Exception as error:
            if _says_itself(error):
                raise
            raise _failure(model, version, error) from error

    return score_named


def _says_itself(error: Exception) -> bool:
    """Whether an error says what it is, and nothing about the model."""
    return isinstance(error, TiercelError | MemoryError)


def _failure(model: str, version: int, error: Exception, row: int | None = None) -> ScoringFailedError:
    """What is told of an error of a scorer. It goes without its frames: they would keep the request they came from."""
    error.__traceback__ = None
    where = "" if row is None else f" (row {row})"
    return ScoringFailedError(
        f"Expected a score of model '{model}' version {version}, got an error of what runs it{where}: {in_one_line(error)}. Ask "
        f"within the range of its training data, or register a version that scores it",
        row=row,
    )


def in_one_line(error: Exception) -> str:
    """An error's name and words in one line, without paths: they say nothing to a client, and something about the server."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot even be told
        words = ""
    text = _PATH.sub("...", " ".join(words.split()).removesuffix("."))
    text = text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
