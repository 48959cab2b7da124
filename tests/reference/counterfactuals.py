"""The smallest changes that flip a decision, by trying every value there is any reason to try."""

from __future__ import annotations

import itertools
import math

import numpy as np


def values_of(change, now, cuts):
    """Every value a change may lead to, near anything where the score could change: grid points, or float32 and between."""
    low = -math.inf if change.minimum is None else change.minimum
    high = math.inf if change.maximum is None else change.maximum
    if change.step is not None:
        origin = 0.0 if change.minimum is None else change.minimum
        values = [origin + at * change.step for at in range(-200, 200)]
    else:
        values = [bound for bound in (low, high) if math.isfinite(bound)]
        for cut in cuts:
            at = np.float32(cut)
            values += [
                float(each)
                for each in (at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf)))
            ]
        values += [(a + b) / 2 for a, b in itertools.pairwise(sorted(values))]
    kept = set()
    for value in (float(np.float32(each)) for each in values):
        allowed = {"up": value > now, "down": value < now, "either": value != now}[change.direction]
        if allowed and np.float32(low) <= np.float32(value) <= np.float32(high):
            kept.add(value)
    return sorted(kept)


def nearest(row, score, threshold, spreads, changes, cuts):
    """({feature: least distance of changing it alone}, least distance of changing two); inf where nothing flips.

    `changes` are (index, change) of what can be changed, `cuts` thresholds by index.
    """
    wants_positive = score(row[None, :])[0] < threshold

    def flips(rows):
        scores = score(rows)
        return scores >= threshold if wants_positive else scores < threshold

    known = [(index, change) for index, change in changes if math.isfinite(row[index])]
    tried = {index: values_of(change, float(row[index]), cuts.get(index, ())) for index, change in known}
    alone, both = {}, math.inf
    for index, values in tried.items():
        alone[index] = math.inf
        for value in values:
            rows = row[None, :].copy()
            rows[0, index] = value
            if flips(rows)[0]:
                alone[index] = min(alone[index], abs(value - float(row[index])) / spreads[index])
    for i, j in itertools.combinations(tried, 2):
        ways = list(itertools.product(tried[i], tried[j]))
        if not ways:
            continue
        rows = np.repeat(row[None, :], len(ways), axis=0)
        rows[:, i], rows[:, j] = np.array(ways, np.float32).T
        for (a, b), flipped in zip(ways, flips(rows), strict=True):
            if flipped:
                both = min(both, abs(a - float(row[i])) / spreads[i] + abs(b - float(row[j])) / spreads[j])
    return alone, both
