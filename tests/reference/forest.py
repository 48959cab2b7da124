"""A forest scored the slow, obvious way: one row, one tree, one node at a time."""

from __future__ import annotations

import numpy as np
from tests.reference.transforms import transform

from tiercel.models.ir import Aggregate, Forest, apply_steps


def score_forest(forest: Forest, rows: np.ndarray) -> np.ndarray:
    """What `forest.compile().score(rows)` must return, bit for bit."""
    real = np.float32 if forest.single_precision else np.float64
    prepared = apply_steps(forest.steps, rows)
    return np.array([_score_row(forest, row, real) for row in prepared]).reshape(len(rows), -1)


def find_leaves(forest: Forest, rows: np.ndarray) -> np.ndarray:
    """What `forest.compile().leaves(rows)` must return: leaves numbered from each tree's first."""
    bounds = zip(forest.tree_start[:-1], forest.tree_start[1:], strict=True)
    first = [min(leaf for leaf in forest.leaf[begin:end] if leaf >= 0) for begin, end in bounds]
    found = [
        [_leaf(forest, tree, row) - first[tree] for tree in range(forest.n_trees)]
        for row in apply_steps(forest.steps, rows)
    ]
    return np.array(found, dtype=np.int32).reshape(len(rows), forest.n_trees)


def _score_row(forest, row, real):
    start = forest.base if forest.base_first else np.zeros(forest.n_raw)
    raw = [real(value) for value in start]
    for tree in range(forest.n_trees):
        values = forest.values[_leaf(forest, tree, row)]
        outputs = range(forest.n_raw) if len(values) > 1 else [forest.tree_raw[tree]]
        for k, value in zip(outputs, map(real, values), strict=True):
            if forest.aggregate is Aggregate.SUM:
                raw[k] = real(raw[k] + value)
            elif forest.aggregate is Aggregate.MIN:
                raw[k] = value if tree == 0 or value < raw[k] else raw[k]
            else:
                raw[k] = value if tree == 0 or value > raw[k] else raw[k]
    if forest.divisor:
        raw = [real(value / real(forest.divisor)) for value in raw]
    if not forest.base_first:
        raw = [real(value + real(base)) for value, base in zip(raw, forest.base, strict=True)]
    scores = transform(forest.post, forest.post_scale, np.array(raw, dtype=np.float64), normalize=forest.normalize)
    return scores if forest.pick < 0 else scores[forest.pick]


def _leaf(forest, tree, row):
    node = forest.tree_start[tree]
    while forest.leaf[node] < 0:
        x = row[forest.feature[node]]
        if np.isnan(x):
            left = bool(forest.missing_left[node])
        elif forest.set_of[node] >= 0:
            left = _is_member(forest, forest.set_of[node], x)
        else:
            left = bool(x <= forest.threshold[node])
        node = forest.left[node] if left else forest.right[node]
    return forest.leaf[node]


def _is_member(forest, number, x):
    sets = forest.sets
    if not np.isnan(sets.equal[number]):
        return bool(x == sets.equal[number])
    words = sets.words[sets.start[number] : sets.start[number + 1]]
    members = {32 * k + bit for k, word in enumerate(words.tolist()) for bit in range(32) if word >> bit & 1}
    if not np.isfinite(x) or (x < 0 and not (sets.floor_negative and x > -1)):
        return False
    return int(x) in members
