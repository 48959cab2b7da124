"""How a version explains its scores: from its files to what its plans are given.

The explainer follows from the model and its reference set, the words from its reason policy; both are files of the version.
What cannot be made is no reason not to serve: the version then says with each explanation why there is none.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel._hot.explained import Explanations
from tiercel.errors import TiercelError, UnexplainableModelError
from tiercel.explain.policy import MAX_K
from tiercel.explain.reasons import ReasonForms
from tiercel.explain.version_files import load_explanation_files, policy_of
from tiercel.models.explaining import LEAST_PROBABILITY, make_explainer
from tiercel.models.golden import Golden
from tiercel.models.ir import Forest
from tiercel.models.margins import explained_forest, explained_linear
from tiercel.models.preparing import GOLDEN_FILE
from tiercel.serving.explaining import Attributed
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tiercel._hot.explainer import Explainer
    from tiercel._hot.scorer import Scorer
    from tiercel.explain.policy import ReasonPolicy
    from tiercel.explain.reasons import ReasonForm
    from tiercel.models import LoadedModel
    from tiercel.models.explaining import ModelExplainer
    from tiercel.models.ir import Linear
    from tiercel.models.profile import CostProfile
    from tiercel.settings import ExplainSettings, ModelSettings
    from tiercel.types import Signature

log = logging.getLogger("tiercel.serving")

#: What is believed of a measured tail, as a multiple of the median.
MOST_SPREAD: Final = 10.0
#: As in `explained.pyx`: relative to the largest of the numbers that are added.
ADDITIVITY: Final = 1e-6


class VersionExplainer:
    """What `Explanations.explainer` is in a server.

    Args:
        explainer: of `tiercel.models.explaining`.
        policy: fits the signature.
        signature: the version's.
        reference: digest of the reference set; None: contributions are not against one.

    Threads: safe.
    """

    def __init__(
        self, explainer: ModelExplainer, policy: ReasonPolicy, signature: Signature, reference: str | None
    ) -> None:
        self._explainer, self._policy, self._signature = explainer, policy, signature
        self._reference = reference
        self.compiled = explainer.compiled
        self._forms = ReasonForms(
            policy,
            signature,
            method="exact" if self.compiled is not None else "sampled",
            kind=explainer.kind,
            scale=explainer.margin_scale,
            reference=reference,
        )

    @property
    def kind(self) -> str:
        """Of contributions, as explanations name it."""
        return self._explainer.kind

    @property
    def bound(self) -> dict[str, str | None]:
        """What its explanations follow from, as a plan's declaration in the journal says it (`serving/bindings.py`)."""
        return {
            "explainer_kind": self.kind,
            "reference_digest": self._reference,
            "policy_digest": self._policy.digest,
        }

    def form_of(self, locale: str | None = None, k: int | None = None) -> ReasonForm:
        """The form of reasons in the locale that is nearest to the one asked for, at most `k` of them.

        Whatever a request asks, its explanation names the policy that is bound: `k` is the request's, not another policy's.
        """
        return self._forms.form_of(locale, k)

    def attribute(self, rows: NDArray[np.float32], scores: Any) -> Attributed:
        """Contributions to the margin that is explained: of several classes the one whose scores add up to most.

        Args:
            rows: float32 (n, n_features), scored.
            scores: of each row, a number or one per class.

        Raises:
            Exception: what the explainer raises.
        """
        table = np.asarray(scores, np.float64).reshape(len(rows), -1)
        output = int(np.argmax(table.sum(axis=0))) if table.shape[1] > 1 else 0
        label = self._explainer.outputs[output] if table.shape[1] > 1 else None
        found = self._explainer.explain(rows, output=label)
        values, expected = np.ascontiguousarray(found.values, np.float64), float(found.expected)
        is_right = add_up(values, expected, table[:, output], has_classes=self._signature.task is not Task.REGRESSION)
        return Attributed(values, expected, output, found.standard_error, is_right)


def add_up(values: NDArray[np.float64], expected: float, scores: NDArray[np.float64], *, has_classes: bool) -> bool:
    """Whether sampled contributions add up to the margins of scores that were made apart from them.

    Args:
        values: (n, n_features).
        expected: the margin that they start from.
        scores: (n,).
        has_classes: scores are probabilities, and margins their log odds, cut as the sampler cuts them.
    """
    totals, margins, slack = expected + values.sum(axis=1), scores, np.zeros(len(scores))
    if has_classes:
        cut = np.clip(scores, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        margins = np.log(cut) - np.log1p(-cut)
        # Scores are float32, and a batch of another size may round the last bits otherwise: so far apart are their log odds.
        slack = 4 * LEAST_PROBABILITY / (cut * (1 - cut))
    largest = np.maximum(np.abs(margins), np.maximum(abs(expected), np.abs(values).max(axis=1, initial=0.0)))
    known = np.isfinite(totals) & np.isfinite(margins)
    return bool((np.abs(totals - margins)[known] <= (ADDITIVITY * largest + slack)[known]).all())


def make_explanations(
    model: LoadedModel,
    artifacts: Mapping[str, bytes],
    declared: ModelSettings | None = None,
    profile: CostProfile | None = None,
    *,
    label: str,
    measures: bool = False,
) -> Explanations:
    """How a version's plans explain. Slow where the model is large: never call it on an event loop.

    Args:
        model: the version's, just loaded.
        artifacts: its files.
        declared: [models.NAME].
        profile: what explaining costs on this host; None, or without that: see `measures`.
        label: names the version in messages.
        measures: measure it here, briefly, where the profile does not say it; else it is predicted from the model's size.
    """
    n_features, n_outputs = len(model.signature.features), model.signature.n_outputs
    try:
        explainer, reference, policy = _make(model, artifacts, declared, label)
        mine = VersionExplainer(explainer, policy, model.signature, reference)
        return Explanations(
            n_features,
            n_outputs,
            mine,
            mine.form_of(),
            cost_us=_cost_us(explainer, profile, measures=measures),
            margins=margins_of(model.body, mine.compiled),
        )
    except TiercelError as error:
        why = str(error)
        log.warning("model %s: its scores are not explained: %s", label, error)
    except Exception as error:  # whatever it is, the version is served
        why = f"an explainer could not be made: {type(error).__name__}"
        log.exception("model %s: its scores are not explained", label)
    return Explanations(n_features, n_outputs, why=why)


def _make(
    model: LoadedModel, artifacts: Mapping[str, bytes], declared: ModelSettings | None, label: str
) -> tuple[ModelExplainer, str | None, ReasonPolicy]:
    settings = None if declared is None else declared.explain
    golden = Golden.from_bytes(artifacts[GOLDEN_FILE]).rows
    files = load_explanation_files(artifacts, model.signature, settings, golden_rows=golden, owner=f"version {label}")
    kind = "auto" if settings is None else settings.kind
    if files.reference_rows is None and kind == "auto":
        # Nobody to compare with: what the file counted at each node of its trees is the next best.
        if not isinstance(model.body, Forest) or model.body.cover is None:
            why = model.body.why_no_cover if isinstance(model.body, Forest) else ""
            instead = f". Nor can the file's own counts stand in for it: {why}" if why else ""
            raise UnexplainableModelError(files.why_no_reference + instead)
        kind = "path_dependent"
    explainer = make_explainer(
        model.scorer if model.body is None else model.body, model.signature, files.reference_rows, kind=kind
    )
    return explainer, None if explainer.reference is None else files.reference_digest, files.policy


def _cost_us(explainer: ModelExplainer, profile: CostProfile | None, *, measures: bool) -> tuple[float, float]:
    """What a call takes and what each of its rows, in microseconds."""
    if profile is None or profile.explain is None:
        if measures:
            explainer.measure()
        one_us = explainer.predicted_us(1)
    else:
        # A stall of the host while it was measured is not the explainer's: the time in compiled code hardly varies.
        one_us = min(profile.explain.p99_us, MOST_SPREAD * profile.explain.p50_us)
    row_us = one_us if explainer.compiled is None else explainer.predicted_us(2) - explainer.predicted_us(1)
    row_us = min(max(row_us, 0.0), one_us)
    return one_us - row_us, row_us


def bound_by(explanations: Explanations) -> Mapping[str, str | None]:
    """What explanations follow from, for the bindings of their plans; empty where there is no explainer."""
    explainer = explanations.explainer
    bound: Mapping[str, str | None] = {} if explainer is None else explainer.bound
    return bound


def margins_of(body: Forest | Linear | None, compiled: Explainer | None) -> Scorer | None:
    """A scorer of the margins that a compiled explainer explains, in double precision; None where there is none such."""
    if compiled is None or body is None:
        return None
    bare = explained_forest(body) if isinstance(body, Forest) else explained_linear(body)
    scorer = replace(bare, single_precision=False).compile()
    return scorer if scorer.n_outputs == compiled.n_raw else None


def settings_that_bind(
    bound: Mapping[str, str | None],
    artifacts: Mapping[str, bytes],
    signature: Signature,
    declared: ExplainSettings,
) -> ExplainSettings:
    """The settings under which a version's explanations follow from what an earlier reply's did.

    The version's files are what they were: [models.NAME.explain] alone may have changed since. Its kind is told by what was
    bound, and so are `k` and `locale` by the digest of the policy that they were made part of.

    Args:
        bound: of `bound_by` then; names that it lacks are taken from `declared`.
        artifacts: the version's files.
        signature: the model's.
        declared: today's, for what cannot be told.
    """
    kind = bound.get("explainer_kind")
    found = declared if kind is None else replace(declared, kind=kind)
    wanted = bound.get("policy_digest")
    policy = policy_of(artifacts, signature)
    for locale in (declared.locale, None, *policy.locales):
        if locale is not None and locale not in policy.locales and not policy.is_default:
            continue
        for k in (declared.k, None, *range(1, MAX_K + 1)):
            if policy.with_settings(k=k, locale=locale).digest == wanted:
                return replace(found, k=k, locale=locale)
    return found
