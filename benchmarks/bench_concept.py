"""Concept detectors: microseconds per value, false alarms and delay, beside river's detectors and beside alarming blindly.

    python -m benchmarks concept [--river PYTHON] [--no-peer] [--smoke]

Streams are errors of 20,000 predictions, half of them without any change, half whose error rate rises in the middle. Ours are
first compared with river's alarm by alarm. `dummy` alarms every 1,000 values whatever they are: a detector with more false
alarms than that, or later, is worth nothing. river runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.contenders import environment
from benchmarks.machine import describe
from tiercel.monitor.concept_state import TRUSTED, ConceptState
from tiercel.monitor.detectors import Adwin, Ddm, Eddm, Kswin, PageHinkley
from tiercel.types import Task

REQUIREMENTS = ("river==0.26.1",)
PEER = Path(__file__).with_name("river_peer.py")
KINDS = {"adwin": Adwin, "page_hinkley": PageHinkley, "ddm": Ddm, "eddm": Eddm, "kswin": Kswin}
N = 20_000


def streams(n_streams: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for i in range(n_streams):
        found[f"flat {i}"] = (rng.random(N) < 0.2).astype(float)
        found[f"rise {i}"] = (rng.random(N) < np.where(np.arange(N) < N // 2, 0.2, 0.3)).astype(float)
    return found


def ours(values: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for kind, make in KINDS.items():
        alarms, seconds = {}, 0.0
        for name, stream in values.items():
            detector, places = make(), []
            start = time.perf_counter()
            for i, value in enumerate(stream.tolist()[: 2000 if kind == "kswin" else None]):
                detector.update(value)
                if detector.has_drifted:
                    places.append(i)
            seconds += time.perf_counter() - start
            alarms[name] = places
        found[kind] = {"alarms": alarms, "seconds": seconds}
    return found


def summary(alarms: dict[str, list[int]], n: int) -> str:
    """False alarms per 10,000 values without a change, and the delay and share of changes found."""
    flat = [places for name, places in alarms.items() if name.startswith("flat")]
    before = [[p for p in places if p < n // 2] for name, places in alarms.items() if name.startswith("rise")]
    after = [[p - n // 2 for p in places if p >= n // 2] for name, places in alarms.items() if name.startswith("rise")]
    false = sum(map(len, flat)) + sum(map(len, before))
    per = 10_000 * false / (len(flat) * n + len(before) * n // 2)
    delays = [places[0] for places in after if places]
    delay = f"{np.median(delays):,.0f}" if delays else "-"
    return f"{per:>8.2f}{delay:>10}{len(delays):>6} of {len(after)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--river", type=Path, help="an interpreter that has river; default: made on demand")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    print(describe())
    values = streams(1 if options.smoke else 10)
    mine = ours(values)
    theirs = {} if options.no_peer or options.smoke else ask_river(values, options)
    print(f"{'detector':<16}{'us':>8}{'river us':>10}   same alarms   false/10k   delay   found")
    for kind, result in mine.items():
        n = 2000 if kind == "kswin" else N
        per_us = 1e6 * result["seconds"] / (len(values) * n)
        peer = theirs.get(kind)
        beside = "-" if peer is None else f"{1e6 * peer['seconds'] / (len(values) * n):.2f}"
        same = "-" if peer is None else str(peer["alarms"] == result["alarms"])
        print(f"{kind:<16}{per_us:>8.2f}{beside:>10}   {same:<14}{summary(result['alarms'], n) if n == N else ''}")
    print(f"{'dummy':<16}{'':>8}{'':>10}   {'':<14}{summary({name: list(range(999, N, 1000)) for name in values}, N)}")
    print(
        f"{'our monitor':<16}{'':>8}{'':>10}   {'':<14}{summary(monitor(values), N)}   (scores, losses and calibration)"
    )


def monitor(values: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """What the trusted detectors say of predictions with these errors: scores of 0.2 and 0.8, decided at one half."""
    rng = np.random.default_rng(1)
    found = {}
    for name, errors in values.items():
        labels = (rng.random(N) < 0.5).astype(float)
        scores = np.where((labels > 0) != (errors > 0), 0.8, 0.2)
        state = ConceptState(1, "champion", 0, "")
        state.detectors = {key: each for key, each in state.detectors.items() if key in TRUSTED}
        state.add(Task.BINARY, 0.5, np.arange(N), scores, labels)
        found[name] = [alarm.row - 1 for alarm in state.alarms]
    return found


def ask_river(values: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, dict[str, object]]:
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch) / "streams.npz", Path(scratch) / "river.json"
        np.savez(given, **values)
        try:
            python = options.river or environment.ensure(environment.default_cache(), "river", REQUIREMENTS)
            subprocess.run([str(python), str(PEER), str(given), str(result)], check=True, capture_output=True)
        except (environment.InstallError, subprocess.CalledProcessError, OSError) as error:
            print(f"river is left out: {getattr(error, 'stderr', None) or error}")
            return {}
        found: dict[str, dict[str, object]] = json.loads(result.read_text())
    print(f"river {found.pop('version')}")
    return found


if __name__ == "__main__":
    main()
