"""The cells of counters, the obvious way."""

from __future__ import annotations

import math

import numpy as np


def cell_of(edges, value):
    """The histogram cell of one value among ascending edges (finite ones only count for finite values)."""
    value = float(value)
    if math.isnan(value):
        return 25
    if value == -math.inf:
        return 26
    if value == math.inf:
        return 24
    return sum(1 for edge in edges if float(edge) <= value)


def histograms(edges, values):
    """uint64 (n_columns, 28) counts of the values of each column."""
    counts = np.zeros((len(edges), 28), np.uint64)
    for row in values:
        for column, value in enumerate(row):
            counts[column, cell_of(edges[column], value)] += 1
    return counts


def magnitude_cell(value):
    """Cell of a duration: 32 cells per power of two, exact below 64, one for everything from 2**36 on."""
    if value < 0:
        return 0
    if value >= 2**36:
        return 1024
    if value < 32:
        return value
    exponent = value.bit_length() - 1
    return (exponent - 4) * 32 + (value - 2**exponent) * 32 // 2**exponent
