"""Does a scorer reproduce the source library? The rows to ask about, and the comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiercel.models.ir import FLOAT32_MAX, Forest, Linear, ParsedModel, Post, apply_steps

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]
Predictor = Callable[[Rows], Scores]

#: Random rows asked on top of the golden rows.
N_RANDOM_ROWS = 20_480
#: Units in the last place that exp() may differ between two C libraries, after a division or two. Routing and sums must
#: be equal bit for bit: models without a transform get 0.
TRANSFORM_ULP = 4
#: Linear models: how a library orders its float32 sum is not ours to know, so on top of these a row may differ by what
#: rounding each of its terms can do (`rounding_slack`).
LINEAR_RTOL, LINEAR_ATOL = 2e-5, 2e-6
#: onnxruntime against itself on another machine, or serving a model converted from a float64 library.
CONVERTED_RTOL, CONVERTED_ATOL = 1e-4, 1e-5
#: No more rows are compared once the next block of them would not be done by then.
BUDGET_S = 20.0
#: Each block makes what is compared so many times as much.
_GROWTH = 4
#: Values of a row, or scores, that a message shows.
_N_SHOWN = 30


@dataclass(frozen=True)
class ParityReport:
    """How closely the serving engine reproduces the source library."""

    n_rows: int
    max_abs_difference: float
    max_ulp: int
    bound: str  # what was demanded
    source: str  # library and version
    passed: bool
    worst_row: tuple[float | None, ...] = ()  # the input of the largest difference; empty when all are equal
    worst_expected: tuple[float, ...] = ()
    worst_got: tuple[float, ...] = ()
    n_skipped: int = 0  # rows behind the `n_rows` that there was no time for

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values (NaN as null, infinities as text)."""
        data = {key: _plain(value) for key, value in asdict(self).items()}
        if not self.n_skipped:
            del data["n_skipped"]  # as it was written before any were, so that the same model is the same version
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ParityReport:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        return cls(
            n_rows=int(data["n_rows"]),
            max_abs_difference=_number(data["max_abs_difference"]),
            max_ulp=int(data["max_ulp"]),
            bound=str(data["bound"]),
            source=str(data["source"]),
            passed=bool(data["passed"]),
            worst_row=tuple(map(_number, data["worst_row"])),
            worst_expected=tuple(map(_number, data["worst_expected"])),
            worst_got=tuple(map(_number, data["worst_got"])),
            n_skipped=int(data.get("n_skipped", 0)),
        )

    @property
    def compared(self) -> str:
        """How many rows were compared, in words."""
        return f"{self.n_rows} rows" + (f" ({self.n_skipped} more would have taken too long)" if self.n_skipped else "")

    def describe_worst(self, features: Sequence[str] | None = None) -> str:
        """The largest difference in words; `features` name the row's values where they are known."""
        if not self.worst_row:  # of another shape: no row to show
            return f"of {self.source}, the scores have another shape"
        if features is None or len(features) != len(self.worst_row):
            features = [f"f{i}" for i in range(len(self.worst_row))]
        row = [f"{name} = {value!r}" for name, value in zip(features, self.worst_row, strict=True)]
        return f"expected {_some(self.worst_expected)}, got {_some(self.worst_got)} for the row {_some(row)}"


@dataclass(frozen=True)
class Bound:
    """What counts as equal: a number of units in the last place, or (`ulp` None) a relative and absolute tolerance."""

    ulp: int | None
    single_precision: bool
    rtol: float = LINEAR_RTOL
    atol: float = LINEAR_ATOL

    def __str__(self) -> str:
        if self.ulp is None:
            return f"rtol {self.rtol:g}, atol {self.atol:g}"
        return f"{self.ulp} ulp of float{32 if self.single_precision else 64}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def bound_of(parsed: ParsedModel) -> Bound:
    """How close a compiled scorer of this model must come to its source."""
    body = parsed.body
    if isinstance(body, Linear):
        return Bound(None, single_precision=body.single_precision)
    transformed = body.post is not Post.IDENTITY or body.normalize
    return Bound(TRANSFORM_ULP if transformed else 0, single_precision=body.single_precision)


def rounding_slack(body: Forest | Linear | None, rows: Rows, expected: Scores) -> Scores | None:
    """What float32 rounding alone may change in each row of a linear model, shape (n, 1); None for other models.

    n terms of sizes |w x| summed in any order differ by at most n * eps * sum |w x|; rounding errors average out to about
    its square root, and a factor of four over that is kept. Sigmoid and softmax have slopes below one; exp multiplies.
    """
    if not isinstance(body, Linear):
        return None
    with np.errstate(all="ignore"):
        prepared = np.abs(apply_steps(body.steps, rows).astype(np.float64))
        size = (prepared @ np.abs(body.weights).T + np.abs(body.intercept)).max(axis=1, keepdims=True)
        slack = size * (4.0 * np.sqrt(body.n_features) * np.finfo(np.float32).eps)
        if body.post is Post.EXP_XGB:
            slack = slack * np.abs(expected).max(axis=1, keepdims=True)
    slack[~np.isfinite(slack)] = 0.0
    return np.asarray(slack)


def compare(
    got: Scores, expected: Scores, rows: Rows, bound: Bound, source: str, slack: Scores | None = None
) -> ParityReport:
    """Compare two answers to the same rows; `slack` is added to a tolerance's absolute part, row by row."""
    if got.shape != expected.shape:
        return ParityReport(
            len(rows), float("inf"), 2**31, str(bound), f"{source}; shape {expected.shape}", passed=False
        )
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(got - expected))
    difference[np.isnan(difference)] = np.inf
    ulp = np.where(same, 0, _ulp_distance(got, expected, single=bound.single_precision))
    if bound.ulp is not None:
        far = ulp > bound.ulp
    else:
        with np.errstate(invalid="ignore"):
            far = ~same & ~(
                difference <= bound.atol + bound.rtol * np.abs(expected) + (0.0 if slack is None else slack)
            )
    worst: dict[str, Any] = {}
    if np.any(ulp):
        # A failing row if there is one, the largest difference among the candidates.
        at = int(np.argmax(np.where(far, 1, 0).max(axis=1) * 1e300 + np.minimum(difference.max(axis=1), 1e299)))
        worst = {
            "worst_row": tuple(float(value) for value in rows[at]),
            "worst_expected": tuple(float(value) for value in expected[at]),
            "worst_got": tuple(float(value) for value in got[at]),
        }
    return ParityReport(
        n_rows=len(rows),
        max_abs_difference=float(difference.max(initial=0.0)),
        max_ulp=int(ulp.max(initial=0)),
        bound=str(bound),
        source=source,
        passed=not bool(np.any(far)),
        **worst,
    )


def compare_in_time(
    score: Predictor,
    predict: Predictor,
    rows: Rows,
    bound: Bound,
    source: str,
    *,
    body: Forest | Linear | None = None,
    least: int = 64,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> ParityReport:
    """Ask both about the rows, in their order, in blocks that grow, and `compare`; stop where the next would take too long.

    Which rows are asked about is fixed, and how many can only be one of a few numbers (`least` times a power of four, or
    all), so that the same model on the same host gives the same report although it is bounded by a clock.

    Args:
        score: what is to serve.
        predict: the source library.
        rows: most important first.
        bound: what counts as equal.
        source: library and version, for the report.
        body: of a compiled model, for `rounding_slack`.
        least: so many rows are compared however long they take.
        budget_s: for both together.
        clock: in seconds.
    """
    begin_s = clock()
    got: list[Scores] = []
    expected: list[Scores] = []
    done = 0
    while done < len(rows):
        block = rows[done : max(least, _GROWTH * done)]
        expected.append(predict(block))
        got.append(score(block))
        done += len(block)
        total = min(_GROWTH * done, len(rows))
        if (clock() - begin_s) * total / done > budget_s:
            break
    asked, wanted = rows[:done], np.concatenate(expected)
    report = compare(np.concatenate(got), wanted, asked, bound, source, rounding_slack(body, asked, wanted))
    return replace(report, n_skipped=len(rows) - done)


def _ulp_distance(got: Scores, expected: Scores, *, single: bool) -> NDArray[np.int64]:
    """How many floats lie between two numbers; 2^31 at most, and for NaN or infinity against anything else."""
    if single:
        with np.errstate(over="ignore", invalid="ignore"):
            got, expected = got.astype(np.float32), expected.astype(np.float32)
        first, second = (array.view(np.int32).astype(np.int64) for array in (got, expected))
        low = np.int64(-(2**31))
    else:
        first, second = np.ascontiguousarray(got).view(np.int64), np.ascontiguousarray(expected).view(np.int64)
        low = np.int64(-(2**63))
    # Floats ordered as integers: negative ones count down from zero.
    first, second = (np.where(array < 0, low - array, array) for array in (first, second))
    distance = np.abs(first.astype(np.float64) - second.astype(np.float64))
    # Doubles round large integers; below 2^31 of distance the subtraction in int64 is exact.
    near = distance < 2.0**40
    exact = np.where(near, np.abs(np.where(near, first, 0) - np.where(near, second, 0)), 2**31)
    exact[~(np.isfinite(got) & np.isfinite(expected))] = 2**31
    return np.minimum(exact, 2**31)


def probe_rows(parsed: ParsedModel | None, n_features: int, n_rows: int, rng: np.random.Generator) -> Rows:
    """Random rows that look for trouble.

    They hold the model's own thresholds and their neighbours, NaN, infinities, both zeros, denormals, and categories that
    exist, do not, are negative or fractional.
    """
    rows = (rng.standard_normal((n_rows, n_features)) * rng.choice([0.01, 1.0, 100.0], (n_rows, 1))).astype(np.float32)
    body = parsed.body if parsed is not None else None
    if isinstance(body, Forest):
        for column in range(n_features):
            rows[:, column] = _probe_column(body, column, rows[:, column], rng)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype=np.float32)
    if isinstance(body, Forest):
        extra = [1e-35, -1e-35, 1e-36, -1e-40, 1e-45, FLOAT32_MAX, -FLOAT32_MAX, 1e30, -1e30]
        special = np.concatenate([special, np.array(extra, dtype=np.float32)])
    # A quarter of the rows is free of specials: one NaN would hide everything else about a linear model.
    rate = np.where(rng.random((n_rows, 1)) < 0.25, 0.0, rng.choice([0.02, 0.2, 0.6], (n_rows, 1)))
    chosen = rng.random(rows.shape) < rate
    rows[chosen] = rng.choice(special, int(chosen.sum()))
    return np.ascontiguousarray(rows)


def _probe_column(body: Forest, column: int, values: Rows, rng: np.random.Generator) -> Rows:
    """Values around the thresholds and categories that the forest tests this feature against."""
    n = len(values)
    inner = (body.leaf < 0) & (body.feature == column)
    cuts = np.unique(body.threshold[inner & (body.set_of < 0)])
    cuts = cuts[np.isfinite(cuts)]
    pool: list[Rows] = []
    if len(cuts):
        with np.errstate(over="ignore", under="ignore"):
            middle = (cuts[:-1] + cuts[1:]) / 2 if len(cuts) > 1 else cuts
            near = [
                cuts,
                np.nextafter(cuts, np.float32(np.inf)),
                np.nextafter(cuts, np.float32(-np.inf)),
                middle,
                -cuts,
            ]
        pool.append(np.concatenate(near).astype(np.float32))
    sets = np.unique(body.set_of[inner & (body.set_of >= 0)])
    if len(sets):
        most = int(max((body.sets.start[sets + 1] - body.sets.start[sets]).max() * 32, 1))
        codes = rng.integers(0, most + 8, 4 * n).astype(np.float32)
        edge = np.array(
            [-1, -0.5, -0.99, -2, most - 1, most, most + 0.5, 2.0**24, 2.0**31, 3e9, 1e20], dtype=np.float32
        )
        equal = body.sets.equal[sets]
        pool += [codes, codes + np.float32(0.5), edge, equal[~np.isnan(equal)]]
    if not pool:
        return values
    drawn = np.concatenate([rng.choice(part, n) for part in pool if len(part)]).astype(np.float32)
    drawn = rng.permutation(drawn)[:n]
    return np.where(rng.random(n) < 0.8, drawn, values).astype(np.float32)


def _some(values: Sequence[Any]) -> str:
    """Values in words, of many the first."""
    shown = ", ".join(map(str, values[:_N_SHOWN]))
    return shown if len(values) <= _N_SHOWN else f"{shown} and {len(values) - _N_SHOWN} more"


def _number(value: Any) -> float:
    """Inverse of `_plain` for a number."""
    return float("nan") if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else (None if np.isnan(value) else str(value))
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
