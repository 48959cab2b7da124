"""MMD^2 as its definition has it: one pair of rows at a time."""

from __future__ import annotations

import math


def mmd2(ours, theirs, bandwidth):
    """The unbiased estimate of Gretton et al. 2012, equation 3, with the kernel exp(-d^2 / (2 bandwidth^2))."""

    def kernel(x, y):
        return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * bandwidth**2))

    def within(rows):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return math.fsum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = math.fsum(kernel(x, y) for x in ours for y in theirs) / (len(ours) * len(theirs))
    return within(ours) + within(theirs) - 2 * between
