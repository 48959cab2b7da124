"""Explaining tree ensembles: exact attributions of one row and of many, beside the libraries that make them too.

    python -m benchmarks explain [--rounds 9] [--smoke]

The models are those of bench_forest. "interventional" is against 100 reference rows, "path-dependent" is what LightGBM's
pred_contrib computes; answers are compared before anything is timed: path-dependent to 1e-6 of LightGBM's, interventional to
1e-6 of shap's where shap is installed (it is no dependency; `pip install shap` adds its row), and every attribution must add
up to the model's raw score. One thread each. Rounds of the contenders alternate, and times are of the processor, not of the
clock: on a machine that others use, too, what a contender takes is what is compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_forest import N_FEATURES, train
from benchmarks.machine import describe
from tiercel.models.explaining import MAX_REFERENCE_ROWS, make_explainer
from tiercel.models.lightgbm_text import read_lightgbm

if TYPE_CHECKING:
    from collections.abc import Callable

N_ROWS = 2048
#: Differences that rounding alone makes: shap keeps its trees' values in float64, LightGBM's thresholds are folded exactly.
TOLERANCE = 1e-6


def timed(call: Callable[[], Any], per: int) -> float:
    """Processor microseconds."""
    begin = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - begin) / 1e3 / per


def shap_explainer(booster: Any, reference: Any) -> Any:
    """Shap's interventional explainer, or None where shap is not installed."""
    if importlib.util.find_spec("shap") is None:
        return None
    import shap

    return shap.TreeExplainer(booster, data=reference.astype(np.float64), feature_perturbation="interventional")


def compare(n_trees: int, n_leaves: int, rounds: int) -> None:
    """Print one model's table."""
    import lightgbm

    data = train(n_trees, n_leaves)
    parsed = read_lightgbm(data)
    signature = parsed.signature(parsed.features or ())
    booster = lightgbm.Booster(model_str=data.decode())
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(N_ROWS + MAX_REFERENCE_ROWS, N_FEATURES)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.02] = np.nan
    rows, reference = np.ascontiguousarray(rows[:N_ROWS]), rows[N_ROWS:]

    explainers, loads = {}, {}
    for kind in ("interventional", "path_dependent"):
        begin = time.thread_time()
        explainers[kind] = make_explainer(parsed, signature, reference, kind)
        loads[kind] = time.thread_time() - begin
    interventional, by_path = explainers["interventional"], explainers["path_dependent"]

    few = rows[:32]
    raw = booster.predict(few, raw_score=True, num_threads=1)
    theirs = booster.predict(few, pred_contrib=True, num_threads=1)
    found = by_path.explain(few)
    np.testing.assert_allclose(found.values, theirs[:, :-1], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.expected, theirs[:, -1], rtol=0, atol=TOLERANCE)
    found = interventional.explain(few)
    residual = np.abs(found.expected + found.values.sum(axis=1) - raw) / np.maximum(1, np.abs(raw))
    assert residual.max() <= TOLERANCE, residual.max()
    peer = shap_explainer(booster, reference)
    if peer is not None:
        values = np.asarray(peer.shap_values(few[:4], check_additivity=False))
        np.testing.assert_allclose(found.values[:4], values.reshape(4, N_FEATURES), rtol=0, atol=TOLERANCE)

    small = n_trees * n_leaves < 10_000
    n, n_slow, n_peer = (1024, 64, 16) if small else (128, 8, 2)
    print(
        f"\n{n_trees} trees x {n_leaves} leaves, {N_FEATURES} features, {len(reference)} reference rows; answers equal"
    )
    for kind, explainer in explainers.items():
        kernel = explainer.compiled
        print(
            f"  {kind}: load {loads[kind] * 1e3:.0f} ms, {kernel.table_bytes / 1e6:.1f} MB of tables, "
            f"{kernel.alone_bytes / 1e6:.1f} MB for {kernel.n_alone:,} leaves without, {kernel.n_units:,} units; additive to "
            f"{residual.max():.0e}"
        )
    tables: dict[str, dict[str, Callable[[], float]]] = {
        "one row": {
            "tiercel, interventional, from C": lambda: one_row(interventional, rows[:n]),
            "tiercel, path-dependent, from C": lambda: one_row(by_path, rows[:n]),
            "LightGBM pred_contrib": lambda: timed(
                lambda: [booster.predict(rows[k : k + 1], pred_contrib=True, num_threads=1) for k in range(n_slow)],
                n_slow,
            ),
        },
        f"{n:,} rows in one call": {
            "tiercel, interventional": lambda: timed(lambda: interventional.explain(rows[:n]), n),
            "tiercel, path-dependent": lambda: timed(lambda: by_path.explain(rows[:n]), n),
            "LightGBM pred_contrib": lambda: timed(
                lambda: booster.predict(rows[:n_slow], pred_contrib=True, num_threads=1), n_slow
            ),
        },
    }
    if peer is not None:
        tables["one row"]["shap TreeExplainer, interventional"] = lambda: timed(
            lambda: [peer.shap_values(rows[k : k + 1], check_additivity=False) for k in range(n_peer)], n_peer
        )
        tables[f"{n:,} rows in one call"]["shap TreeExplainer, interventional"] = lambda: timed(
            lambda: peer.shap_values(rows[:n_peer], check_additivity=False), n_peer
        )
    tables["interactions, 8 rows in one call"] = {
        "tiercel, interventional": lambda: timed(lambda: interventional.interactions(rows[:8]), 8),
        "tiercel, path-dependent": lambda: timed(lambda: by_path.interactions(rows[:8]), 8),
    }
    for title, contenders in tables.items():
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, measure in contenders.items():
                times[name].append(measure())
        slowest = times.get("LightGBM pred_contrib")
        print(f" {title}" + (" (x: times as fast as LightGBM)" if slowest else ""))
        for name, us in times.items():
            p50, best = float(np.median(us)), min(us)
            ratio = f"   {float(np.median(slowest)) / p50:7.1f} x" if slowest else ""
            print(f"  {name:36s} p50 {p50:10.1f}  least {best:10.1f} us/row{ratio}")


def one_row(explainer: Any, rows: Any) -> float:
    """Processor microseconds of a row, each explained by a call of its own from compiled code."""
    return timed(lambda: explainer.compiled.time_one_row(rows, 1), len(rows))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="only 100 x 31, two rounds")
    options = parser.parse_args(arguments)
    print(describe("lightgbm", "shap", "numpy"))
    compare(100, 31, 2 if options.smoke else options.rounds)
    if not options.smoke:
        compare(500, 127, options.rounds)


if __name__ == "__main__":
    main()
