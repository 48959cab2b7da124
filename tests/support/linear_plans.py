"""Plans of linear models that explain: small enough to know every contribution by heart."""

from __future__ import annotations

import numpy as np
from tiercel._hot.explained import Explanations
from tiercel._hot.linear import LinearScorer
from tiercel._hot.linear_shap import LinearExplainer
from tiercel._hot.plan import ServingPlan

from tiercel.explain.policy import default_policy
from tiercel.explain.reasons import make_form
from tiercel.serving.explaining import Attributed
from tiercel.types import Signature, Task

FEATURES = ("a", "b", "c")
#: Of class i they are these times i + 1; the reference's mean is MEAN.
WEIGHTS, INTERCEPT = np.array([2.0, -1.0, 0.25]), 0.125
MEAN = np.array([1.0, 2.0, 3.0])
REFERENCE = "f" * 64


class LinearVersion:
    """What `Explanations.explainer` is in a server, of a linear model; `compiled` None: it is asked from Python."""

    def __init__(self, signature, compiled, own=None):
        self.signature, self.compiled, self.own = signature, compiled, own or compiled
        self.asked = []
        self.bound = {"explainer_kind": "linear", "reference_digest": REFERENCE, "policy_digest": None}

    def form_of(self, locale=None, k=None):
        policy = default_policy(self.signature)
        policy = policy if k is None else policy.with_settings(k=k)
        method = "sampled" if self.compiled is None else "exact"
        return make_form(policy, self.signature, method=method, kind="linear", reference=REFERENCE)

    def attribute(self, rows, scores):
        self.asked.append(len(rows))
        values = self.own.explain(rows)
        return Attributed(values, self.own.expected_margin(), 0, np.full(values.shape, 0.5))


def signature_of(task=Task.REGRESSION):
    classes = {Task.REGRESSION: (), Task.BINARY: ("no", "yes"), Task.MULTICLASS: ("x", 'y"\n', "é")}[task]
    return Signature(FEATURES, task, classes)


def coefficients(signature, scale=1.0):
    n = np.arange(1, signature.n_outputs + 1, dtype=np.float64)
    return np.outer(n, WEIGHTS) * scale, n * INTERCEPT


def scorer_of(signature, *, scale=1.0, post=0):
    weights, intercept = coefficients(signature, scale)
    return LinearScorer(
        weights=weights, intercept=intercept, single_precision=False, post=post, post_scale=1.0, normalize=False, pick=-1,
        steps=[],
    )  # fmt: skip


def explanations_of(signature, *, is_compiled=True, scale=1.0, cost_us=None, checked=True):
    """How such a model explains; with another `scale` than its own it explains wrongly."""
    weights, intercept = coefficients(signature, scale)
    compiled = LinearExplainer(weights=weights, intercept=intercept, mean=MEAN, steps=[])
    version = LinearVersion(signature, compiled if is_compiled else None, compiled)
    return Explanations(
        len(FEATURES),
        signature.n_outputs,
        version,
        version.form_of(),
        cost_us=cost_us,
        margins=scorer_of(signature) if checked and is_compiled else None,
    )


def plan_of(task=Task.REGRESSION, *, explanations=None, post=0, name="line", **options):
    """A plan; a regression's scores are its margins."""
    signature = signature_of(task)
    explanations = explanations_of(signature) if explanations is None else explanations
    return ServingPlan(name, 1, signature, scorer_of(signature, post=post), explanations=explanations, **options)


def contributions(row):
    """Of a row of the first class, None being missing."""
    values = np.array([np.nan if value is None else value for value in row], dtype=np.float64)
    return dict(zip(FEATURES, WEIGHTS * (values - MEAN), strict=True))
