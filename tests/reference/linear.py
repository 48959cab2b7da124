"""A linear model scored the slow, obvious way."""

from __future__ import annotations

import math

import numpy as np
from tests.reference.transforms import transform

from tiercel.models.ir import Linear, apply_steps


def score_linear(linear: Linear, rows: np.ndarray) -> np.ndarray:
    """Scores with exact sums, rounded once; the compiled scorer is within one rounding of it."""
    scores = []
    for row in apply_steps(linear.steps, rows).astype(np.float64):
        raw = np.array([_sum([*(w * row), b]) for w, b in zip(linear.weights, linear.intercept, strict=True)])
        raw = raw.astype(np.float32).astype(np.float64) if linear.single_precision else raw
        row_scores = transform(linear.post, linear.post_scale, raw, normalize=linear.normalize)
        scores.append(row_scores if linear.pick < 0 else row_scores[linear.pick : linear.pick + 1])
    return np.array(scores).reshape(len(rows), -1)


def _sum(terms):
    return math.fsum(terms) if np.isfinite(terms).all() else float(np.sum(terms))
