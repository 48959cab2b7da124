"""Shapley values by their definition: every coalition of features is valued, every marginal contribution weighed.

Exponential in the number of features, and that is the point: nothing of how trees are explained fast is in here.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from tests.reference.forest import _is_member

from tiercel.models.ir import Forest, apply_steps


def coalitions(n_features: int) -> list[tuple[int, ...]]:
    """Every set of features."""
    return [chosen for size in range(n_features + 1) for chosen in combinations(range(n_features), size)]


def shapley(value, n_features: int) -> np.ndarray:
    """Shapley values of the game `value(frozenset of features)`."""
    worth = {frozenset(chosen): value(frozenset(chosen)) for chosen in coalitions(n_features)}
    phi = np.zeros(n_features)
    for j in range(n_features):
        for without, alone in worth.items():
            if j not in without:
                s = len(without)
                weight = math.factorial(s) * math.factorial(n_features - s - 1) / math.factorial(n_features)
                phi[j] += weight * (worth[without | {j}] - alone)
    return phi


def interactions(value, n_features: int) -> np.ndarray:
    """Shapley interaction values: pairs share their joint effect half and half, the diagonal is what is left."""
    worth = {frozenset(chosen): value(frozenset(chosen)) for chosen in coalitions(n_features)}
    phi = np.zeros((n_features, n_features))
    for i in range(n_features):
        for j in range(n_features):
            for without, alone in worth.items():
                if i != j and i not in without and j not in without:
                    s = len(without)
                    weight = math.factorial(s) * math.factorial(n_features - s - 2) / math.factorial(n_features - 1) / 2
                    joint = worth[without | {i, j}] - worth[without | {i}] - worth[without | {j}] + alone
                    phi[i, j] += weight * joint
    np.fill_diagonal(phi, shapley(value, n_features) - phi.sum(axis=1))
    return phi


def interventional_game(forest: Forest, row: np.ndarray, reference: np.ndarray, raw: int):
    """The margin of rows that have the coalition's features from `row` and the others from each reference row."""

    def value(coalition):
        mixed = np.array(reference, dtype=np.float32)
        chosen = sorted(coalition)
        mixed[:, chosen] = row[chosen]
        return float(np.mean([margin(forest, each, raw) for each in apply_steps(forest.steps, mixed)]))

    return value


def path_dependent_game(forest: Forest, row: np.ndarray, raw: int):
    """The margin where a test of a feature outside the coalition follows the training data both ways, by cover."""
    prepared = apply_steps(forest.steps, row[None])[0]

    def value(coalition):
        return offset(forest, raw) + sum(
            expected_value(forest, int(forest.tree_start[tree]), prepared, coalition, tree, raw)
            for tree in range(forest.n_trees)
        )

    return value


def expected_value(forest, node, row, coalition, tree, raw):
    if forest.leaf[node] >= 0:
        return leaf_value(forest, tree, forest.leaf[node], raw)
    left, right = int(forest.left[node]), int(forest.right[node])
    if forest.feature[node] in coalition:
        return expected_value(forest, left if goes_left(forest, node, row) else right, row, coalition, tree, raw)
    parts = [
        forest.cover[child] / forest.cover[node] * expected_value(forest, child, row, coalition, tree, raw)
        for child in (left, right)
    ]
    return sum(parts)


def margin(forest: Forest, prepared: np.ndarray, raw: int) -> float:
    """The margin of one prepared row, added in float64."""
    total = offset(forest, raw)
    for tree in range(forest.n_trees):
        node = int(forest.tree_start[tree])
        while forest.leaf[node] < 0:
            node = int(forest.left[node] if goes_left(forest, node, prepared) else forest.right[node])
        total += leaf_value(forest, tree, forest.leaf[node], raw)
    return total


def goes_left(forest, node, row):
    x = row[forest.feature[node]]
    if np.isnan(x):
        return bool(forest.missing_left[node])
    if forest.set_of[node] >= 0:
        return _is_member(forest, forest.set_of[node], x)
    return bool(x <= forest.threshold[node])


def leaf_value(forest, tree, leaf, raw):
    divisor = forest.divisor or 1.0
    values = forest.values[leaf]
    if len(values) > 1:
        return float(values[raw]) / divisor
    return float(values[0]) / divisor if forest.tree_raw[tree] == raw else 0.0


def offset(forest, raw):
    return float(forest.base[raw]) / (forest.divisor if forest.divisor and forest.base_first else 1.0)
