"""A project whose champion and challenger can be explained, and that was asked: `a` times `b` and `c` decide, `b` has moved since."""

from __future__ import annotations

import time

import numpy as np
from tests.monitor.recorders import FEATURES, make_recorder

from tiercel.explain.version_files import make_explanation_files
from tiercel.models import prepare
from tiercel.monitor.reference import REFERENCE_FILE, Reference
from tiercel.monitor.training_rows import TRAINING_ROWS_FILE, TrainingRows
from tiercel.registry import Registry, VersionFacts
from tiercel.types import TrainingSnapshot

POLICY = b"""
format = 1
locale = "en"
k = 4
adverse = "higher"
[insufficient]
code = "R00"
text.en = "Nothing stands out."
[[reason]]
code = "R01"
text.en = "a and b together"
features = ["a", "b"]
[[reason]]
code = "R02"
text.en = "c"
features = ["c"]
"""


def population(n, seed, *, b=0.0):
    """Rows of three features and labels."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    rows[:, 1] += np.float32(b)
    rows[rng.random(n) < 0.05, 2] = np.nan
    margin = rows[:, 0] * rows[:, 1] + 1.5 * np.nan_to_num(rows[:, 2]) + 0.8 * rows[:, 1]
    return rows, (margin + rng.normal(size=n) > 0.5).astype(int)


def files_of(seed=0, *, n_trees=20, policy=None, with_training=True, change=None):
    """A version's files and its prepared model."""
    import lightgbm

    rows, labels = population(3_000, seed)
    if change is not None:
        labels = change(rows, labels)
    model = lightgbm.LGBMClassifier(n_estimators=n_trees, num_leaves=15, n_jobs=1, verbosity=-1, random_state=0)
    prepared = prepare(model.fit(rows, labels), feature_names=FEATURES, golden_rows=rows[:50])
    files = dict(prepared.artifacts)
    if with_training:
        scores = model.predict_proba(rows)[:, 1:]
        files |= make_explanation_files(prepared.signature, policy=policy, rows=rows)
        files[REFERENCE_FILE] = Reference.build(rows, scores, FEATURES).to_bytes()
        files[TRAINING_ROWS_FILE] = TrainingRows.draw(rows, FEATURES, most=800).to_bytes()
    return files, prepared, model


def register(registry, name="late", **options):
    """Register a version; returns (record, model)."""
    files, prepared, model = files_of(**options)
    facts = VersionFacts(
        snapshot=TrainingSnapshot("rows", 3_000, "0" * 64),
        signature=prepared.signature,
        author="a",
        engine=prepared.engine,
    )
    return registry.register(name, files, facts), model


def explained_project(directory, *, b=1.5, n=300, minutes_ago=0, toml="", challenger=True, policy=None):
    """Make it; every row served is a request of its own, recorded as if answered now, or some minutes ago.

    The challenger has learned that `c` does not matter. Returns the directory.
    """
    directory.mkdir(exist_ok=True)
    (directory / "tiercel.toml").write_text(toml)
    with Registry.for_state(directory / ".tiercel") as registry:
        record, model = register(registry, policy=policy)
        registry.promote("late", 1, actor="a")
        if challenger:
            register(
                registry, policy=policy, change=lambda rows, _: (rows[:, 0] * rows[:, 1] + rows[:, 1] > 0.5).astype(int)
            )
            registry.promote("late", 2, alias="challenger", actor="a")
        artifacts = registry.load_artifacts(record)
    serve(
        directory,
        model,
        population(n, 7, b=b)[0],
        Reference.from_bytes(artifacts[REFERENCE_FILE]),
        minutes_ago=minutes_ago,
    )
    return directory


def serve(directory, model, rows, reference=None, *, minutes_ago=0, version=1):
    """Record that a version was asked for these rows."""
    from tiercel.types import Signature, Task

    recorder = make_recorder(directory / ".tiercel")
    signature = Signature(FEATURES, Task.BINARY, ("0", "1"))
    plan = recorder.for_plan("late", version, signature, reference=reference)
    begin_us = time.time_ns() // 1000 - minutes_ago * 60_000_000
    scores = model.predict_proba(rows)[:, 1:]
    for i in range(len(rows)):
        plan.add(rows[i : i + 1], scores[i : i + 1], number=begin_us + i, received_us=begin_us + i)
    recorder.close()
