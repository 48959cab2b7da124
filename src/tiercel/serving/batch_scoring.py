"""Scoring the rows of several requests at once, and telling each of them what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import ModelError, TiercelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def copy_of(error: BaseException, n_rows: int) -> TiercelError:
    """An error of its own for each of those who share a failed batch; `n_rows` are its rows."""
    try:
        return _copy_of(error, n_rows)
    except Exception:  # noqa: BLE001 - an error that cannot even be told; who waits must hear something
        return ModelError(f"The model failed to score {n_rows} rows: {type(error).__name__}")


def _copy_of(error: BaseException, n_rows: int) -> TiercelError:
    if isinstance(error, TiercelError):
        kind, arguments, state = error.__reduce__()[1]
        own: TiercelError = kind.__new__(kind, *arguments)
        own.args = arguments
        own.__dict__.update(state)
        return own
    return ModelError(f"The model failed to score {n_rows} rows: {type(error).__name__}: {error}")


def score_rows(
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    rows: NDArray[np.float32],
    n_outputs: int,
    clock_ns: Callable[[], int],
    waited_ns: Callable[[], int] | None = None,
) -> tuple[NDArray[np.float64], int, int]:
    """On a scoring thread, or on the event loop: (scores of the rows, nanoseconds it took, those it waited besides).

    With `waited_ns` (`tiercel.serving.turns`) what the thread waited for its turns of the processor is told apart from what
    scoring took; without, it is part of that.

    Raises:
        ModelError: what came back is not scores of these rows.
        Exception: the scorer's.
    """
    before_ns = 0 if waited_ns is None else waited_ns()
    began_ns = clock_ns()
    scores: Any = score(rows)
    took_ns = clock_ns() - began_ns
    wait_ns = 0 if waited_ns is None else min(took_ns, waited_ns() - before_ns)
    if not isinstance(scores, np.ndarray):
        raise ModelError(f"Expected a float64 array of scores from the model, got {type(scores).__name__}")
    if scores.shape != (len(rows), n_outputs) or scores.dtype != np.float64:
        raise ModelError(
            f"Expected float64 scores of shape {(len(rows), n_outputs)} from the model, got {scores.dtype} {scores.shape}"
        )
    return np.ascontiguousarray(scores), took_ns - wait_ns, wait_ns


def try_to_score(
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    rows: NDArray[np.float32],
    n_outputs: int,
    clock_ns: Callable[[], int],
) -> tuple[tuple[NDArray[np.float64], int, int] | None, BaseException | None]:
    """`score_rows`, or whatever it raised, as a thread's future would hold it.

    PERF: waits are not told apart here: asking the kernel twice takes 5 us, and a small batch on the event loop some tens.
    """
    try:
        return score_rows(score, rows, n_outputs, clock_ns), None
    except BaseException as error:  # noqa: BLE001 - see there
        return None, error
