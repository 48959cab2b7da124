"""Scoring tree ensembles: the compiled forest beside LightGBM and onnxruntime on the same models and rows.

    python -m benchmarks.bench_forest [--rounds 15] [--smoke]

Every contender's answers are compared first. One row: each call gets another of 4,096 rows, so branch predictors and caches
are not flattered by one hot input. "from C" calls the scorer from compiled code, as the serving plan does; "from Python"
is one call of the public method. Batches of 64, 1,000 and 100,000 rows are one call each; "walked" is tiercel without its
blocks. Rounds of the contenders alternate, so a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import describe
from tiercel.models.lightgbm_text import read_lightgbm
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.sources import convert_to_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

N_FEATURES = 23
N_ROWS = 4096
BATCHES = (64, 1_000, 100_000)
# Of the largest batch, the slow contenders get this many rows; their cost per row no longer falls there.
SLOW_ROWS = 4096


@dataclass(frozen=True)
class Measurement:
    """Microseconds per row, one number per round."""

    name: str
    us: list[float]

    def line(self, reference: float) -> str:
        p50, p99 = np.percentile(self.us, [50, 99])
        return f"  {self.name:34s} p50 {p50:9.3f}  p99 {p99:9.3f} us/row   {reference / p50:6.1f} x"


def train(n_trees: int, n_leaves: int) -> bytes:
    """A LightGBM model over 23 float features with interactions, noise and missing values."""
    import lightgbm

    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, N_FEATURES)).astype(np.float32)
    signal = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + X[:, 3] + np.abs(X[:, 4]) + rng.normal(size=len(X))
    X[rng.random(X.shape) < 0.02] = np.nan
    params = {"objective": "binary", "num_leaves": n_leaves, "verbose": -1, "num_threads": 1}
    return lightgbm.train(params, lightgbm.Dataset(X, signal > 1), n_trees).model_to_string().encode()


def timed(call: Callable[[], Any], per: int) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e3 / per


def batch_contenders(
    n: int, rows: Any, scorer: Any, walked: Any, onnx: Any, booster: Any
) -> dict[str, Callable[[], float]]:
    """Calls that score `n` rows at once, one thread each, in microseconds per row."""
    batch = np.ascontiguousarray(np.resize(rows, (n, N_FEATURES)))
    slow = batch[:SLOW_ROWS]
    calls = max(1, 4096 // n)
    return {
        "tiercel": lambda: timed(lambda: [scorer.score(batch) for _ in range(calls)], n * calls),
        "tiercel, walked": lambda: timed(lambda: walked.score(slow), len(slow)),
        "onnxruntime run()": lambda: timed(lambda: onnx.score(slow), len(slow)),
        "LightGBM predict()": lambda: timed(lambda: booster.predict(slow, num_threads=1), len(slow)),
    }


def compare(n_trees: int, n_leaves: int, rounds: int) -> None:
    """Print one model's table."""
    import lightgbm

    data = train(n_trees, n_leaves)
    loads = []
    for _ in range(5):
        begin = time.perf_counter()
        body = read_lightgbm(data).body
        scorer = body.compile()
        loads.append(time.perf_counter() - begin)
    booster = lightgbm.Booster(model_str=data.decode())
    onnx = OnnxScorer(convert_to_onnx(data, "lightgbm", N_FEATURES))
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.02] = np.nan

    expected = booster.predict(rows, num_threads=1)
    np.testing.assert_array_max_ulp(scorer.score(rows)[:, 0], expected, maxulp=4)
    np.testing.assert_array_equal(scorer.time_one_row(rows, 1)[0], scorer.score(rows))
    np.testing.assert_allclose(onnx.score(rows)[:, 0], expected, atol=1e-5)

    one = [rows[k : k + 1] for k in range(512)]
    singles: dict[str, Callable[[], float]] = {
        "tiercel from C": lambda: scorer.time_one_row(rows[:1024], 1)[1] * 1e6,
        "tiercel from Python": lambda: timed(lambda: [scorer.score(row) for row in one], len(one)),
        "onnxruntime run()": lambda: timed(lambda: [onnx.score(row) for row in one], len(one)),
        "LightGBM predict()": lambda: timed(lambda: [booster.predict(row, num_threads=1) for row in one[:128]], 128),
    }
    print(f"\n{n_trees} trees x {n_leaves} leaves, {N_FEATURES} features, depth {scorer.depth}; answers equal")
    print(f"  load {np.median(loads) * 1e3:.1f} ms (text to scorer, median of {len(loads)}; {len(data) / 1e6:.1f} MB)")
    walked = body.compile(blocks="never", masks="never")
    np.testing.assert_array_equal(walked.score(rows), scorer.score(rows))
    tables = [("one row", singles)]
    tables += [(f"{n:,} rows", batch_contenders(n, rows, scorer, walked, onnx, booster)) for n in BATCHES]
    for title, contenders in tables:
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, measure in contenders.items():
                found[name].append(measure())
        reference = float(np.median(found["onnxruntime run()"]))
        print(f" {title} (x: times as fast as onnxruntime)")
        for name, us in found.items():
            print(Measurement(name, us).line(reference))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="only 100 x 31, three rounds")
    options = parser.parse_args(arguments)
    print(describe("lightgbm", "onnxruntime", "numpy"))
    compare(100, 31, 3 if options.smoke else options.rounds)
    if not options.smoke:
        compare(500, 127, options.rounds)


if __name__ == "__main__":
    main()
