"""A registered version, opened to be explained: its explainer, its scorer, and rows of its training set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel import models
from tiercel.errors import ArtifactCorruptError
from tiercel.explain.row_explainer import RowExplainer, open_row_explainer
from tiercel.insight.references import reference_of
from tiercel.models.explaining import make_explainer
from tiercel.models.golden import Golden
from tiercel.models.preparing import GOLDEN_FILE
from tiercel.monitor.training_rows import TrainingRows, find_training_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.registry import ModelVersion, Registry
    from tiercel.settings import Settings


@dataclass(frozen=True, eq=False)
class ExplainedVersion:
    """A version and what explains it.

    Attributes:
        record: as registered.
        rows: explains rows of it.
        scorer: scores them.
        training: rows of its training set, or the reference set where only that was kept; None: there are none.
        categories: the bins of features that are categories, as far as its reference says.

    Threads: safe, where the model's explainer is.
    """

    record: ModelVersion
    rows: RowExplainer
    scorer: Any
    training: TrainingRows | None
    categories: Mapping[str, CategoryBins] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """Of its rows."""
        return self.rows.signature.features

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of rows, float64 (n, n_outputs)."""
        found: NDArray[np.float64] = self.scorer.score(rows)
        return found


def open_version(
    settings: Settings, registry: Registry, record: ModelVersion, *, output: str | None = None
) -> ExplainedVersion:
    """Load a version. It reads files and builds tables: never on an event loop.

    Args:
        settings: the project.
        registry: its models.
        record: which version.
        output: label of the class to explain; None: the only one, or the first of several.

    Raises:
        ModelError, ArtifactCorruptError: it cannot be loaded or explained.
        ReasonPolicyError: its reasons are wrong, or it has no such class.
    """
    artifacts = registry.load_artifacts(record)
    if GOLDEN_FILE not in artifacts:
        raise ArtifactCorruptError(f"Expected {GOLDEN_FILE} with {record.name} version {record.version}, got none")
    explainer = open_row_explainer(
        model := models.load(artifacts, verify=False),
        artifacts,
        settings.model(record.name).explain,
        make_explainer,
        golden_rows=Golden.from_bytes(artifacts[GOLDEN_FILE]).rows,
        output=output,
        owner=f"{record.name} version {record.version}",
    )
    training = find_training_rows(artifacts)
    if training is None and explainer.reference is not None and explainer.reference.origin == "training":
        kept = explainer.reference
        training = TrainingRows(kept.features, kept.rows, kept.drawn_from)
    reference = reference_of(record, artifacts, settings)
    categories = {} if reference is None else reference.categories
    return ExplainedVersion(record, explainer, model.scorer, training, categories)
