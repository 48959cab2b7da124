"""What tiercel.toml declares per model is compared with the registry, and each mistake is named."""

from __future__ import annotations

import math

import pytest

from tiercel.serving.ladder_check import KnownModel, KnownVersion, check
from tiercel.settings import ModelSettings
from tiercel.types import Signature, Task


def version(task=Task.BINARY, classes=("no", "yes"), keys=("customer_id",), request=("amount",)):
    return KnownVersion(Signature(("x",), task, classes), frozenset(keys), frozenset(request))


KNOWN = {
    "fraud": KnownModel({1: version(), 2: version(), 3: version()}, {"champion": 2, "challenger": 3}),
    "fraud_small": KnownModel({1: version(request=())}, {"champion": 1}),
    "unpromoted": KnownModel({1: version()}, {}),
    "three": KnownModel({1: version(Task.MULTICLASS, ("a", "b", "c"))}, {"champion": 1}),
    "price": KnownModel({1: version(Task.REGRESSION, ())}, {"champion": 1}),
    "keyless": KnownModel({1: version(keys=())}, {"champion": 1}),
    "wider": KnownModel({1: version(keys=("customer_id", "shop"), request=("amount", "hour"))}, {"champion": 1}),
}


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings("fraud"),
        ModelSettings("fraud", 8.0, "fraud_small", 3600.0, 0.02, 0.1, "challenger"),
        ModelSettings("fraud", fallback="fraud_small:1"),
        ModelSettings("fraud", fallback="fraud:1"),
        ModelSettings("fraud", fallback="fraud@challenger"),
        ModelSettings("fraud", fallback="fraud:latest"),
        ModelSettings("fraud", default_score=0.0),
        ModelSettings("fraud", default_score=1.0),
        ModelSettings("fraud", shadow="Challenger"),
        ModelSettings("price", default_score=-250.0),
        ModelSettings("unpromoted", fallback="fraud_small"),
    ],
    ids=repr,
)
def test_what_works_is_not_complained_about(settings):
    """Everything that is declared well is silent."""
    assert check([settings], KNOWN) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ModelSettings("frodo"), "[models.frodo]: expected a registered model, got 'frodo'. Registered: fraud, fraud_"),
        (ModelSettings("fraud", fallback="nobody"), "fallback: expected a registered model, got 'nobody'"),
        (ModelSettings("fraud", fallback="Not A Name"), "fallback: Expected a model name"),
        (ModelSettings("fraud", fallback="fraud_small:9"), "got 'fraud_small:9': the model has neither a version nor"),
        (ModelSettings("fraud", fallback="fraud_small@beta"), "neither a version nor an alias 'beta'"),
        (ModelSettings("fraud", fallback="unpromoted"), "got 'unpromoted': the model has no champion"),
        (ModelSettings("fraud", fallback="fraud"), "got 'fraud', which is the champion itself"),
        (ModelSettings("fraud", fallback="fraud:2"), "got 'fraud:2', which is the champion itself"),
        (ModelSettings("fraud", fallback="fraud@champion"), "which is the champion itself"),
        (
            ModelSettings("fraud", fallback="three"),
            "expected a binary (no, yes) model like 'fraud', got 'three', which",
        ),
        (ModelSettings("fraud", fallback="price"), "got 'price', which is regression"),
        (ModelSettings("fraud", fallback="wider"), "'wider' also needs hour, shop"),
        (ModelSettings("three", default_score=0.5), "default_score: expected none for a multiclass model"),
        (ModelSettings("fraud", default_score=1.5), "default_score: expected a probability from 0 to 1"),
        (ModelSettings("fraud", default_score=-0.001), "default_score: expected a probability from 0 to 1"),
        (ModelSettings("price", default_score=math.nan), "default_score: expected a finite number, got nan"),
        (ModelSettings("price", default_score=math.inf), "default_score: expected a finite number, got inf"),
        (ModelSettings("keyless", last_score_max_age_s=60.0), "last_score_max_age_s: expected a model that reads an"),
        (
            ModelSettings("fraud_small", challenger_weight=0.1),
            "challenger_weight: expected the model to have a challenger",
        ),
        (ModelSettings("fraud", shadow="beta"), "got 'beta'. It has: challenger, champion"),
        (ModelSettings("fraud", shadow="champion"), "shadow: expected another alias than the champion"),
        (ModelSettings("unpromoted", shadow="beta"), "got 'beta'. It has: none"),
    ],
)
def test_each_mistake_is_named(settings, expected):
    """One mistake is one sentence, which names the table, the key, and what was expected."""
    (problem,) = check([settings], KNOWN)
    assert expected in problem
    assert problem.startswith(f"[models.{settings.name}]")


def test_a_challenger_of_another_kind():
    """A challenger whose scores mean something else is found before it answers anybody."""
    known = {"fraud": KnownModel({1: version(), 2: version(Task.REGRESSION, ())}, {"champion": 1, "challenger": 2})}
    (problem,) = check([ModelSettings("fraud", challenger_weight=0.5)], known)
    assert "expected a binary (no, yes) challenger like the champion, got one that is regression" in problem


def names(n):
    return {name: KnownModel({1: version()}, {"champion": 1}) for name in "abcdef"[:n]}


@pytest.mark.parametrize(
    ("fallbacks", "rings"),
    [
        ({"a": "b", "b": "c"}, []),
        ({"a": "b", "b": "a"}, ["a -> b -> a"]),
        ({"a": "b", "b": "c:1", "c": "a"}, ["a -> b -> c -> a"]),
        ({"a": "b", "b": "c", "c": "b"}, ["b -> c -> b"]),
        ({"a": "b", "b": "a", "c": "d", "d": "c"}, ["a -> b -> a", "c -> d -> c"]),
        ({"a": "b", "c": "b", "b": "d"}, []),
        ({"a": "b", "c": "b", "b": "c"}, ["b -> c -> b"]),
    ],
)
def test_rings_are_told_once(fallbacks, rings):
    """Fallbacks that come back to where they began are one problem, whoever leads into them."""
    declared = [ModelSettings(name, fallback=other) for name, other in fallbacks.items()]
    problems = check(declared, names(4))
    assert [problem.rpartition("a ring: ")[2] for problem in problems] == rings
