"""Drift reports: how long one takes, whether false alarms keep their budget, and how soon a change is seen.

    python -m benchmarks.bench_drift [--windows 1000] [--features 50] [--replays 1000] [--peers] [--smoke]

*Time*: stored windows of a version that answered 100 million requests are merged and judged, first by a process that has
just started, then again. *False alarms*: windows of the training population itself, at a budget of 5 in 100 windows so that
there is something to count, beside what a fixed PSI of 0.1 and a KS test at 5 % per feature do with the same windows. *Delay*:
windows after one of the features moved, at a budget of one false alarm in a hundred windows for everybody. Limits of tests
that have no such knob are set on windows of the training population that are not used again; a detector that alarms at random
as often as the budget allows is in the table. `--peers` adds Evidently and NannyML where they are installed
(PYTHONPATH); versions are printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from tiercel.monitor import distances
from tiercel.monitor.drift import drift_report, find_compared
from tiercel.monitor.recording import Recorder
from tiercel.monitor.reference import Reference, count_cells
from tiercel.monitor.thresholds import QUARTER_US, FalseAlarmBudget, value_bins
from tiercel.monitor.window import Window, empty_window
from tiercel.monitor.window_baseline import Baseline, write_baseline
from tiercel.monitor.window_files import read_window_file, write_window_file
from tiercel.monitor.windows import WindowStore
from tiercel.settings import JournalSettings
from tiercel.types import Signature, Task

MINUTE_US = 60_000_000
START_US = 1_800_000_000_000_000 // 3_600_000_000 * 3_600_000_000
N_REFERENCE = 50_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--peers", action="store_true", help="Evidently and NannyML, where they are installed.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.windows, options.features, options.replays = 20, 5, 20
    print(describe("numpy", "scipy"))
    measure_time(options.windows, options.features)
    false_alarms(options.replays, 12)
    delays(3 if options.smoke else 60, peers=options.peers)


def population(rng: np.random.Generator, n: int, n_features: int) -> np.ndarray:
    """Independent features, a third of each kind: continuous, counts, a few values."""
    X = rng.gamma(2, 3, (n, n_features)).astype(np.float32)
    X[:, 1::3] = rng.poisson(3, X[:, 1::3].shape)
    X[:, 2::3] = rng.integers(0, 6, X[:, 2::3].shape)
    return X


def window_of(reference: Reference, X: np.ndarray, scores: np.ndarray) -> Window:
    return replace(
        empty_window("m", 1, reference, START_US, START_US + MINUTE_US),
        n_requests=len(X),
        n_rows=len(X),
        feature_counts=np.stack([count_cells(e, c) for e, c in zip(reference.feature_edges, X.T, strict=True)]),
        score_counts=np.stack([count_cells(e, c) for e, c in zip(reference.score_edges, scores.T, strict=True)]),
    )


# -- time


def measure_time(n_windows: int, n_features: int) -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"f{i}" for i in range(n_features))
    X = population(rng, 20_000, n_features)
    scores = rng.random((len(X), 1))
    reference = Reference.build(X, scores, names)
    times = 100_000_000 // n_windows // 1000
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        recorder = Recorder(state, 0, "0" * 16, JournalSettings(enabled=False))
        plan = recorder.for_plan("m", 1, Signature(names, Task.BINARY, ("no", "yes")), reference=reference)
        store = WindowStore(state, hours_after_us=10**18)
        store.record(START_US)
        records_ms = []
        for i in range(20):
            for row in range(50 * i, 50 * i + 50):
                plan.add(X[row : row + 1], scores[row : row + 1], total_ns=20_000 + 100 * row, stage_ns=(4_000,) * 5)
            begin = time.perf_counter()
            store.record(START_US)
            records_ms.append((time.perf_counter() - begin) * 1e3)
        recorder.close()
        # 100 million requests take minutes to count: the thousand that were counted stand for 100 thousand per window.
        whole = store.merged("m", 1, 0, 2 * START_US)
        assert whole is not None
        assert whole.n_requests == 1000
        directory_ = state / "windows"
        files = [read_window_file(path) for path in sorted(directory_.glob("*.window"))]
        (what,) = files[0].entries
        cells = sum(file.cells(what) for file in files) * np.uint64(times)
        for file in files:
            file.path.unlink()
        for i in range(n_windows):
            span = START_US + i * MINUTE_US, START_US + (i + 1) * MINUTE_US
            write_window_file(directory_, i + 1, i + 1, span, {what: cells})
        write_baseline(directory_, Baseline(n_windows, START_US + n_windows * MINUTE_US, {}))
        size = sum(path.stat().st_size for path in directory_.glob("*.window"))
        span = {"begin_us": START_US, "end_us": START_US + n_windows * MINUTE_US}
        print(
            f"\n{n_windows:,} windows of {n_features} features, {size / n_windows / n_features:,.0f} bytes per feature and window"
        )
        print(f"  recording one, with its fsyncs: p50 {np.median(records_ms):.1f} ms, max {max(records_ms):.1f} ms")
        fresh = WindowStore(state)
        for what_ in ("a process that has just started", "again"):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            found = find_compared(fresh, reference, "m", 1, **span)
            read = time.perf_counter()
            assert found is not None
            report = found.report()
            end, end_cpu = time.perf_counter(), time.process_time()
            assert report.n_counted == 1000 * times * n_windows
            print(
                f"  report of {report.n_counted:,} rows, {what_}: {(end - begin) * 1e3:.0f} ms "
                f"(read and merged {(read - begin) * 1e3:.0f}, judged {(end - read) * 1e3:.0f}; "
                f"{(end_cpu - begin_cpu) * 1e3:.0f} ms of CPU)"
            )


# -- false alarms


def false_alarms(n_replays: int, n_features: int) -> None:
    budget = FalseAlarmBudget(per_quarter=0.05 * QUARTER_US / MINUTE_US, every_us=MINUTE_US)
    print(
        f"\nFalse alarms in {n_replays:,} windows of the training population, {n_features} features and a score, 5 in 100 allowed"
    )
    print(f"  {'rows':>8} {'tiercel':>18} {'PSI > 0.1':>10} {'KS p < 0.05':>12}   99 % of exact budgets")
    for n in (100, 500, 5_000):
        rng = np.random.default_rng(n)
        counted = np.zeros(3, int)
        for i in range(n_replays):
            if i % 20 == 0:
                X = population(rng, N_REFERENCE, n_features)
                reference = Reference.build(X, rng.random((N_REFERENCE, 1)), [f"f{j}" for j in range(n_features)])
                ordered = np.sort(X, axis=0)
            now = population(rng, n, n_features)
            window = window_of(reference, now, rng.random((n, 1)))
            report = drift_report(reference, window, budget=budget, least_effect=0)
            psi = distances.psi(value_bins(reference.feature_counts), value_bins(window.feature_counts))
            counted += [bool(report.alarms), bool((psi > 0.1).any()), min_ks_p(ordered, now) < 0.05]
        low, high = binomial_interval(n_replays, 0.05, 0.99)
        rates = [f"{count / n_replays:.1%}" for count in counted]
        print(
            f"  {n:8,} {rates[0]:>18} {rates[1]:>10} {rates[2]:>12}   {low / n_replays:.1%} to {high / n_replays:.1%}"
        )


def min_ks_p(ordered: np.ndarray, now: np.ndarray) -> float:
    """The smallest asymptotic p-value of the features' KS tests on raw values, as SciPy computes it."""
    from scipy.stats import kstwo

    m, n = len(ordered), len(now)
    largest = 0.0
    for column, values in zip(ordered.T, np.sort(now, axis=0).T, strict=True):
        points = np.concatenate([column, values])
        gaps = np.searchsorted(column, points, "right") / m - np.searchsorted(values, points, "right") / n
        largest = max(largest, float(np.abs(gaps).max()))
    return float(kstwo.sf(largest, round(m * n / (m + n))))


def binomial_interval(n: int, p: float, level: float) -> tuple[int, int]:
    from scipy.stats import binom

    low, high = binom.interval(level, n, p)
    return int(low), int(high)


# -- delay


@dataclass(frozen=True)
class Detector:
    """A statistic of a window: the larger, the more it looks like a change. The limit is set on null windows."""

    name: str
    statistic: Callable[[np.ndarray, Window], float]
    limit: float | None = None  # None: set on null windows


def delays(n_trials: int, *, peers: bool) -> None:
    n_features, n, alpha, n_null, longest = 12, 500, 0.01, 2000 if n_trials > 10 else 40, 100 if n_trials > 10 else 5
    rng = np.random.default_rng(1)
    X = population(rng, N_REFERENCE, n_features)
    reference = Reference.build(X, rng.random((N_REFERENCE, 1)), [f"f{j}" for j in range(n_features)])
    known, ordered = value_bins(reference.feature_counts), np.sort(X, axis=0)
    budget = FalseAlarmBudget(per_quarter=alpha * QUARTER_US / MINUTE_US, every_us=MINUTE_US)

    def tiercel(least_effect: float) -> Callable[[np.ndarray, Window], float]:
        def statistic(_: np.ndarray, window: Window) -> float:
            return float(bool(drift_report(reference, window, budget=budget, least_effect=least_effect).alarms))

        return statistic

    detectors = [
        Detector("tiercel, any difference", tiercel(0), 0.5),
        Detector("tiercel, differences that matter", tiercel(0.1), 0.5),
        Detector(
            "largest PSI, same bins", lambda _, w: float(distances.psi(known, value_bins(w.feature_counts)).max())
        ),
        Detector("KS on raw values, Bonferroni", lambda now, _: -min_ks_p(ordered, now), -alpha / n_features),
        Detector("alarm at random", lambda *_: float(rng.random()), 1 - alpha),
    ]
    if peers:
        from benchmarks.drift_peers import peer_statistics

        detectors += [Detector(name, statistic) for name, statistic in peer_statistics(X)]
        # They look at rows: a window takes as long as the reference is large.
        n_null, n_trials, longest = 400, 10, 30
    null = [
        (now := population(rng, n, n_features), window_of(reference, now, rng.random((n, 1)))) for _ in range(n_null)
    ]
    print(
        f"\nWindows of {n} rows until a change in one of {n_features} features is seen, 1 false alarm in 100 windows allowed"
    )
    print(f"  {'':34} {'false alarms':>12}" + "".join(f" {change:>12}" for change in CHANGES))
    for detector in detectors:
        limit = detector.limit
        if limit is None:  # on one half; the rate is counted on the other
            half = [detector.statistic(*each) for each in null[: n_null // 2]]
            limit = float(np.quantile(half, 1 - alpha, method="higher"))
        rate = np.mean([detector.statistic(*each) > limit for each in null[n_null // 2 :]])
        cells = []
        for change in CHANGES.values():
            seen = []
            for trial in range(n_trials):
                trial_rng = np.random.default_rng([7, trial])
                for n_windows in range(1, longest + 1):  # noqa: B007 - how far it came is what is counted
                    now = change(population(trial_rng, n, n_features), trial_rng)
                    if detector.statistic(now, window_of(reference, now, trial_rng.random((n, 1)))) > limit:
                        break
                seen.append(n_windows)
                if len(seen) == 5 and min(seen) == longest:  # it will not be seen
                    break
            cells.append(f"{'>' if min(seen) == longest else ''}{np.mean(seen):.1f}")
        print(f"  {detector.name:34} {rate:>12.1%}" + "".join(f" {cell:>12}" for cell in cells))


def scaled(factor: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(X: np.ndarray, _: np.random.Generator) -> np.ndarray:
        X[:, 0] *= np.float32(factor)
        return X

    return change


def new_category(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        X[rng.random(len(X)) < share, 2] = 6
        return X

    return change


#: What happens to one feature.
CHANGES = {
    "x 1.05": scaled(1.05), "x 1.1": scaled(1.1), "x 1.2": scaled(1.2), "x 1.5": scaled(1.5),
    "1 % new": new_category(0.01), "5 % new": new_category(0.05),
}  # fmt: skip


if __name__ == "__main__":
    main()
