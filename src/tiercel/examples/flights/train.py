"""Train the project's two models and register them: `python train.py` in the project's directory.

The champion is gradient-boosted trees on every feature, the challenger a logistic regression on the numeric ones. Both
learn from flights of January to September 2013 and are evaluated on October's, each flight with the features as they
were known at its scheduled departure.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel import Project
from tiercel.examples.flights.data import LABEL, fetch_data, labels_sql

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tiercel.features.training import TrainingSet
    from tiercel.registry import ModelVersion

SERVICE = "flight_delay"
MODEL = "late"
#: Dictionary codes mean nothing to a linear model.
TEXT_FEATURES = ("airline", "engine")
TREES: dict[str, Any] = {
    "n_estimators": 100, "num_leaves": 31, "learning_rate": 0.08, "min_child_samples": 100, "subsample": 0.8,
    "subsample_freq": 1, "colsample_bytree": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What `train` registered, and how well it does on October."""

    champion: ModelVersion
    challenger: ModelVersion


def training_sets(project: Project) -> tuple[TrainingSet, TrainingSet]:
    """January to September, and October, point-in-time correct."""
    learn = project.get_historical_features(labels_sql("train"), SERVICE, label_columns=[LABEL])
    held_out = project.get_historical_features(labels_sql("test"), SERVICE, label_columns=[LABEL])
    return learn, held_out


def registered(project: Project) -> Trained | None:
    """The models, if exactly this code already trained them on the features in force."""
    fingerprint = project.service(SERVICE).fingerprint
    found: dict[str, ModelVersion] = {}
    if MODEL in {model.name for model in project.registry.list_models()}:
        for version in project.registry.list_versions(MODEL):
            if version.facts.service_fingerprint == fingerprint and version.facts.tags.get("recipe") == recipe(project):
                found[version.facts.tags["role"]] = version
    return Trained(found["champion"], found["challenger"]) if len(found) == 2 else None


def train(project: Project, learn: TrainingSet, held_out: TrainingSet) -> Trained:
    """Fit both models, register them, and point the aliases at them."""
    import lightgbm
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trees = lightgbm.LGBMClassifier(**TREES, random_state=0, deterministic=True, force_row_wise=True, verbose=-1)
    trees.fit(learn.X, learn.label(LABEL))
    numeric = [name for name in learn.feature_names if name not in TEXT_FEATURES]
    logistic = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(max_iter=300))
    logistic.fit(learn.vectors(numeric), learn.label(LABEL))
    champion = project.register(
        trees,
        name=MODEL,
        training_set=learn,
        metrics=evaluate(trees, held_out.X, held_out.label(LABEL)),
        description="Gradient-boosted trees on every feature.",
        tags={"role": "champion", "recipe": recipe(project)},
        alias="champion",
    )
    challenger = project.register(
        logistic,
        name=MODEL,
        training_set=learn,
        feature_names=numeric,
        metrics=evaluate(logistic, held_out.vectors(numeric), held_out.label(LABEL)),
        description="Logistic regression on the numeric features.",
        tags={"role": "challenger", "recipe": recipe(project)},
        alias="challenger",
    )
    return Trained(champion, challenger)


def evaluate(model: Any, features: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, float]:
    """AUC and log loss on held-out rows."""
    from sklearn.metrics import log_loss, roc_auc_score

    scores = model.predict_proba(features)[:, 1]
    return {"auc_october": float(roc_auc_score(labels, scores)), "log_loss_october": float(log_loss(labels, scores))}


def recipe(project: Project) -> str:
    """Digest of this file and of the reason policy: a model trained by other code, or explained in other words, is another."""
    digest = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode())
    policy = project.settings.model(MODEL).explain.policy
    if policy is not None:
        digest.update((project.settings.project_dir / policy).read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Train in the current directory's project."""
    with Project() as project:
        fetch_data(project.settings.project_dir)
        project.apply()
        trained = registered(project) or train(project, *training_sets(project))
        for version in (trained.champion, trained.challenger):
            print(f"{version.name} version {version.version} ({version.status}): {version.facts.metrics}")


if __name__ == "__main__":
    main()
