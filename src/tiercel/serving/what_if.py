"""What would have changed an earlier decision: a version, what its receipt holds, and a search for the smallest change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel import models
from tiercel.errors import RequestError, UnexplainableModelError
from tiercel.explain.counterfactual_words import sentence
from tiercel.explain.counterfactuals import Counterfactuals, Landscape, find_counterfactuals, spreads_of
from tiercel.explain.version_files import load_explanation_files
from tiercel.models.golden import Golden
from tiercel.models.ir import Forest, StepKind
from tiercel.models.preparing import GOLDEN_FILE
from tiercel.serving.receipts import find_receipt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.explain.policy import ReasonPolicy
    from tiercel.models import LoadedModel
    from tiercel.models.ir import Linear
    from tiercel.registry import Registry
    from tiercel.settings import Settings

#: Preparation that leaves a value which is there as it is, but for single values: thresholds are then those of the input.
_KEEPING: Final = frozenset({StepKind.IMPUTE_NAN, StepKind.IMPUTE_VALUE, StepKind.ZERO_IS_NAN})
#: Preparation after which a weighted sum is monotone in each input.
_MONOTONE: Final = frozenset({StepKind.IMPUTE_NAN, StepKind.SCALE, StepKind.ADD, StepKind.MULTIPLY, StepKind.DIVIDE})
#: LightGBM takes a value within this of 0 for missing where a model was trained so.
_ZERO: Final = np.float32(1e-35)


@dataclass(frozen=True)
class WhatIf:
    """What would have changed one prediction.

    Attributes:
        model, version: what answered.
        row: of its request.
        found: see `Counterfactuals`.
        policy: which changes it allows.
        masked: features that it would let change and whose values must not be shown, so that they were left as they are.
    """

    model: str
    version: int
    row: int
    found: Counterfactuals
    policy: ReasonPolicy
    masked: tuple[str, ...] = ()

    def sentences(self, locale: str | None = None) -> tuple[str, ...]:
        """The counterfactuals in words, nearest first, in the locale that is nearest to the one asked for."""
        chosen = self.policy.choose_locale(locale)
        return tuple(sentence(each, self.policy, chosen) for each in self.found.found)

    def to_json(self, locale: str | None = None) -> dict[str, Any]:
        """Plain JSON values."""
        said = self.sentences(locale)
        return {
            "model": self.model,
            "version": self.version,
            "row": self.row,
            "score": self.found.score,
            "threshold": self.found.threshold,
            "counterfactuals": [
                {**each.to_json(), "text": text} for each, text in zip(self.found.found, said, strict=True)
            ],
            "is_exhaustive": self.found.is_exhaustive,
            "why": self.found.why or None,
            "masked": list(self.masked),
            "policy": self.policy.digest,
        }


def what_if(
    settings: Settings, registry: Registry, prediction_id: str, *, threshold: float | None = None, row: int = 0
) -> WhatIf:
    """The smallest changes that would have flipped the decision of an earlier prediction.

    Args:
        settings: of the project.
        registry: its models.
        prediction_id: a reply's id.
        threshold: a score at or above it is a positive decision; None: [models.NAME.value] threshold.
        row: of the request, where it had many.

    Raises:
        RequestError: no reply has such an id, or there is no such row.
        NotFoundError, JournalError, ReceiptCorruptError: there is no receipt that can be read, or no such version.
        UnexplainableModelError: no search fits the version's kind of model.
    """
    receipts = find_receipt(settings, prediction_id)
    rows = np.concatenate([receipt.rows for receipt in receipts])
    first = receipts[0]
    if not 0 <= row < len(rows):
        raise RequestError(
            f"Expected a row of the request from 0 to {len(rows) - 1}, got {row}", code="invalid_request"
        )
    declared = settings.model(first.model)
    artifacts = registry.load_artifacts(registry.get(first.model, first.version))
    model = models.load(artifacts)
    files = load_explanation_files(
        artifacts,
        model.signature,
        declared.explain,
        golden_rows=Golden.from_bytes(artifacts[GOLDEN_FILE]).rows,
        owner=f"version {first.model}:{first.version}",
    )
    hidden = settings.monitor.masked
    # A change names what its feature is now: of a masked one that is not to be told, so it is as if nobody could change it.
    told = replace(files.policy, immutable=(*files.policy.immutable, *hidden.intersection(model.signature.features)))
    found = find_counterfactuals(
        rows[row],
        landscape_of(model, files.reference_rows),
        told,
        threshold=declared.value.threshold if threshold is None else threshold,
    )
    masked = tuple(change.feature for change in files.policy.changes if change.feature in hidden)
    return WhatIf(first.model, first.version, row, found, files.policy, masked)


def landscape_of(model: LoadedModel, reference_rows: NDArray[np.float32] | None) -> Landscape:
    """What a search for counterfactuals needs to know of a version.

    Args:
        model: a forest or a linear model of one output.
        reference_rows: float32 (n, n_features), whose spread distances are measured in; None: every spread is 1.

    Raises:
        UnexplainableModelError: another model; the message says what stands in the way.
    """
    body, features = model.body, model.signature.features
    if body is None:
        raise UnexplainableModelError(
            f"Expected a forest or a linear model to look for what would change its decision, got one that {model.engine} "
            "serves: nothing is known of its thresholds"
        )
    if model.signature.n_outputs != 1:
        raise UnexplainableModelError(
            f"Expected a model of one score, whose decision a threshold makes, got one of {model.signature.n_outputs} classes"
        )

    def score(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = model.scorer.score(rows)[:, 0]
        return scores

    spreads = np.ones(len(features)) if reference_rows is None else spreads_of(reference_rows)
    if isinstance(body, Forest):
        _refuse_steps(body, _KEEPING)
        return Landscape(features, score, spreads, _cuts_of(body), "at")
    _refuse_steps(body, _MONOTONE)
    return Landscape(features, score, spreads)


def _refuse_steps(body: Forest | Linear, known: frozenset[StepKind]) -> None:
    for step in body.steps:
        if step.kind not in known:
            raise UnexplainableModelError(
                f"Expected a model whose inputs are prepared one by one to look for what would change its decision, got a "
                f"step {step.kind.name.lower()}"
            )


def _cuts_of(forest: Forest) -> dict[int, NDArray[np.float32]]:
    """Thresholds by feature. Features that are split by categories have none: their values have no order to move along."""
    inner = forest.leaf < 0
    by_order = inner & (forest.set_of < 0)
    unordered = {int(index) for index in np.unique(forest.feature[inner & ~by_order])}
    zero_is_missing = [step.a for step in forest.steps if step.kind is StepKind.ZERO_IS_NAN]
    cuts = {}
    for index in np.unique(forest.feature[by_order]).tolist():
        if index in unordered:
            continue
        found = np.unique(forest.threshold[by_order & (forest.feature == index)])
        if any(each[index] for each in zero_is_missing):
            found = np.union1d(found, np.array([-_ZERO, _ZERO, np.nextafter(-_ZERO, np.float32(-1))], dtype=np.float32))
        cuts[index] = found.astype(np.float32)
    return cuts
