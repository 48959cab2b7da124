"""Streams of river's generators, made by river's own interpreter for bench_delay.

    python delay_streams_peer.py RESULT.npz N_NULL N_CHANGED N_ROWS

Per generator: rows to learn from (`train`), rows to compare with (`reference`), streams in which nothing changes (`null/i`)
and streams whose concept is another from the middle on (`change/i`), each as `X` float32 (n, features) and `y` 0 or 1.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from river.datasets import synth

N_TRAIN, N_REFERENCE = 20_000, 5_000


def sea(seed: int, changed: bool) -> synth.SEA:
    """Three numbers of which two count: the threshold of their sum moves from 8 to 9.5."""
    return synth.SEA(variant=3 if changed else 0, noise=0.1, seed=seed)


def agrawal(seed: int, changed: bool) -> synth.Agrawal:
    """Loan applicants: another rule decides."""
    return synth.Agrawal(classification_function=2 if changed else 0, perturbation=0.1, seed=seed)


def led(seed: int, changed: bool) -> synth.LEDDrift:
    """Segments of a digit: one of the seven changes places with an irrelevant one."""
    return synth.LEDDrift(seed=seed, noise_percentage=0.1, irrelevant_features=True, n_drift_features=int(changed))


def hyperplane(seed: int, changed: bool) -> synth.Hyperplane:
    """A plane through ten dimensions, turned to another direction."""
    return synth.Hyperplane(seed=seed, n_features=10, n_drift_features=0, noise_percentage=0.05)


GENERATORS = {"SEA": sea, "Agrawal": agrawal, "LED": led, "Hyperplane": hyperplane}


def take(rows: object, n: int) -> tuple[np.ndarray, np.ndarray]:
    found = list(itertools.islice(rows, n))
    y = np.array([label for _, label in found], np.float64)
    # Digits are told apart into small and large ones.
    return np.array([list(x.values()) for x, _ in found], np.float32), (y >= 5).astype(float) if y.max() > 1 else y


def main() -> None:
    path, (n_null, n_changed, n_rows) = sys.argv[1], map(int, sys.argv[2:5])
    found: dict[str, np.ndarray] = {}

    def keep(name: str, *parts: tuple[np.ndarray, np.ndarray]) -> None:
        found[f"{name}/X"] = np.concatenate([X for X, _ in parts])
        found[f"{name}/y"] = np.concatenate([y for _, y in parts])

    for name, make in GENERATORS.items():
        usual = iter(make(42, False))  # one long stream: of a hyperplane the seed is the concept
        keep(f"{name}/train", take(usual, N_TRAIN))
        keep(f"{name}/reference", take(usual, N_REFERENCE))
        for i in range(n_null):
            keep(f"{name}/null/{i}", take(usual, n_rows))
        for i in range(n_changed):
            keep(f"{name}/change/{i}", take(usual, n_rows // 2), take(iter(make(1000 + i, True)), n_rows - n_rows // 2))
    np.savez(path, **found)


if __name__ == "__main__":
    main()
