"""Models of several classes: one is explained, which can be chosen, and nothing is said of yes-or-no decisions."""

from __future__ import annotations

import numpy as np
import pytest
from tests.monitor.recorders import FEATURES
from tests.support.explained import population

from tiercel.errors import ReasonPolicyError
from tiercel.explain.version_files import make_explanation_files
from tiercel.insight.churns import churn_of_rows
from tiercel.insight.global_views import find_global_views
from tiercel.insight.versions import open_version
from tiercel.models import prepare
from tiercel.monitor.training_rows import TRAINING_ROWS_FILE, TrainingRows
from tiercel.project import Project
from tiercel.registry import VersionFacts
from tiercel.types import TrainingSnapshot


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two versions of a model of which of three features is the largest, of which nobody was asked."""
    import lightgbm

    directory = tmp_path_factory.mktemp("classes")
    (directory / "tiercel.toml").write_text("")
    rows, _ = population(1_500, 0)
    labels = np.nan_to_num(rows).argmax(axis=1)
    with Project(directory) as project:
        for n_trees in (5, 6):
            model = lightgbm.LGBMClassifier(n_estimators=n_trees, num_leaves=7, n_jobs=1, verbosity=-1)
            prepared = prepare(model.fit(rows, labels), feature_names=FEATURES, golden_rows=rows[:20])
            files = {
                **prepared.artifacts,
                **make_explanation_files(prepared.signature, policy=None, rows=rows),
                TRAINING_ROWS_FILE: TrainingRows.draw(rows, FEATURES, most=200).to_bytes(),
            }
            facts = VersionFacts(
                snapshot=TrainingSnapshot("rows", 1, "0" * 64),
                signature=prepared.signature,
                author="a",
                engine="forest",
            )
            project.registry.register("kind", files, facts)
    return directory


@pytest.mark.parametrize(("output", "expected", "feature"), [(None, "0", "a"), ("2", "2", "c")])
def test_one_class_is_explained(directory, output, expected, feature):
    """The first by default; of the chosen one, contributions add up to its own mean margin, and reasons are compared."""
    with Project(directory) as project:
        opened = [
            open_version(project.settings, project.registry, project.registry.get("kind", n), output=output)
            for n in (1, 2)
        ]
        found = find_global_views(project.settings, *opened, begin_us=1, end_us=2, exactly=False)
    first = found.views[0]
    assert (first.output, first.source, first.n_rows) == (expected, "training", 200)
    assert first.features[0].name == feature
    assert (found.churn.n_rows, found.churn.n_decisions) == (200, None)
    values = opened[0].rows.explain(opened[0].training.rows)
    assert first.mean_margin == pytest.approx(values.expected + values.values.sum(axis=1).mean())


def largest_first(values):
    """Features that moved a score, the largest part first."""
    return tuple(FEATURES[i] for i in np.argsort(-np.abs(values)) if abs(values[i]) > 1e-6)


def test_reasons_of_the_likeliest_class_are_compared(directory, monkeypatch):
    """Churn is of what replies say, which explain the class that a row is most likely of, not the first one."""
    asked = []

    def compare(model, champion, challenger, **_):
        asked.extend((champion, challenger))

    monkeypatch.setattr("tiercel.insight.churns.compare_reasons", compare)
    with Project(directory) as project:
        opened = [open_version(project.settings, project.registry, project.registry.get("kind", n)) for n in (1, 2)]
    rows = opened[0].training.rows[:60]
    churn_of_rows(*opened, rows, rows, "training", 0.5)
    for version, (_, codes) in zip(opened, asked, strict=True):
        likeliest = version.score(rows).argmax(axis=1)
        assert set(likeliest.tolist()) == {0, 1, 2}
        of_class = [version.rows.explainer.explain(rows, output=label).values for label in ("0", "1", "2")]
        assert codes == [largest_first(of_class[place][k]) for k, place in enumerate(likeliest)]
        assert codes != [largest_first(values) for values in of_class[0]]


def test_a_class_that_there_is_none_of_is_refused(directory):
    """With those that there are."""
    with Project(directory) as project, pytest.raises(ReasonPolicyError, match=r"\(0, 1, 2\), got '7'"):
        open_version(project.settings, project.registry, project.registry.get("kind", 1), output="7")
