"""A version's explainer for many rows at once, outside of a server: what reports, guardrails and pages explain with.

It is made of the same files as a server's: the model, the reference set and the reason policy of the version. How a model's
explainer is made is passed in, for this package knows no model formats.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import ReasonPolicyError
from tiercel.explain.global_view import ReasonGroup
from tiercel.explain.policy import outputs_of
from tiercel.explain.reasons import make_form
from tiercel.explain.version_files import load_explanation_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tiercel.explain.policy import ReasonPolicy
    from tiercel.explain.reasons import ReasonForm
    from tiercel.explain.reference_set import ReferenceSet
    from tiercel.settings import ExplainSettings
    from tiercel.types import Attributions, Signature

#: Rows that are explained at least, however long that takes.
LEAST_ROWS: Final = 100
#: What interactions of many rows may take, and how many are computed between two looks at the clock.
INTERACTING_S: Final = 3.0
_CHUNK_ROWS: Final = 10


@dataclass(frozen=True, eq=False)
class RowExplainer:
    """Explains rows of one version.

    Attributes:
        signature: what it takes and gives.
        policy: its reasons.
        reference: what it is explained against; None: against nothing, as path-dependent attributions are.
        output: place of what is explained, among `outputs_of(signature)`.

    Threads: safe, where the model's explainer is.
    """

    signature: Signature
    policy: ReasonPolicy
    reference: ReferenceSet | None
    output: int
    explainer: Any

    def explain(self, rows: NDArray[np.float32]) -> Attributions:
        """Attributions of rows, float32 (n, n_features), to the margin of `output`.

        Raises:
            ModelError: the rows cannot be explained.
        """
        found: Attributions = self.explainer.explain(rows, output=self._label)
        return found

    @property
    def _label(self) -> str | None:
        return outputs_of(self.signature)[self.output]

    @property
    def interact(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]] | None:
        """Exact interaction values of rows, where the model's explainer has them; of the first rows, where they take long."""
        return None if self.explainer.compiled is None else self._interact

    def _interact(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        found = []
        until_s = time.monotonic() + INTERACTING_S
        for at in range(0, len(rows), _CHUNK_ROWS):
            found.append(self.explainer.interactions(rows[at : at + _CHUNK_ROWS], output=self._label)[0])
            if time.monotonic() > until_s:
                break
        return np.concatenate(found)

    @property
    def groups(self) -> tuple[ReasonGroup, ...]:
        """The policy's reasons as columns; empty where features are the reasons."""
        if self.policy.is_default:
            return ()
        places = {name: i for i, name in enumerate(self.signature.features)}
        locale = self.policy.locale
        found = [
            ReasonGroup(reason.wording.code, reason.wording.text(locale), columns)
            for reason in self.policy.reasons
            if (columns := tuple(sorted(places[name] for name in reason.features if name in places)))
        ]
        untold = tuple(sorted(places[name] for name in self.policy.untold if name in places))
        return (*found, ReasonGroup("(untold)", "features that are never told", untold)) if untold else tuple(found)

    def form(self, k: int) -> ReasonForm:
        """What chooses the first `k` reasons of a row."""
        attributes = {
            "kind": self.explainer.kind,
            "reference": None if self.reference is None else self.reference.digest,
        }
        return make_form(self.policy, self.signature, k=k, **attributes)

    def most_rows(self, within_us: float, most: int) -> int:
        """How many rows can be explained in some time, as measured: from `LEAST_ROWS` to `most`."""
        self.explainer.measure()
        each_us = float(self.explainer.predicted_us(1000)) / 1000
        return max(min(LEAST_ROWS, most), min(most, int(within_us / max(each_us, 1e-3))))


def open_row_explainer(
    model: Any,
    artifacts: Mapping[str, bytes],
    settings: ExplainSettings,
    make_explainer: Callable[..., Any],
    *,
    golden_rows: NDArray[np.float32] | None = None,
    output: str | None = None,
    owner: str,
) -> RowExplainer:
    """Make a version's.

    Args:
        model: as `tiercel.models.load` gives it.
        artifacts: the version's files.
        settings: [models.NAME.explain] of the project.
        make_explainer: `tiercel.models.explaining.make_explainer`.
        golden_rows: float32 (n, n_features): what a version without a reference set is explained against.
        output: label of the class to explain; None: the only one, or the first of several.
        owner: names the version in messages.

    Raises:
        ReasonPolicyError: the model has no such class.
        ModelError, ArtifactCorruptError: the version cannot be explained.
    """
    files = load_explanation_files(artifacts, model.signature, settings, golden_rows=golden_rows, owner=owner)
    outputs = outputs_of(model.signature)
    if output is not None and output not in outputs:
        known = ", ".join(str(each) for each in outputs if each is not None) or "none"
        raise ReasonPolicyError(
            f"Expected a class of {owner} that can be explained ({known}), got {output!r}", code="unknown_output"
        )
    kind = settings.kind
    if files.reference is None and kind == "auto" and getattr(model.body, "cover", None) is not None:
        kind = "path_dependent"  # as a server explains it that has nobody to compare with
    explainer = make_explainer(
        model.scorer if model.body is None else model.body, model.signature, files.reference_rows, kind=kind
    )
    place = 0 if output is None else outputs.index(output)
    return RowExplainer(model.signature, files.policy, files.reference, place, explainer)
